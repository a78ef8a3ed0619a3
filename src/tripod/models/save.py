"""Writes a checkpoint in the Hugging Face layout, so that transformers, vLLM and others open it."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import save as to_safetensors

from tripod.durable_files import durable_file
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
    for name, content in (
        ("model.safetensors", to_safetensors(tensors, metadata={"format": "pt"})),
        ("config.json", json.dumps(config, indent=2).encode() + b"\n"),
    ):
        with durable_file(folder / name) as stream:
            stream.write(content)
