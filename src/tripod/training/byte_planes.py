"""Numbers taken apart into byte planes, each packed by zstd.

The first bytes of all numbers, then their second bytes, and so on: a float's low mantissa bytes are noise that no compressor can
shrink, while sign and exponent, and the high mantissa after an XOR with the weights of a little earlier, take few values. Laid
together they are coded close to their entropy; mixed with the noise, as in the file, they are not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tripod.errors import MissingExtraError

if TYPE_CHECKING:
    from zstandard import ZstdCompressor, ZstdDecompressor

_MIN_MATCH = 7  # bytes: shorter repetitions in a plane are chance, and cost more to name than to spell
_NOISE = 0.995  # of eight bits a byte: from here on a plane is kept as it is


def split(raw: NDArray[np.uint8], item_bytes: int) -> list[NDArray[np.uint8]]:
    """[N * item_bytes] bytes -> `item_bytes` planes of [N], the least significant first."""
    if item_bytes == 1:
        return [raw]
    items = raw.reshape(-1, item_bytes)
    return [np.ascontiguousarray(items[:, place]) for place in range(item_bytes)]


def merge(planes: Sequence[NDArray[np.uint8]], out: NDArray[np.uint8]) -> None:
    """Write planes of [N] back into [N * len(planes)] bytes; the inverse of `split`."""
    items = out.reshape(-1, len(planes))
    for place, plane in enumerate(planes):
        items[:, place] = plane


def entropy_bytes(plane: NDArray[np.uint8]) -> float:
    """Bytes that an ideal coder of single bytes needs: the zeroth-order entropy of the plane times its length."""
    counts = np.bincount(plane, minlength=256)
    counts = counts[counts > 0]
    return float(np.sum(counts * np.log2(len(plane) / counts)) / 8) if len(plane) else 0.0


class PlanePacker:
    """Packs planes by one zstd level; not to be shared between threads.

    Raises:
        MissingExtraError: zstandard is not installed.
    """

    def __init__(self, level: int) -> None:
        self._compressor = _compressor(level)

    def pack(self, plane: NDArray[np.uint8]) -> bytes | None:
        """A frame with a checksum; None where it would not be smaller than the plane."""
        if entropy_bytes(plane) > _NOISE * len(plane) and len(plane) > 4096:  # of a short plane the entropy is underestimated
            return None
        frame = self._compressor.compress(plane.data)
        return frame if len(frame) < len(plane) else None


def _compressor(level: int) -> ZstdCompressor:
    zstandard = import_zstandard()
    parameters = zstandard.ZstdCompressionParameters.from_level(level, min_match=_MIN_MATCH, write_checksum=1)
    compressor: ZstdCompressor = zstandard.ZstdCompressor(compression_params=parameters)
    return compressor


def decompressor() -> ZstdDecompressor:
    """Not to be shared between threads.

    Raises:
        MissingExtraError: zstandard is not installed.
    """
    unpacker: ZstdDecompressor = import_zstandard().ZstdDecompressor()
    return unpacker


def import_zstandard() -> Any:
    try:
        import zstandard
    except ImportError:
        raise MissingExtraError("zstandard", "training", "a delta store of checkpoints") from None
    return zstandard
