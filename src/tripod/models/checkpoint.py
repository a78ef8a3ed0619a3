"""Reads the files of a checkpoint in the Hugging Face layout: config.json and tensors in one file or several."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from tripod.errors import CheckpointError

WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")  # by preference


def read_config(folder: Path) -> dict[str, Any]:
    """The content of config.json.

    Raises:
        CheckpointError: the folder or the file is absent, or it is not a JSON object.
    """
    path = folder / "config.json"
    if not path.is_file():
        if not folder.is_dir():
            raise CheckpointError(f"{folder} is not a folder; give the folder of a checkpoint")
        if steps := sorted((entry.parent.name for entry in folder.glob("step*/config.json")), key=lambda name: (len(name), name)):
            raise CheckpointError(f"{folder} is a training run; name one of its checkpoints, such as {folder}@{steps[-1]}")
        held = ", ".join(sorted(entry.name for entry in folder.iterdir())[:8]) or "nothing"
        raise CheckpointError(f"{folder} has no config.json, so it is not a checkpoint; it holds {held}")
    return _read_json_object(path)


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint under the names that they have there, mapped from the files: nothing is read before it is used.

    Pickled files are read with `weights_only=True`, so that they cannot run code.

    Raises:
        CheckpointError: no file with weights, a file that an index names is absent or lacks a tensor, or one is truncated or corrupt.
    """
    for name in WEIGHT_FILES:
        path = folder / name
        if path.is_file():
            return _read_sharded(path) if name.endswith(".index.json") else _read_file(path)
    raise CheckpointError(f"{folder} has a config.json but no weights; expected one of {', '.join(WEIGHT_FILES)}")


def _read_sharded(index_path: Path) -> dict[str, Tensor]:
    weight_map = _read_json_object(index_path).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise CheckpointError(f"{index_path} has no weight_map from tensor names to files; download it again")
    tensors: dict[str, Tensor] = {}
    for shard in sorted(set(weight_map.values())):
        path = index_path.parent / shard
        if Path(shard).name != shard:
            raise CheckpointError(f"{index_path} names the file {shard!r} outside of its own folder; expected a plain file name")
        if not path.is_file():
            raise CheckpointError(f"{path} is absent, but {index_path.name} names it; download it again")
        tensors |= _read_file(path)
    if absent := sorted(set(weight_map) - set(tensors)):
        raise CheckpointError(f"{index_path} names tensors that its files do not hold: {', '.join(absent[:8])}")
    return tensors


def _read_file(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a damaged pickle can fail in any way
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path} is truncated or corrupt ({reason}); its size is {path.stat().st_size} bytes; get it again"
        ) from error
    if not isinstance(content, dict) or not all(isinstance(tensor, Tensor) for tensor in content.values()):
        raise CheckpointError(f"{path} does not hold a table of tensors; expected a state dict saved by torch.save")
    return content


def _read_json_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}; expected a JSON object")
    return content
