"""Writes a checkpoint in the Hugging Face layout, so that transformers, vLLM and others open it."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

from safetensors.torch import save as to_safetensors

from tripod.models import gpt_neox, llama
from tripod.models.gpt_neox import GPTNeoX
from tripod.models.llama import Llama


def save_checkpoint(model: Llama | GPTNeoX, folder: Path) -> None:
    """Write model.safetensors, then config.json. Each file is whole or absent at any moment, even when the power goes.

    Tensors keep their dtype. A tied model is written without an output matrix. Other files of the folder, such as a
    tokenizer, stay.
    """
    names = llama.NAMES if isinstance(model, Llama) else gpt_neox.NAMES
    tensors = {names.to_checkpoint(name): tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    config = {**model.config.to_hf(), "dtype": str(model.dtype).removeprefix("torch.")}
    folder.mkdir(parents=True, exist_ok=True)
    _replace(folder / "model.safetensors", to_safetensors(tensors, metadata={"format": "pt"}))
    _replace(folder / "config.json", json.dumps(config, indent=2).encode() + b"\n")


def _replace(path: Path, content: bytes) -> None:
    """Write beside, flush to the disk, rename over: readers see the old file or the new one."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(descriptor, 0o644)
            os.fsync(descriptor)
        os.replace(temporary, path)  # noqa: PTH105 - the name of the system call that makes it atomic
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
