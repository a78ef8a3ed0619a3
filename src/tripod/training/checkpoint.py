"""Checkpoints of a run: `run/stepN/`, in the Hugging Face layout, with all that it takes to go on.

    config.json, model.safetensors     what transformers, vLLM and `Engine.load("run@stepN")` open; weights in float32
    tokenizer.json, ...                copied from the tokenizer's folder
    optimizer.safetensors              exp_avg.NAME and exp_avg_sq.NAME for each weight NAME (or what `Adafactor` keeps), and `step`, the
                                       number of updates
    manifest.json                      hashes of all tensors, recipe, order, versions; see `Manifest`

A checkpoint is written beside its place, flushed to the disk and renamed, so a crash at any point leaves the earlier ones whole and
this one absent or whole.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor

from tripod.durable import PARTIAL, durable_folder, write_flushed
from tripod.errors import CheckpointError
from tripod.models.architectures import Decoder, names_of
from tripod.models.checkpoint import read_tensors
from tripod.models.load import match_tensors
from tripod.models.save import file_tensors, save_checkpoint
from tripod.training.loss_scale import LossScale
from tripod.training.optimizer import Optimizer

MANIFEST = "manifest.json"
OPTIMIZER = "optimizer.safetensors"
WEIGHTS = "model.safetensors"
FORMAT = 1
_STEP = re.compile(r"step(0|[1-9][0-9]*)")
TOKENIZER_FILES = (
    "tokenizer*.json",
    "tokenizer.model",
    "spiece.model",
    "tok*.bin",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """Where a run stands; with weights and optimizer state, enough to go on bit for bit."""

    step: int  # steps done, so the next batch is that of step `step`
    num_updates: int  # steps that changed the weights: all but those skipped for an overflow of float16
    num_tokens: int  # targets seen
    loss_scale: LossScale | None = None  # of float16


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a checkpoint says of itself."""

    position: Position
    order_fingerprint: str  # of the data order that it was trained on
    recipe: Mapping[str, Any]  # `recipe_from` reads it
    tensors: Mapping[str, Mapping[str, str]]  # file -> tensor -> SHA-256 of its bytes
    versions: Mapping[str, str]  # of what made it
    git_commit: str | None  # of the working folder, with "+" where it had changes; None outside of a repository
    branch_of: Mapping[str, str] | None = None  # the first of a branch: parent and its order; see `tripod.training.branch`


def checkpoint_folder(run: Path, step: int) -> Path:
    return run / f"step{step}"


def steps_of_run(run: Path) -> tuple[int, ...]:
    """The steps of the checkpoints that lie in a run, in order."""
    found = (_STEP.fullmatch(entry.name) for entry in run.iterdir() if (entry / MANIFEST).is_file()) if run.is_dir() else ()
    return tuple(sorted(int(match[1]) for match in found if match))


def save_training_checkpoint(
    run: Path,
    model: Decoder,
    optimizer_state: Mapping[str, Tensor],
    position: Position,
    *,
    tokenizer: Path,
    recipe: Mapping[str, Any],
    order_fingerprint: str,
) -> Path:
    """Write `run/stepN` and return it; the optimizer's state is `Optimizer.tensors`.

    One that is there already stays: a run that comes there again has the same state.
    """
    target = checkpoint_folder(run, position.step)
    if (target / MANIFEST).is_file():
        return target
    weights = file_tensors(model)
    state = _translated(optimizer_state, names_of(model).to_checkpoint)
    state["step"] = torch.tensor(position.num_updates)
    with durable_folder(target) as partial:
        save_checkpoint(model, partial)
        for pattern in TOKENIZER_FILES:
            for file in sorted(tokenizer.glob(pattern)):
                write_flushed(partial / file.name, file.read_bytes())
        write_flushed(partial / OPTIMIZER, to_safetensors({name: tensor.cpu().contiguous() for name, tensor in state.items()}))
        manifest = Manifest(
            position=position,
            order_fingerprint=order_fingerprint,
            recipe=recipe,
            tensors={WEIGHTS: tensor_hashes(weights), OPTIMIZER: tensor_hashes(state)},
            versions=versions(),
            git_commit=_git_commit(),
        )
        write_flushed(partial / MANIFEST, json.dumps({"format": FORMAT, **asdict(manifest)}, indent=1).encode() + b"\n")
    return target


def remove_partial(run: Path) -> None:
    """Take away what a crash left of what was being written: checkpoints, and the run's own files."""
    for entry in run.glob(f"{PARTIAL}*"):
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink(missing_ok=True)


def read_manifest(folder: Path) -> Manifest:
    """What a checkpoint says of itself.

    Raises:
        CheckpointError: it says nothing, or in another format.
    """
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("format") != FORMAT:
            raise CheckpointError(f"{path} has another format than {FORMAT}; read it with the version of Tripod that wrote it")
        position = content.pop("position")
        scale = position.pop("loss_scale")
        return Manifest(position=Position(**position, loss_scale=None if scale is None else LossScale(**scale)), **content)
    except FileNotFoundError:
        raise CheckpointError(f"{folder} has no {MANIFEST}, so it is not a checkpoint of a training run") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}; use another checkpoint") from error


def load_training_checkpoint(folder: Path, model: Decoder, optimizer: Optimizer) -> Manifest:
    """Set weights and optimizer to the state of a checkpoint, after its tensors have shown that they are those that were written.

    Raises:
        CheckpointError: a file is absent or broken, tensors are not those of this model, or one is not what the manifest says.
    """
    manifest = read_manifest(folder)
    names = names_of(model)
    weights = read_tensors(folder)
    try:
        state = safetensors.torch.load_file(folder / OPTIMIZER)
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{folder / OPTIMIZER} cannot be read ({error}); resume from another checkpoint") from error
    for file, tensors in ((WEIGHTS, weights), (OPTIMIZER, state)):
        hashes = tensor_hashes(tensors)
        wrong = sorted(
            name for name in hashes.keys() | manifest.tensors[file].keys() if hashes.get(name) != manifest.tensors[file].get(name)
        )
        if wrong:
            raise CheckpointError(
                f"{folder / file} is not what its manifest says, in {', '.join(wrong[:4])}; resume from another checkpoint"
            )
    model.load_state_dict(match_tensors(model, weights, names, source=folder))
    del state["step"]
    optimizer.load(_translated(state, lambda name: names.from_checkpoint(name) or name), manifest.position.num_updates)
    return manifest


def tensor_hashes(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """SHA-256 of the bytes of each tensor, as they lie in a safetensors file (row-major, little-endian)."""
    return {name: hashlib.sha256(_bytes(tensor)).hexdigest() for name, tensor in sorted(tensors.items())}


def versions() -> dict[str, str]:
    """What the bits of a run may depend on besides its recipe and its data: programs, processor, threads."""
    return {
        "tripod": metadata.version("tripod"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data


def _translated(state: Mapping[str, Tensor], translate: Any) -> dict[str, Tensor]:
    """Behind the moment's name, the tensor's is translated: exp_avg.NAME."""
    split = ((name.partition("."), tensor) for name, tensor in state.items())
    return {f"{moment}.{translate(name)}": tensor for (moment, _, name), tensor in split}


@cache
def _git_commit() -> str | None:
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return described.stdout.strip() or None if described.returncode == 0 else None
