"""A series of checkpoints in little space, any of which is read back bit for bit: `series/stepN.delta`, one file a step.

Each tensor is split into byte planes. For each plane the store tries three ways and keeps the smallest: as it is, XORed with the
plane of the previous step, XORed with that of the group's keyframe; the choice is recorded with the frame. In a series of
training checkpoints sign, exponent and high mantissa of a weight hardly change from one to the next, low mantissa bytes and first
moments are noise, and noise is kept raw. A group is a bounded number of steps that refer to no step before the group, so reading
one tensor of one step touches a bounded number of frames, and only of those planes that refer.

A step's file is written beside its place, flushed and renamed, and never changed after. The files are the index: a crash at any point
leaves the store with all steps that were added before. One process writes at a time; any number may read.
"""

from __future__ import annotations

import hashlib
import math
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tripod.durable_files import PARTIAL, durable_file, durable_folder
from tripod.errors import CheckpointError, ConfigError
from tripod.training.byte_planes import PlanePacker, entropy_bytes, import_zstandard, merge, split
from tripod.training.data.progress import Progress, no_progress
from tripod.training.delta_file import DeltaFile, DeltaFileWriter, Frame, StepIndex, StoredFile, StoredTensor
from tripod.training.safetensors_file import ITEM_BYTES, SafetensorsFile

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS = "model.safetensors"
_STEP_FILE = re.compile(r"step(0|[1-9][0-9]*)\.delta")
_STEP_FOLDER = re.compile(r"step(0|[1-9][0-9]*)")
_SMALL = 4096  # bytes: below, a tensor is one frame without reference; its few bytes are not worth a chain
_NEARLY = 1.03  # ways whose entropy is within this factor of the best are tried by packing
_WORTH = 128  # a reference must save one part in so many of a plane: it makes reading longer
_TORCH_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "C64": "complex64",
    "BOOL": "bool",
    **{f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSize:
    """Bytes of some tensors of a store."""

    raw: int  # in their checkpoints
    stored: int  # in frames
    plain_planes: int  # planes that refer to nothing, by how many there are
    previous_planes: int  # that refer to the previous step
    keyframe_planes: int  # that refer to the keyframe, where that is not the previous step


class DeltaStore:
    """A folder of delta files. `open` it."""

    def __init__(self, path: Path, *, level: int, group: int) -> None:
        self.path = path
        self._level = level
        self._group = group
        self._zstd_error: type[Exception] = import_zstandard().ZstdError
        self._files: dict[int, DeltaFile] = {}  # opened so far
        found = (_STEP_FILE.fullmatch(entry.name) for entry in path.iterdir()) if path.is_dir() else ()
        self._steps = sorted(int(match[1]) for match in found if match)

    @classmethod
    def open(cls, path: Path, *, level: int = 16, group: int = 16) -> DeltaStore:
        """Open a store, or begin one: the folder is made when the first step is added.

        Args:
            path: the store's folder.
            level: of zstd, for steps that are added. 3 is ten times as fast, and the store about one percent larger.
            group: steps from one keyframe to the next, for steps that are added. Reading a step touches at most so many files.

        Raises:
            ConfigError: `path` is a file, or a number is out of range.
            MissingExtraError: zstandard is not installed.
        """
        zstandard = import_zstandard()
        if path.exists() and not path.is_dir():
            raise ConfigError(f"{path} is a file; a delta store is a folder")
        if not 1 <= level <= zstandard.MAX_COMPRESSION_LEVEL:
            raise ConfigError(f"level={level}; zstd has levels 1 to {zstandard.MAX_COMPRESSION_LEVEL}")
        if group < 1:
            raise ConfigError(f"group={group}; a group has at least the keyframe itself")
        return cls(path, level=level, group=group)

    @property
    def steps(self) -> tuple[int, ...]:
        """The steps that can be read back, in order."""
        return tuple(self._steps)

    def index(self, step: int) -> StepIndex:
        """What is stored of a step: files, tensors, and the choice made for each plane.

        Raises:
            ConfigError: the store has no such step.
            CheckpointError: its file is damaged.
        """
        return self._file(step).index

    def add(self, step: int, folder: Path) -> None:
        """Add a checkpoint: all files of its folder; those in safetensors by planes, others packed, once while they stay the same.

        Steps are added in ascending order. One that is there already is compared, and left alone when it is the same.

        Raises:
            ConfigError: the step is before the last one.
            CheckpointError: a file of the checkpoint is damaged, or the store has another checkpoint under this step.
        """
        if step in self._steps:
            self._expect_same(step, folder)
            return
        if self._steps and step < self._steps[-1]:
            raise ConfigError(f"step {step} comes after step {self._steps[-1]} in {self.path}; add the steps of a run in ascending order")
        paths = sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else []
        if not paths:
            raise CheckpointError(f"{folder} is not a folder with files; give the folder of a checkpoint")
        self.path.mkdir(parents=True, exist_ok=True)
        for left in self.path.glob(f"{PARTIAL}*"):  # by a crash
            left.unlink()
        previous = self.index(self._steps[-1]) if self._steps else None
        keyframe = step
        if previous is not None and len(self._steps) - self._steps.index(previous.keyframe) < self._group:
            keyframe = previous.keyframe
        packer = PlanePacker(self._level)
        with durable_file(self._path(step)) as stream:
            writer = DeltaFileWriter(stream)
            files: dict[str, StoredFile] = {}
            for path in paths:
                name = path.relative_to(folder).as_posix()
                if path.suffix == ".safetensors":
                    files[name] = self._add_tensors(writer, packer, SafetensorsFile.open(path), name, step, self._references(keyframe))
                else:
                    files[name] = _add_content(writer, packer, path.read_bytes(), step, previous.files.get(name) if previous else None)
            writer.close(StepIndex(step, keyframe, files))
        self._steps.append(step)

    def pack(self, run: Path, *, progress: Progress = no_progress) -> int:
        """Add every checkpoint `stepN` of a run, in ascending order. The run's own folders stay.

        Args:
            run: holds `step0`, `step1`, ...
            progress: told the stage "pack", with checkpoints done.

        Returns:
            How many are added; the others were there.

        Raises:
            ConfigError: the run has no checkpoints, or one from before the last that is stored.
            CheckpointError: as from `add`.
        """
        folders = checkpoints_of(run)
        num_before = len(self._steps)
        for done, (step, folder) in enumerate(folders.items()):
            progress("pack", done, len(folders))
            self.add(step, folder)
        progress("pack", len(folders), len(folders))
        return len(self._steps) - num_before

    def names(self, step: int, file: str = WEIGHTS) -> tuple[str, ...]:
        """The tensors of a checkpoint's file.

        Raises:
            ConfigError: the store has no such step, or the step no such file with tensors.
            CheckpointError: the step's file is damaged.
        """
        return tuple(self._tensors(step, file))

    def tensor(self, step: int, name: str, file: str = WEIGHTS) -> Tensor:
        """One tensor, bit for bit as it was added; of its own memory.

        Raises:
            ConfigError: there is no such step, file or tensor.
            CheckpointError: it is damaged, or its reference is.
        """
        import torch

        stored = self._tensors(step, file)
        if name not in stored:
            raise ConfigError(f"{file} of step {step} has no tensor {name!r}; it has {', '.join(sorted(stored)[:6])}, ...")
        raw = self._raw(step, file, name, is_thorough=False)
        dtype = getattr(torch, _TORCH_DTYPES[stored[name].dtype])
        if not len(raw):  # which torch does not view as another dtype
            return torch.empty(stored[name].shape, dtype=dtype)
        return torch.from_numpy(raw).view(dtype).reshape(stored[name].shape)

    def tensors(self, step: int, file: str = WEIGHTS) -> dict[str, Tensor]:
        """All tensors of a checkpoint's file; arguments and errors as for `tensor`."""
        return {name: self.tensor(step, name, file) for name in self.names(step, file)}

    def restore(self, step: int, folder: Path) -> None:
        """Write a checkpoint's folder again, every file byte for byte as it was: it serves and resumes.

        The folder appears when it is whole and the SHA-256 of everything has been checked.

        Raises:
            ConfigError: the store has no such step, or `folder` exists.
            CheckpointError: something is damaged; the message names step and tensor.
        """
        if folder.exists():
            raise ConfigError(f"{folder} exists; name a folder that does not, to restore step {step} into")
        index = self.index(step)
        with durable_folder(folder) as partial:
            for path, stored in index.files.items():
                (partial / path).parent.mkdir(parents=True, exist_ok=True)
                with durable_file(partial / path) as stream:
                    stream.write(self._content(step, path, stored).data)
                    for name in stored.tensors or ():  # in the order of their bytes
                        stream.write(self._raw(step, path, name, is_thorough=True).data)

    def verify(self, *, progress: Progress = no_progress) -> None:
        """Read everything back and check its SHA-256.

        Raises:
            CheckpointError: at the first thing that is damaged, naming step and tensor.
        """
        for done, step in enumerate(self._steps):
            progress("verify", done, len(self._steps))
            for path, stored in self.index(step).files.items():
                self._content(step, path, stored)
                for name in stored.tensors or ():
                    self._raw(step, path, name, is_thorough=True)
        progress("verify", len(self._steps), len(self._steps))

    def size(self, file: str | None = None, steps: Sequence[int] | None = None) -> StoreSize:
        """What tensors take, of one file of the checkpoints (such as "model.safetensors") or of all."""
        raw = stored = plain = to_previous = to_keyframe = 0
        for step in self._steps if steps is None else steps:
            index = self.index(step)
            for path, entry in index.files.items():
                if entry.tensors is None or file not in (None, path):
                    continue
                for tensor in entry.tensors.values():
                    raw += math.prod(tensor.shape) * ITEM_BYTES[tensor.dtype]
                    for frame in tensor.frames:
                        stored += frame.stop - frame.start
                        plain += frame.reference is None
                        to_keyframe += frame.reference == index.keyframe and not self._is_before(index.keyframe, step)
                        to_previous += frame.reference is not None and self._is_before(frame.reference, step)
        return StoreSize(raw=raw, stored=stored, plain_planes=plain, previous_planes=to_previous, keyframe_planes=to_keyframe)

    def _references(self, keyframe: int) -> tuple[int, ...]:
        """The steps that the next one may refer to: by its place in the group with the lowest bit cleared, and the keyframe.

        So place 7 refers to 6, 6 to 4, 4 to 0: half of the places refer to the one before them, and a chain is as long as the place
        has bits, not as long as the group.
        """
        if keyframe not in self._steps:
            return ()
        first = self._steps.index(keyframe)
        place = len(self._steps) - first
        return tuple(dict.fromkeys((keyframe, self._steps[first + (place & (place - 1))])))

    def _is_before(self, earlier: int, step: int) -> bool:
        return self._steps.index(step) - self._steps.index(earlier) == 1

    def _add_tensors(
        self, writer: DeltaFileWriter, packer: PlanePacker, file: SafetensorsFile, path: str, step: int, references: Sequence[int]
    ) -> StoredFile:
        tensors = {}
        for name, layout in file.tensors.items():
            raw = file.raw(name)
            item_bytes = ITEM_BYTES[layout.dtype]
            frames: tuple[Frame, ...]
            if len(raw) < _SMALL:
                frames = (_add_frame(writer, packer, np.concatenate(split(raw, item_bytes))),)
            else:
                usable = [earlier for earlier in references if self._has_like(earlier, path, name, layout.dtype, layout.shape)]
                frames = tuple(
                    _add_smallest(writer, packer, plane, {earlier: self._plane(earlier, path, name, place) for earlier in usable})
                    for place, plane in enumerate(split(raw, item_bytes))
                )
            sha256, crc32 = hashlib.sha256(raw.data).hexdigest(), zlib.crc32(raw.data)
            tensors[name] = StoredTensor(layout.dtype, layout.shape, layout.start, sha256, crc32, frames)
        header = np.frombuffer(file.header, np.uint8)
        return StoredFile(hashlib.sha256(file.header).hexdigest(), _add_frame(writer, packer, header), step, tensors)

    def _has_like(self, step: int, path: str, name: str, dtype: str, shape: tuple[int, ...]) -> bool:
        stored = self.index(step).files.get(path)
        like = stored.tensors.get(name) if stored is not None and stored.tensors is not None else None
        return like is not None and like.dtype == dtype and like.shape == shape

    def _plane(self, step: int, path: str, name: str, place: int) -> NDArray[np.uint8]:
        """A plane's own bytes, through its chain of references, which ends at the latest with the keyframe."""
        frame = self._tensors(step, path)[name].frames[place]
        plane = self._read(step, frame, step, name)
        while frame.reference is not None:
            at = frame.reference
            if at not in self._steps:
                raise CheckpointError(
                    f"step {step} of {self.path}: tensor {name} of {path} needs {self._path(at).name}, which is absent; "
                    "restore that file from a copy"
                )
            frame = self._tensors(at, path)[name].frames[place]
            part = self._read(at, frame, step, name)
            if len(part) != len(plane):
                raise CheckpointError(f"step {step} of {self.path}: tensor {name} of {path} refers to step {at}, where it has another size")
            plane = np.bitwise_xor(plane, part, out=plane if plane.flags.writeable else None)
        return plane

    def _raw(self, step: int, path: str, name: str, *, is_thorough: bool) -> NDArray[np.uint8]:
        """The bytes of a tensor, checked by their CRC-32; when thorough, also by their SHA-256, which takes longer than reading them."""
        stored = self._tensors(step, path)[name]
        item_bytes = ITEM_BYTES[stored.dtype]
        raw: NDArray[np.uint8] = np.empty(math.prod(stored.shape) * item_bytes, np.uint8)
        planes: Sequence[NDArray[np.uint8]] = [self._plane(step, path, name, place) for place in range(len(stored.frames))]
        if sum(map(len, planes)) == len(raw):
            if len(planes) != item_bytes:
                planes = np.split(planes[0], item_bytes)
            merge(planes, raw)
            if zlib.crc32(raw.data) == stored.crc32 and not (is_thorough and hashlib.sha256(raw.data).hexdigest() != stored.sha256):
                return raw
        raise CheckpointError(
            f"step {step} of {self.path}: tensor {name} of {path} does not have the hash that it was added with; "
            f"restore {' and '.join(self._path(at).name for at in self._chain(step, path, name))} from a copy"
        )

    def _chain(self, step: int, path: str, name: str) -> list[int]:
        """The steps whose files a tensor is read from."""
        chain = [step]
        for at in chain:
            chain += [
                frame.reference
                for frame in self._tensors(at, path)[name].frames
                if frame.reference is not None and frame.reference not in chain
            ]
        return list(dict.fromkeys(chain))

    def _content(self, step: int, path: str, stored: StoredFile) -> NDArray[np.uint8]:
        """A file without tensors, or what stands before them, checked."""
        content = self._read(stored.stored_at, stored.frame, step, path)
        if hashlib.sha256(content.data).hexdigest() != stored.sha256:
            raise CheckpointError(
                f"step {step} of {self.path}: {path} does not have the hash that it was added with; restore it from a copy"
            )
        return content

    def _read(self, at: int, frame: Frame, step: int, what: str) -> NDArray[np.uint8]:
        """What the file of step `at` holds in a frame; `step` and `what` are what is being read, for the message."""
        try:
            return self._file(at).read(frame)
        except self._zstd_error as error:
            raise CheckpointError(
                f"step {step} of {self.path}: {what} is damaged in {self._path(at).name} ({error}); restore that file from a copy"
            ) from error
        except ConfigError as error:
            raise CheckpointError(
                f"step {step} of {self.path}: {what} needs {self._path(at).name}, which cannot be read: {error}"
            ) from error

    def _tensors(self, step: int, file: str) -> Mapping[str, StoredTensor]:
        stored = self._file(step).index.files.get(file)
        if stored is None or stored.tensors is None:
            held = ", ".join(sorted(path for path, entry in self.index(step).files.items() if entry.tensors is not None))
            raise ConfigError(f"step {step} of {self.path} has no tensors in {file!r}; it has them in {held or 'no file'}")
        return stored.tensors

    def _file(self, step: int) -> DeltaFile:
        file = self._files.get(step)
        if file is None:
            if step not in self._steps:
                if not self._steps:
                    raise ConfigError(
                        f"{self.path} is not a delta store: it has no stepN.delta; `tripod suite pack RUN --into {self.path}` makes one"
                    )
                some = ", ".join(map(str, self._steps[:4])) + (", ..." if len(self._steps) > 4 else "")
                raise ConfigError(f"{self.path} has no step {step}; it has {len(self._steps)} steps: {some}")
            file = self._files[step] = DeltaFile(self._path(step))
        return file

    def _path(self, step: int) -> Path:
        return self.path / f"step{step}.delta"

    def _expect_same(self, step: int, folder: Path) -> None:
        stored = self.index(step).files
        paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()} if folder.is_dir() else {}
        differing = sorted(paths.keys() ^ stored.keys())
        for name in paths.keys() & stored.keys():
            tensors = stored[name].tensors
            if tensors is None:
                if hashlib.sha256(paths[name].read_bytes()).hexdigest() != stored[name].sha256:
                    differing.append(name)
                continue
            file = SafetensorsFile.open(paths[name])
            if hashlib.sha256(file.header).hexdigest() != stored[name].sha256:
                differing.append(name)
            differing += [
                f"tensor {tensor} of {name}"
                for tensor in file.tensors.keys() & tensors.keys()
                if hashlib.sha256(file.raw(tensor).data).hexdigest() != tensors[tensor].sha256
            ]
        if differing:
            raise CheckpointError(
                f"{self.path} has another checkpoint under step {step} than {folder}; they differ in {', '.join(differing[:4])}; "
                "use another store for another run"
            )


def checkpoints_of(run: Path) -> dict[int, Path]:
    """The checkpoint folders `stepN` of a run by their steps, in ascending order.

    Raises:
        ConfigError: there is none.
    """
    found = ((_STEP_FOLDER.fullmatch(entry.name), entry) for entry in run.iterdir() if entry.is_dir()) if run.is_dir() else ()
    folders = {int(match[1]): entry for match, entry in found if match}
    if not folders:
        raise ConfigError(f"{run} has no checkpoints; expected folders step0, step1, ...")
    return dict(sorted(folders.items()))


def _add_frame(writer: DeltaFileWriter, packer: PlanePacker, content: NDArray[np.uint8], reference: int | None = None) -> Frame:
    packed = packer.pack(content)
    return writer.add(content.data if packed is None else packed, is_packed=packed is not None, reference=reference)


def _add_smallest(
    writer: DeltaFileWriter, packer: PlanePacker, plane: NDArray[np.uint8], references: Mapping[int, NDArray[np.uint8]]
) -> Frame:
    """As it is, or XORed with one of the references. Of references that come out alike, the first: it reads fastest."""
    ways: dict[int | None, NDArray[np.uint8]] = {None: plane}
    ways |= {step: plane ^ reference for step, reference in references.items()}
    entropies = {step: entropy_bytes(way) for step, way in ways.items()}
    within = _NEARLY * min(entropies.values())
    packed = {step: packer.pack(way) for step, way in ways.items() if entropies[step] <= within}
    sizes = {step: len(plane) if frame is None else len(frame) for step, frame in packed.items()}
    costs = {step: size if step is None else size + len(plane) // _WORTH for step, size in sizes.items()}
    best = min(costs, key=costs.__getitem__)
    frame = packed[best]
    if frame is None:  # nothing shrinks it
        return writer.add(plane.data, is_packed=False)
    return writer.add(frame, is_packed=True, reference=best)


def _add_content(writer: DeltaFileWriter, packer: PlanePacker, content: bytes, step: int, before: StoredFile | None) -> StoredFile:
    """A file without tensors; a pointer where the step before had the same."""
    sha256 = hashlib.sha256(content).hexdigest()
    if before is not None and before.tensors is None and before.sha256 == sha256:
        return before
    return StoredFile(sha256, _add_frame(writer, packer, np.frombuffer(content, np.uint8)), step, None)
