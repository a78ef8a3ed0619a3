"""How a vector is kept: float32, or smaller with some loss. Vectors are of unit length or near it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from tripod.protocols import Vectors

VectorFormat: TypeAlias = Literal["f32", "f16", "int8"]
FORMATS: tuple[VectorFormat, ...] = ("f32", "f16", "int8")


def encode(vector: ArrayLike, form: VectorFormat) -> bytes:
    """[dim] -> 4, 2 or 1 bytes a dimension, little-endian; int8 begins with its scale, a float32: largest magnitude / 127."""
    exact: Vectors = np.asarray(vector, dtype="<f4")
    if form == "f32":
        return exact.tobytes()
    if form == "f16":
        return exact.astype("<f2").tobytes()
    scale: Vectors = np.array(np.abs(exact).max(initial=0.0) / 127 or 1.0, dtype="<f4")
    rounded: NDArray[np.int8] = np.rint(exact / scale).astype(np.int8)
    return scale.tobytes() + rounded.tobytes()


def decode(content: bytes, form: VectorFormat) -> Vectors:
    """The vector [dim] as float32; in f32 with the very bits that were encoded."""
    if form == "int8":
        vector: Vectors = np.frombuffer(content, dtype=np.int8, offset=4).astype(np.float32) * np.frombuffer(content, dtype="<f4", count=1)
        return vector
    return np.frombuffer(content, dtype="<f4" if form == "f32" else "<f2").astype(np.float32)


def decode_all(contents: list[bytes], form: VectorFormat) -> tuple[NDArray[np.generic], Vectors]:
    """Many at once, as they are kept: [N, dim] of float32, float16 or int8, and [N] scales, which are 1 except for int8."""
    if form == "int8":
        raw = np.frombuffer(b"".join(contents), dtype=np.int8).reshape(len(contents), -1)
        return raw[:, 4:], raw[:, :4].copy().view("<f4").reshape(-1)
    dtype = "<f4" if form == "f32" else "<f2"
    return np.frombuffer(b"".join(contents), dtype=dtype).reshape(len(contents), -1), np.ones(len(contents), dtype=np.float32)


def dim_of(length: int, form: VectorFormat) -> int:
    """Of a vector that takes so many bytes."""
    return length - 4 if form == "int8" else length // (4 if form == "f32" else 2)


def dtype_of(form: VectorFormat) -> np.dtype[np.generic]:
    return np.dtype({"f32": np.float32, "f16": np.float16, "int8": np.int8}[form])
