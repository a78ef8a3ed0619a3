"""From a model and a configuration to the parts that run it: policy, runner and their limits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tripod.engine.engine_config import EngineConfig
from tripod.engine.execution.kv_cache import KVCacheSpec, default_kv_tokens, free_bytes
from tripod.engine.execution.route import Route, choose_route
from tripod.engine.execution.runner import Runner
from tripod.engine.policy.config import PolicyConfig
from tripod.engine.policy.policy import Policy
from tripod.errors import ConfigError
from tripod.models.language_model import LanguageModel


@dataclass(frozen=True, slots=True)
class EngineParts:
    """What one engine, or one replay, runs on."""

    policy: Policy
    runner: Runner
    limits: PolicyConfig
    spec: KVCacheSpec
    route: Route


def assemble(model: LanguageModel, config: EngineConfig, checkpoint: Path | None = None) -> EngineParts:
    """Choose the route, pack the weights and take the memory of the KV pool.

    Args:
        model: as loaded.
        config: of the engine.
        checkpoint: the folder whose weights the model has, unchanged; None: they are in memory only.

    Raises:
        ConfigError: sizes that leave no room for any request, a pool that is larger than the free memory, or a route that cannot run here.
    """
    route = choose_route(
        model,
        kernels=config.kernels,
        weight_format=config.weight_format,
        block_size=config.block_size,
        batch_invariant=config.batch_invariant,
        expert_cache=config.expert_cache,
        kv_cache_dtype=config.kv_cache_dtype,
    )
    packed = route.pack(model, checkpoint)
    spec = KVCacheSpec.of(packed, kv_tokens=_kv_tokens(packed, route, config), block_size=config.block_size, dtype=route.kv_dtype)
    if spec.num_bytes > (free := free_bytes(packed.device)):
        raise ConfigError(
            f"a KV pool of {spec.num_blocks * spec.block_size} tokens takes {spec.num_bytes} bytes, and {free} are free; "
            "give a smaller kv_tokens or kv_bytes (`tripod plan` says what fits)"
        )
    limits = PolicyConfig(
        num_blocks=spec.num_blocks,
        block_size=spec.block_size,
        max_context=packed.config.max_positions,
        max_batch_tokens=config.max_batch_tokens,
        max_num_requests=config.max_num_requests,
        chunk_beside_decodes=config.chunk_beside_decodes if packed.device.type == "cpu" else None,
        max_num_waiting=config.max_num_waiting,
        max_waiting_tokens=config.max_waiting_tokens,
        max_wait_s=config.max_wait_s,
        prefix_cache=config.prefix_cache,
        fair=config.fair,
        aging_s=config.aging_s,
    )
    return EngineParts(Policy(limits), Runner(packed, route.allocate(spec), route), limits, spec, route)


def _kv_tokens(model: LanguageModel, route: Route, config: EngineConfig) -> int:
    if config.kv_bytes is not None:
        block = KVCacheSpec.of(model, kv_tokens=1, block_size=config.block_size, dtype=route.kv_dtype).num_bytes
        if config.kv_bytes < block:
            raise ConfigError(
                f"kv_bytes={config.kv_bytes} does not hold one block of {config.block_size} tokens, which takes {block} bytes"
            )
        return config.kv_bytes // block * config.block_size
    return config.kv_tokens if config.kv_tokens is not None else default_kv_tokens(model, route.kv_dtype)
