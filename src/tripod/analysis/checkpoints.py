"""The checkpoints that a study looks at: what they are, and the hash by which what was measured on them is found again."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
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

    name: str  # of the run, or of the model: what the checkpoints of one series have in common
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

    Raises:
        ConfigError: an address names nothing, or none has the steps.
        CheckpointError: see `locate`.
    """
    if not addresses:
        raise ConfigError("no run and no checkpoint is given; name runs (runs/tiny-s), checkpoints (runs/tiny-s@step512) or models")
    found: list[Checkpoint] = []
    for address in addresses:
        series = _series(Path(address).expanduser())
        if series:
            name = Path(address).name
            found += [Checkpoint(name, folder, step, device) for step, folder in series if steps is None or step in steps]
        else:
            folder = locate(address)
            found.append(Checkpoint(_name(address, folder), folder, _step(address, folder), device))
    if not found:
        raise ConfigError(f"{', '.join(addresses)}: no checkpoint is of the steps {', '.join(map(str, steps or ()))}")
    unique: dict[Path, Checkpoint] = {}
    for checkpoint in found:
        unique.setdefault(checkpoint.folder.resolve(), checkpoint)
    return tuple(unique.values())


def _series(folder: Path) -> list[tuple[int, Path]]:
    """The folders stepN of a run, in order; empty where the folder is a checkpoint itself, or holds none."""
    if not folder.is_dir() or (folder / "config.json").is_file():
        return []
    entries = ((re.fullmatch(r"step(\d+)", entry.name), entry) for entry in folder.iterdir() if (entry / "config.json").is_file())
    return sorted((int(match[1]), entry) for match, entry in entries if match)


def _name(address: str, folder: Path) -> str:
    base, at, _ = address.rpartition("@")
    if at:
        return Path(base).name
    return folder.parent.name if re.fullmatch(r"step\d+", folder.name) else Path(address).name


def _step(address: str, folder: Path) -> int | None:
    _, at, revision = address.rpartition("@")
    match = _NAMED_STEP.fullmatch(revision if at else folder.name)
    return int(match[1]) if match else None
