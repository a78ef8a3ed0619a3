"""pgvector's types to and from numpy, in its binary format: the bits that were given are the bits that are kept."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import numpy as np

from tripod.errors import StoreError

if TYPE_CHECKING:
    from psycopg import Connection
    from psycopg.abc import AdaptContext

    from tripod.protocols import Vectors
    from tripod.retrieval.vector_format import VectorFormat

_TYPES = {"f32": ("vector", ">f4"), "f16": ("halfvec", ">f2")}


def type_of(form: VectorFormat) -> str:
    """The name of the type that keeps vectors of a format."""
    if form not in _TYPES:
        raise StoreError(f'pgvector keeps no vectors="{form}"; give "f32" or "f16"')
    return _TYPES[form][0]


def register(connection: Connection, form: VectorFormat) -> None:
    """Let numpy arrays [dim] be sent and read as vectors on this connection; pgvector must be installed in its database."""
    from psycopg.adapt import Dumper, Loader
    from psycopg.pq import Format
    from psycopg.types import TypeInfo

    name, dtype = _TYPES[form]
    info = TypeInfo.fetch(connection, name)
    if info is None:
        return  # no vectors yet
    type_oid = info.oid

    class ArrayDumper(Dumper):
        format = Format.BINARY
        oid = type_oid

        def dump(self, obj: Any) -> bytes:
            return struct.pack(">HH", len(obj), 0) + np.asarray(obj).astype(dtype).tobytes()

    class ArrayLoader(Loader):
        format = Format.BINARY

        def __init__(self, oid: int, context: AdaptContext | None = None) -> None:
            super().__init__(oid, context)

        def load(self, data: Any) -> Vectors:
            return np.frombuffer(bytes(data), dtype=dtype, offset=4).astype(np.float32)

    connection.adapters.register_dumper(np.ndarray, ArrayDumper)
    connection.adapters.register_loader(type_oid, ArrayLoader)
