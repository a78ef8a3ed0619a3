"""Reads the checkpoints of llama2.c (Karpathy 2023), version 0, such as stories260K.bin, into a Llama.

Little-endian: seven int32 (dim, hidden dim, layers, heads, key/value heads, vocabulary, positions), then float32 tensors,
each kind for all layers together. A negative vocabulary size says that an output matrix follows at the end.
"""

from __future__ import annotations

import struct
from pathlib import Path

import torch
from torch import Tensor

from tripod.errors import CheckpointError
from tripod.models.llama import Llama, LlamaConfig
from tripod.ops.rope import RopeConfig

_HEADER = struct.Struct("<7i")


def llama2c_config(path: Path) -> LlamaConfig:
    """What the header of a llama2.c checkpoint says; no weight is read.

    Raises:
        CheckpointError: the header makes no sense.
    """
    with path.open("rb") as file:
        header = file.read(_HEADER.size)
    if len(header) < _HEADER.size:
        raise CheckpointError(f"{path}: {len(header)} bytes are too few for a llama2.c checkpoint, whose header alone has {_HEADER.size}")
    dim, hidden_dim, layers, heads, kv_heads, signed_vocab, positions = _HEADER.unpack(header)
    sizes = (dim, hidden_dim, layers, heads, kv_heads, positions)
    if min(sizes) < 1 or max(sizes) > 1 << 20 or signed_vocab == 0 or dim % heads or heads % kv_heads:
        raise CheckpointError(f"{path}: the header {(*sizes, signed_vocab)} is not that of a llama2.c checkpoint of version 0")
    return LlamaConfig(
        vocab_size=abs(signed_vocab),
        hidden_size=dim,
        intermediate_size=hidden_dim,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=dim // heads,
        max_positions=positions,
        rope=RopeConfig(rotary_dim=dim // heads),
        norm_eps=1e-5,
        is_tied=signed_vocab > 0,
    )


def load_llama2c(path: Path, *, dtype: torch.dtype = torch.float32) -> Llama:
    """Read a llama2.c checkpoint.

    Raises:
        CheckpointError: the header makes no sense, or the file is not as long as the header says.
    """
    config = llama2c_config(path)
    dim, hidden_dim, layers, vocab = config.hidden_size, config.intermediate_size, config.num_layers, config.vocab_size
    positions, head_dim = config.max_positions, config.head_dim
    kv_dim = config.num_kv_heads * head_dim
    content = path.read_bytes()
    shapes: dict[str, tuple[int, ...]] = {  # in the order of the file; by layer where the name has a place for its number
        "embedding.weight": (vocab, dim),
        "blocks.{}.attention_norm.weight": (layers, dim),
        "blocks.{}.attention.query.weight": (layers, dim, dim),
        "blocks.{}.attention.key.weight": (layers, kv_dim, dim),
        "blocks.{}.attention.value.weight": (layers, kv_dim, dim),
        "blocks.{}.attention.output.weight": (layers, dim, dim),
        "blocks.{}.mlp_norm.weight": (layers, dim),
        "blocks.{}.mlp.gate.weight": (layers, hidden_dim, dim),
        "blocks.{}.mlp.down.weight": (layers, dim, hidden_dim),
        "blocks.{}.mlp.up.weight": (layers, hidden_dim, dim),
        "norm.weight": (dim,),
        "rotary cosine": (positions, head_dim // 2),  # not used: the tables are computed
        "rotary sine": (positions, head_dim // 2),
    }
    if not config.is_tied:
        shapes["head.weight"] = (vocab, dim)
    expected = _HEADER.size + 4 * sum(torch.Size(shape).numel() for shape in shapes.values())
    if len(content) != expected:
        raise CheckpointError(
            f"{path}: {len(content)} bytes, but its header announces {expected}; the file is truncated or of another version"
        )

    tensors: dict[str, Tensor] = {}
    offset = _HEADER.size
    for name, shape in shapes.items():
        count = torch.Size(shape).numel()
        tensor = torch.frombuffer(bytearray(content[offset : offset + 4 * count]), dtype=torch.float32).reshape(shape)
        offset += 4 * count
        if "{}" in name:
            tensors |= {name.format(layer): tensor[layer] for layer in range(layers)}
        elif name.startswith("rotary"):
            continue
        else:
            tensors[name] = tensor
    for name, tensor in tensors.items():
        if ".attention.query." in name or ".attention.key." in name:
            tensors[name] = _to_half_split(tensor, head_dim)
    with torch.device("meta"):
        model = Llama(config)
    model.load_state_dict({name: tensor.to(dtype) for name, tensor in tensors.items()}, assign=True)
    return model.eval().requires_grad_(False)


def _to_half_split(weight: Tensor, head_dim: int) -> Tensor:
    """llama2.c rotates numbers 2i and 2i + 1 of a head, we i and i + K/2: reorder the rows that make a head. [H * K, D] both ways."""
    return weight.reshape(-1, head_dim // 2, 2, weight.shape[-1]).transpose(1, 2).reshape(weight.shape)
