"""The checkpoints that a study looks at: what they are, and the hash by which what was measured on them is found again."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from tripod.errors import ConfigError
from tripod.evaluation.table import Row
from tripod.models.checkpoint import WEIGHT_FILES, read_tensors
from tripod.models.locate import locate

if TYPE_CHECKING:
    from tripod.engine.engine import Engine
    from tripod.training.run import Run

_MANIFEST, _RECIPE = "manifest.json", "recipe.yaml"
_NAMED_STEP = re.compile(r"(?:.*[^a-z])?step[-_]?(\d+)")
_CHUNK_BYTES = 1 << 22


@dataclass(frozen=True)
class Checkpoint:
    """A model at one moment of its training, as a study sees it."""

    name: str  # of the run, or of the model: what the checkpoints of one series have in common, and no other series has
    folder: Path
    step: int | None = None  # None: not known, as of a model that is not of a run
    device: str = "cpu"

    @cached_property
    def hash(self) -> str:
        """SHA-256 that names weights, architecture and tokenizer: from the hashes of a run's manifest, else from the files."""
        digest = hashlib.sha256()
        path = self.folder / _MANIFEST
        if path.is_file():
            tensors = json.loads(path.read_text(encoding="utf-8"))["tensors"]
            digest.update(json.dumps(tensors["model.safetensors"], sort_keys=True).encode())
            files = []
        else:
            weights = next((name for name in WEIGHT_FILES if (self.folder / name).is_file()), None)
            suffix = ".bin" if weights is not None and weights.startswith("pytorch") else ".safetensors"
            files = sorted(self.folder.glob(f"*{suffix}")) if self.folder.is_dir() else [self.folder]
        beside = [self.folder / "config.json", *sorted(self.folder.glob("tokenizer*"))] if self.folder.is_dir() else []
        for file in (*files, *(file for file in beside if file.is_file())):
            digest.update(f"\0{file.name}\0".encode())
            with file.open("rb") as stream:
                while chunk := stream.read(_CHUNK_BYTES):
                    digest.update(chunk)
        return digest.hexdigest()

    @cached_property
    def run(self) -> Run | None:
        """The training run that it is of, where the run lies here."""
        from tripod.training.run import Run

        folder = self.folder.parent
        return Run.open(folder) if self.step is not None and (folder / _RECIPE).is_file() else None

    @cached_property
    def num_parameters(self) -> int:
        """Of all tensors, those of embeddings included."""
        if self.folder.is_file():  # of llama2.c
            from tripod.models.load import load_language_model

            return sum(parameter.numel() for parameter in load_language_model(self.folder).parameters())
        return sum(tensor.numel() for tensor in read_tensors(self.folder).values())

    @cached_property
    def num_tokens(self) -> int | None:
        """Targets seen in training; None where nobody wrote it down."""
        path = self.folder / _MANIFEST
        if not path.is_file():
            return None
        position = json.loads(path.read_text(encoding="utf-8"))["position"]
        return int(position["num_tokens"]) if "num_tokens" in position else None

    def about(self) -> Row:
        """The cells that stand before what was measured on it."""
        run = self.run
        seeds = None if run is None else run.recipe.seeds
        return {
            "model": self.name,
            "step": self.step,
            "size": self.num_parameters,
            "seed": None if seeds is None else f"{seeds.initialization}/{seeds.order}",
            "tokens": self.num_tokens,
        }

    def engine(self) -> Engine:
        """An engine of its own, which the caller closes. Blocks while weights are read."""
        from tripod.engine.engine import Engine

        return Engine.load(str(self.folder), device=self.device)


def find_checkpoints(addresses: Sequence[str], *, steps: Sequence[int] | None = None, device: str = "cpu") -> tuple[Checkpoint, ...]:
    """The checkpoints that addresses name, each once.

    Args:
        addresses: a training run, or any folder with folders stepN, for all of them; or whatever `locate` finds: `run@stepN`, a folder,
            `org/name@revision`.
        steps: of runs, some; all.
        device: on which their engines run.

    Returns:
        Named by the last part of their addresses; where several series would be named alike, by as much of them as tells them apart.

    Raises:
        ConfigError: no address, a folder without checkpoints, or no run has one of the steps.
        CheckpointError: see `locate`.
    """
    if not addresses:
        raise ConfigError("no run and no checkpoint is given; name runs (runs/tiny-s), checkpoints (runs/tiny-s@step512) or models")
    found: dict[Path, tuple[Path, Path, int | None]] = {}  # of each: what names its series, its folder, its step
    for address in addresses:
        path = Path(address).expanduser()
        if series := _series(path):
            for step, folder in series:
                if not steps or step in steps:
                    found.setdefault(folder.resolve(), (path.absolute(), folder, step))
        elif path.is_dir() and not (path / "config.json").is_file():
            kind = "is a training run without a checkpoint; train it on" if (path / _RECIPE).is_file() else "holds no checkpoint"
            raise ConfigError(f"{address} {kind}: expected folders stepN, or config.json with weights; it holds {_held(path)}")
        else:
            folder = locate(address)
            found.setdefault(folder.resolve(), (_home(address, folder), folder, _step(address, folder)))
    if absent := sorted(set(steps or ()) - {step for _, _, step in found.values() if step is not None}):
        raise ConfigError(f"{', '.join(addresses)}: no checkpoint is of the steps {', '.join(map(str, absent))}")
    names = _names({home for home, _, _ in found.values()})
    return tuple(Checkpoint(names[home], folder, step, device) for home, folder, step in found.values())


def steps_by_size(checkpoints: Sequence[Checkpoint]) -> dict[int, dict[str, set[int]]]:
    """Of each number of parameters, the steps of each run."""
    sizes: dict[int, dict[str, set[int]]] = {}
    for checkpoint in checkpoints:
        sizes.setdefault(checkpoint.num_parameters, {}).setdefault(checkpoint.name, set()).add(checkpoint.step or 0)
    return sizes


def _series(folder: Path) -> list[tuple[int, Path]]:
    """The folders stepN of a run, in order; empty where the folder is a checkpoint itself, or holds none."""
    if not folder.is_dir() or (folder / "config.json").is_file():
        return []
    entries = ((re.fullmatch(r"step(\d+)", entry.name), entry) for entry in folder.iterdir() if (entry / "config.json").is_file())
    return sorted((int(match[1]), entry) for match, entry in entries if match)


def _held(folder: Path) -> str:
    return ", ".join(sorted(entry.name for entry in folder.iterdir())[:8]) or "nothing"


def _home(address: str, folder: Path) -> Path:
    """What names a series: the folder of its run, the model of its revisions, or itself."""
    base, at, _ = address.rpartition("@")
    path = Path(base if at else address).expanduser()
    if not path.exists():
        return path  # of the hub
    return path.absolute().parent if not at and re.fullmatch(r"step\d+", folder.name) else path.absolute()


def _names(homes: Collection[Path]) -> dict[Path, str]:
    """The last part of each path; of those that end alike, as many parts as tell them apart."""
    names: dict[Path, str] = {}
    for home in homes:
        num_parts = 1
        while any(other.parts[-num_parts:] == home.parts[-num_parts:] for other in homes if other != home):
            num_parts += 1
        names[home] = "/".join(home.parts[-num_parts:])
    return names


def _step(address: str, folder: Path) -> int | None:
    _, at, revision = address.rpartition("@")
    match = _NAMED_STEP.fullmatch(revision if at else folder.name)
    return int(match[1]) if match else None
