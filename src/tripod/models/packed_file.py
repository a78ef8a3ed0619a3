"""Packed weights kept on disk between starts: one file for each checkpoint, format and layout, mapped into memory as it is.

They lie in the user's cache folder, or where $TRIPOD_PACKED_CACHE says ("off": nowhere). Whatever fails here costs a start some time and
nothing else: weights are packed then as if there were no cache.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch

from tripod.durable_files import PARTIAL, atomic_file
from tripod.ops.kernels.cpu import packing
from tripod.ops.kernels.cpu.packing import PackedWeight, packed_bytes
from tripod.ops.linear import WeightFormat, parts_of

MAX_BYTES = 16 * 2**30  # of the folder; what was used longest ago goes first
MIN_BYTES = 16 * 2**20  # what is packed in an instant is not kept
_MAGIC = b"tripod packed weights 1\n"
_HEADER_BYTES = 4096  # a page, so that what follows is aligned for the kernels

_ABANDONED_S = 24 * 3600.0

_log = logging.getLogger(__name__)


class Packer(Protocol):
    """Where packed weights come from. Asked for those of a model, always in the same order."""

    def take(self, shape: tuple[int, int], *, is_gate_up: bool, make: Callable[[], PackedWeight]) -> PackedWeight:
        """The next weight: made now, or kept from before.

        Args:
            shape: (outputs, inputs) of the layer; of gate and up: of one of the two.
            is_gate_up: whether it is of gate and up together.
            make: packs it.
        """
        ...


class FreshPacker:
    """Packs everything, and remembers it for `keep`."""

    def __init__(self) -> None:
        self.packed: list[PackedWeight] = []

    def take(self, shape: tuple[int, int], *, is_gate_up: bool, make: Callable[[], PackedWeight]) -> PackedWeight:
        self.packed.append(make())
        return self.packed[-1]


class KeptPacker:
    """Gives the weights of a file one after the other."""

    def __init__(self, path: Path, weight_format: WeightFormat) -> None:
        """
        Raises:
            ValueError: it is not such a file.
            OSError: it cannot be read.
        """
        size = path.stat().st_size
        with path.open("rb") as stream:
            if size <= _HEADER_BYTES or stream.read(len(_MAGIC)) != _MAGIC:
                raise ValueError(f"{path} does not hold packed weights")
        self._bytes = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)  # mapped; written to by nobody
        self._format, self._group = parts_of(weight_format)
        self._at = _HEADER_BYTES

    def take(self, shape: tuple[int, int], *, is_gate_up: bool, make: Callable[[], PackedWeight]) -> PackedWeight:
        begin, self._at = self._at, self._at + packed_bytes(shape, self._format, self._group, is_gate_up=is_gate_up)
        if self._at > len(self._bytes):
            raise ValueError("the file of packed weights ends too early")
        return PackedWeight(self._bytes[begin : self._at], shape, self._format, self._group, is_gate_up)

    def check_end(self) -> None:
        """
        Raises:
            ValueError: the file holds more than was taken.
        """
        if self._at != len(self._bytes):
            raise ValueError("the file of packed weights holds more than the model")


def kept_path(checkpoint: Path, weight_format: WeightFormat, dtype: torch.dtype) -> Path | None:
    """Where the packed weights of a checkpoint are kept or would be; None: nowhere.

    The name stands for the content of config.json, the names, sizes and times of all files that may hold weights, the format, and the code
    that packs.

    Args:
        checkpoint: its folder.
        weight_format: of the packed weights.
        dtype: of the embedding as it was loaded, which is packed where it serves as the output matrix.
    """
    asked = os.environ.get("TRIPOD_PACKED_CACHE", "")
    if asked == "off" or not checkpoint.is_dir():
        return None
    if not asked:
        from platformdirs import user_cache_path

        asked = str(user_cache_path("tripod") / "packed")
    digest = hashlib.sha256(repr((_MAGIC, weight_format, dtype)).encode())
    for source in (Path(packing.__file__), Path(packing.__file__).with_name("linear.hpp"), Path(__file__)):
        digest.update(source.read_bytes())
    digest.update((checkpoint / "config.json").read_bytes())
    for file in sorted(entry for entry in checkpoint.resolve().iterdir() if entry.suffix in (".safetensors", ".bin", ".json")):
        status = file.stat()
        digest.update(repr((str(file), status.st_size, status.st_mtime_ns, status.st_ino)).encode())
    return Path(asked) / f"{digest.hexdigest()[:32]}-{weight_format}.bin"


def keep(path: Path, packed: list[PackedWeight]) -> None:
    """Write packed weights for the next start, where there is room for them."""
    num_bytes = _HEADER_BYTES + sum(weight.num_bytes for weight in packed)
    if not MIN_BYTES <= num_bytes <= MAX_BYTES:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(path.parent).free < 2 * num_bytes:
            return
        _make_room(path.parent, MAX_BYTES - num_bytes)
        with atomic_file(path) as stream:
            stream.write(_MAGIC.ljust(_HEADER_BYTES, b"\0"))
            for weight in packed:
                stream.write(weight.data.numpy().data)
    except OSError as error:
        _log.warning("packed weights could not be kept in %s: %s", path.parent, error)


def _make_room(folder: Path, num_bytes: int) -> None:
    """Remove what was used longest ago until the rest takes so many bytes at most. A file that is mapped lives on until it is let go."""
    kept = sorted(((entry.stat().st_mtime, entry.stat().st_size, entry) for entry in folder.glob("*.bin")), reverse=True)
    for abandoned in folder.glob(f"{PARTIAL}*"):  # by a process that was killed
        if time.time() - abandoned.stat().st_mtime > _ABANDONED_S:
            abandoned.unlink(missing_ok=True)
    total = 0
    for _, size, entry in kept:
        total += size
        if total > num_bytes:
            entry.unlink(missing_ok=True)


def open_kept(path: Path, weight_format: WeightFormat) -> KeptPacker | None:
    """The packed weights in a file; None where there are none."""
    try:
        packer = KeptPacker(path, weight_format)
        os.utime(path)  # used now
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RuntimeError) as error:
        _log.warning("packed weights in %s cannot be used: %s", path, error)
        return None
    return packer
