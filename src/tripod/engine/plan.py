"""What a model will take, known from the headers of its files before a weight is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from tripod.engine.engine_config import EngineConfig
from tripod.engine.execution.kv_cache import DEFAULT_MEMORY_SHARE, KVCacheSpec, free_bytes, kv_dtype_of
from tripod.engine.execution.route import check_rows_are_apart
from tripod.errors import ConfigError
from tripod.models.architectures import Decoder
from tripod.models.expert_cache import check_room
from tripod.models.load import empty_language_model
from tripod.models.moe import Experts, SparseMLP
from tripod.ops.linear import WeightFormat, weight_bytes

FORMATS: tuple[WeightFormat, ...] = ("f32", "bf16", "int8", "int4", "int4-64", "int4-128")


@dataclass(frozen=True, slots=True, kw_only=True)
class EnginePlan:
    """Bytes of an engine, by what they are for."""

    weight_format: WeightFormat
    weight_bytes: int  # linear layers in the format, experts as far as they are kept in memory; the rest as the checkpoint has it
    bytes_by_format: dict[WeightFormat, int]
    kv_tokens: int
    kv_bytes: int
    kv_bytes_per_token: int
    workspace_bytes: int  # of one step at its largest, about
    free_bytes: int
    max_context: int  # of the model

    @property
    def total_bytes(self) -> int:
        return self.weight_bytes + self.kv_bytes + self.workspace_bytes

    @property
    def tokens_that_fit(self) -> int:
        """Of keys and values, beside weights and workspace, in what is free now."""
        return max(0, self.free_bytes - self.weight_bytes - self.workspace_bytes) // self.kv_bytes_per_token

    @property
    def fits(self) -> bool:
        return self.total_bytes <= self.free_bytes


def plan_engine(folder: Path, config: EngineConfig = EngineConfig(), *, free: int | None = None) -> EnginePlan:
    """What an engine on the checkpoint in `folder` takes. Reads config.json only.

    Args:
        folder: of a checkpoint in the Hugging Face layout, or a llama2.c file.
        config: as for the engine; without a weight format, f32.
        free: bytes of memory; None: what is free now.

    Raises:
        CheckpointError: no usable checkpoint is there.
        ConfigError: a pool that holds nothing, an expert cache that the model does not fit, or a model that no engine serves.
    """
    model = empty_language_model(folder)
    check_rows_are_apart(model)
    if config.expert_cache is not None:
        check_room(config.expert_cache, model)
    weight_format = config.weight_format or "f32"
    by_format = {known: _weight_bytes(model, known, config.expert_cache) for known in FORMATS}
    dtype = kv_dtype_of(weight_format, config.kv_cache_dtype)
    block = KVCacheSpec.of(model, kv_tokens=1, block_size=config.block_size, dtype=dtype)
    available = free_bytes(torch.device("cpu")) if free is None else free
    if config.kv_bytes is not None:
        kv_tokens = config.kv_bytes // block.num_bytes * config.block_size
    elif config.kv_tokens is not None:
        kv_tokens = config.kv_tokens
    else:
        kv_tokens = min(16 * model.config.max_positions, int(DEFAULT_MEMORY_SHARE * available) // block.bytes_per_token)
    if kv_tokens < 1:
        raise ConfigError(f"a KV pool of {kv_tokens} tokens holds nothing; a block of {config.block_size} takes {block.num_bytes} bytes")
    spec = KVCacheSpec.of(model, kv_tokens=kv_tokens, block_size=config.block_size, dtype=dtype)
    return EnginePlan(
        weight_format=weight_format,
        weight_bytes=by_format[weight_format],
        bytes_by_format=by_format,
        kv_tokens=spec.num_blocks * spec.block_size,
        kv_bytes=spec.num_bytes,
        kv_bytes_per_token=spec.bytes_per_token,
        workspace_bytes=_workspace_bytes(model, config),
        free_bytes=available,
        max_context=model.config.max_positions,
    )


def _weight_bytes(model: Decoder, weight_format: WeightFormat, expert_cache: int | None) -> int:
    head = model.embedding if model.head is None else model.head
    packed = weight_bytes(head.weight.shape[0], head.weight.shape[1], weight_format)
    kept = model.embedding.weight.numel() * 4
    room = expert_cache  # None: all are kept
    for module in model.modules():
        if isinstance(module, nn.Linear):
            if module is not model.head:
                packed += weight_bytes(module.out_features, module.in_features, weight_format)
            kept += 0 if module.bias is None else module.bias.numel() * 4
        elif isinstance(module, Experts):
            num_experts = len(module.up) if room is None else min(room, len(module.up))
            room = None if room is None else room - num_experts
            for num_outputs, num_inputs in (tuple(module.up.shape[1:]), tuple(module.down.shape[1:])):
                packed += num_experts * weight_bytes(num_outputs, num_inputs, weight_format)
        elif module is not model.embedding:
            kept += sum(parameter.numel() * 4 for parameter in module.parameters(recurse=False))
    return packed + kept


def _workspace_bytes(model: Decoder, config: EngineConfig) -> int:
    """The widest tensors that live at once in float32: a block's rows three times over, and logits with the sampler's copies."""
    width = max(module.out_features + module.in_features for module in model.blocks.modules() if isinstance(module, nn.Linear))
    for router, experts in ((block.mlp.router, block.mlp.experts) for block in model.blocks if isinstance(block.mlp, SparseMLP)):
        width = max(width, router.config.top_k * (experts.up.shape[1] + experts.up.shape[2]))
    logits = config.max_num_requests * model.config.vocab_size
    return 4 * (3 * config.max_batch_tokens * width + 4 * logits)
