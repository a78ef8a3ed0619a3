"""A safetensors file by its bytes: where each tensor lies, without copying and for any dtype.

Layout (https://github.com/huggingface/safetensors#format): u64 little-endian length of the header, the header as JSON, then the
tensors' bytes one after the other, without holes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tripod.errors import CheckpointError

ITEM_BYTES = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
}
_FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}
_MAX_HEADER = 100_000_000  # bytes, as the safetensors library limits it


@dataclass(frozen=True, slots=True)
class TensorLayout:
    """Where a tensor lies in its file."""

    dtype: str  # as safetensors spells it
    shape: tuple[int, ...]
    start: int  # bytes from the beginning of the file
    stop: int


@dataclass(frozen=True, slots=True)
class SafetensorsFile:
    """A memory-mapped file. Pages are read when they are looked at."""

    path: Path
    header: bytes  # with its length before it: the first bytes of the file
    tensors: Mapping[str, TensorLayout]  # in the order of their bytes
    content: NDArray[np.uint8]  # [file size]

    @classmethod
    def open(cls, path: Path) -> SafetensorsFile:
        """Map a file and check that its header accounts for every byte of it.

        Raises:
            CheckpointError: absent, truncated, or not of this format.
        """
        try:
            content = np.memmap(path, np.uint8, mode="r") if path.stat().st_size else np.empty(0, np.uint8)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
        header_bytes = int.from_bytes(content[:8].tobytes(), "little") if len(content) >= 8 else 0
        if not 2 <= header_bytes <= min(_MAX_HEADER, len(content) - 8):
            raise CheckpointError(f"{path} is truncated or not a safetensors file; its size is {len(content)} bytes; get it again")
        header = content[: 8 + header_bytes].tobytes()
        try:
            tensors = _layouts(json.loads(header[8:]), 8 + header_bytes)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{path} has a header that is not of a safetensors file ({error}); get it again") from error
        end = max((tensor.stop for tensor in tensors.values()), default=8 + header_bytes)
        if end != len(content):
            raise CheckpointError(f"{path} has {len(content)} bytes, but its header accounts for {end}; it is truncated; get it again")
        return cls(path, header, tensors, content)

    def raw(self, name: str) -> NDArray[np.uint8]:
        """The bytes of a tensor, mapped."""
        layout = self.tensors[name]
        return self.content[layout.start : layout.stop]

    def floats(self, name: str, part: slice = slice(None)) -> NDArray[Any] | None:
        """A part of a tensor's values, flat; bfloat16 comes as float32. None where they are no floats of 16 bits or more."""
        dtype = self.tensors[name].dtype
        if dtype == "BF16":
            return (self.raw(name).view("<u2")[part].astype("<u4") << np.uint32(16)).view("<f4")
        return self.raw(name).view(_FLOATS[dtype])[part] if dtype in _FLOATS else None


def _layouts(header: Mapping[str, Any], data_start: int) -> dict[str, TensorLayout]:
    """Raises ValueError, KeyError or TypeError where the header does not make sense."""
    layouts = {}
    end = 0
    entries = sorted(((name, entry) for name, entry in header.items() if name != "__metadata__"), key=lambda item: item[1]["data_offsets"])
    for name, entry in entries:
        start, stop = entry["data_offsets"]
        shape = tuple(entry["shape"])
        if entry["dtype"] not in ITEM_BYTES:
            raise ValueError(f"unknown dtype {entry['dtype']!r} of {name}")
        if start != end or stop - start != math.prod(shape) * ITEM_BYTES[entry["dtype"]]:
            raise ValueError(f"{name} has shape {list(shape)} and bytes {start} to {stop}, expected to begin at {end}")
        layouts[name] = TensorLayout(entry["dtype"], shape, data_start + start, data_start + stop)
        end = stop
    return layouts
