"""Writes a checkpoint in the Hugging Face layout, so that transformers, vLLM and others open it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save as to_safetensors
from torch import Tensor

from tripod.durable import durable_file
from tripod.models.architectures import Decoder, names_of


def file_tensors(model: Decoder, tensors: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Tensors by their names in the file of a checkpoint, and as they lie there: stacked experts one by one, where the layout has them so.

    Args:
        model: whose layout it is.
        tensors: by our names, such as its gradients; None: its weights.
    """
    names = names_of(model)
    given = model.state_dict() if tensors is None else tensors
    return names.layout.scatter({names.to_checkpoint(name): tensor for name, tensor in given.items()})


def save_checkpoint(model: Decoder, folder: Path) -> None:
    """Write model.safetensors, then config.json. Each file is whole or absent at any moment, even when the power goes.

    Tensors keep their dtype. A tied model is written without an output matrix. Other files of the folder, such as a
    tokenizer, stay.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in file_tensors(model).items()}
    config = {**model.config.to_hf(), "dtype": str(model.dtype).removeprefix("torch.")}
    for name, content in (
        ("model.safetensors", to_safetensors(tensors, metadata={"format": "pt"})),
        ("config.json", json.dumps(config, indent=2).encode() + b"\n"),
    ):
        with durable_file(folder / name) as stream:
            stream.write(content)
