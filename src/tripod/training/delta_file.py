"""One step of a delta store on disk: frames, then an index of them, then where the index lies.

    magic | frame | frame | ... | index: JSON packed by zstd | u64 length of the index, its SHA-256, magic

A file is written once, whole, and never changed.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from tripod.errors import CheckpointError
from tripod.training.byte_planes import decompressor, import_zstandard

_MAGIC = b"TRIDELT1"
_TRAILER = struct.Struct("<Q32s8s")
_INDEX_LEVEL = 9


@dataclass(frozen=True, slots=True)
class Frame:
    """A run of bytes in the file of a step."""

    start: int
    stop: int
    is_packed: bool  # by zstd; otherwise as it is
    reference: int | None = None  # the step with whose plane of the same place it is XORed; None: with nothing


@dataclass(frozen=True, slots=True)
class StoredTensor:
    dtype: str  # as safetensors spells it
    shape: tuple[int, ...]
    start: int  # where it lies in the checkpoint's own file
    sha256: str  # of its bytes
    crc32: int  # of its bytes: what every read checks, three times as fast
    frames: tuple[Frame, ...]  # one a byte plane, the least significant first; or one that holds all planes, one after the other


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file of a checkpoint. With tensors, `frame` is what stands before them; without, the whole content."""

    sha256: str  # of what `frame` holds
    frame: Frame
    stored_at: int  # the step whose file has `frame`: an earlier one where the same content was stored before
    tensors: Mapping[str, StoredTensor] | None


@dataclass(frozen=True, slots=True)
class StepIndex:
    """What the file of a step holds."""

    step: int
    keyframe: int  # the step that begins its group; no reference reaches further back
    files: Mapping[str, StoredFile]  # by their path in the checkpoint's folder


class DeltaFileWriter:
    """Writes frames and at the end the index, to a stream that begins empty."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._end = stream.write(_MAGIC)

    def add(self, content: bytes | memoryview, *, is_packed: bool, reference: int | None = None) -> Frame:
        start = self._end
        self._end += self._stream.write(content)
        return Frame(start, self._end, is_packed, reference)

    def close(self, index: StepIndex) -> None:
        packed = import_zstandard().ZstdCompressor(level=_INDEX_LEVEL).compress(json.dumps(_to_json(index)).encode())
        self._stream.write(packed)
        self._stream.write(_TRAILER.pack(len(packed), hashlib.sha256(packed).digest(), _MAGIC))


class DeltaFile:
    """The file of a step, mapped.

    Raises:
        CheckpointError: absent, truncated or damaged in its index.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._content = np.asarray(np.memmap(path, np.uint8, mode="r"))
        except (OSError, ValueError) as error:  # ValueError: empty
            raise CheckpointError(f"{path} cannot be read ({error}); restore it from a copy") from error
        trailer = self._content[-_TRAILER.size :].tobytes()
        if len(trailer) < _TRAILER.size or trailer[-len(_MAGIC) :] != _MAGIC or self._content[: len(_MAGIC)].tobytes() != _MAGIC:
            raise CheckpointError(f"{path} is truncated or not of a delta store; restore it from a copy")
        length, digest, _ = _TRAILER.unpack(trailer)
        end = len(self._content) - _TRAILER.size
        packed = self._content[max(0, end - length) : end].tobytes()
        if hashlib.sha256(packed).digest() != digest:
            raise CheckpointError(f"{path} has a damaged index; restore it from a copy")
        self._decompressor = decompressor()
        self.index = _from_json(json.loads(self._decompressor.decompress(packed)))

    def read(self, frame: Frame) -> NDArray[np.uint8]:
        """The content of a frame, unpacked but not yet undone of its reference.

        Raises:
            zstandard.ZstdError: it is damaged.
        """
        stored = self._content[frame.start : frame.stop]
        if not frame.is_packed:
            return stored
        return np.frombuffer(self._decompressor.decompress(stored.data), np.uint8)


def _to_json(index: StepIndex) -> dict[str, Any]:
    return {
        "step": index.step,
        "keyframe": index.keyframe,
        "files": {
            path: [
                file.sha256,
                _frame_to_json(file.frame),
                file.stored_at,
                None
                if file.tensors is None
                else {
                    name: [
                        tensor.dtype,
                        tensor.shape,
                        tensor.start,
                        tensor.sha256,
                        tensor.crc32,
                        [_frame_to_json(frame) for frame in tensor.frames],
                    ]
                    for name, tensor in file.tensors.items()
                },
            ]
            for path, file in index.files.items()
        },
    }


def _from_json(content: Mapping[str, Any]) -> StepIndex:
    files = {}
    for path, (sha256, frame, stored_at, tensors) in content["files"].items():
        stored = None
        if tensors is not None:
            stored = {
                name: StoredTensor(dtype, tuple(shape), start, tensor_sha256, crc32, tuple(Frame(*fields) for fields in frames))
                for name, (dtype, shape, start, tensor_sha256, crc32, frames) in tensors.items()
            }
        files[path] = StoredFile(sha256, Frame(*frame), stored_at, stored)
    return StepIndex(content["step"], content["keyframe"], files)


def _frame_to_json(frame: Frame) -> list[int | bool | None]:
    return [frame.start, frame.stop, frame.is_packed, frame.reference]
