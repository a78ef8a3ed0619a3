"""`tripod plan`: what a model will take, before it is loaded."""

from __future__ import annotations

from typing import Annotated

import typer

from tripod.cli.weights import ExpertCacheSize, KVCacheType, Weights, kv_dtype, weight_format


def plan(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A folder, run@stepN, or org/name[@revision].")],
    weights: Weights = None,
    kv_cache_dtype: KVCacheType = None,
    expert_cache: ExpertCacheSize = None,
    kv_tokens: Annotated[int | None, typer.Option("--kv-tokens", min=1, help="Size of the key/value pool in tokens.")] = None,
    kv_bytes: Annotated[int | None, typer.Option("--kv-bytes", min=1, help="Size of the key/value pool in bytes.")] = None,
) -> None:
    """Say what weights, keys and values and workspace of a model take, and how many tokens fit. No weight is read."""
    from tripod.engine.engine_config import EngineConfig
    from tripod.engine.plan import plan_engine
    from tripod.models.locate import locate

    config = EngineConfig(
        weight_format=weight_format(weights),
        kv_cache_dtype=kv_dtype(kv_cache_dtype),
        expert_cache=expert_cache,
        kv_tokens=kv_tokens,
        kv_bytes=kv_bytes,
    )
    planned = plan_engine(locate(model), config)
    others = ", ".join(f"{name} {_mib(size)}" for name, size in planned.bytes_by_format.items() if name != planned.weight_format)
    typer.echo(f"weights in {planned.weight_format:5} {_mib(planned.weight_bytes):>12}   ({others})")
    typer.echo(f"keys and values  {_mib(planned.kv_bytes):>12}   ({planned.kv_tokens} tokens of {planned.kv_bytes_per_token} bytes)")
    typer.echo(f"workspace, about {_mib(planned.workspace_bytes):>12}")
    typer.echo(
        f"together         {_mib(planned.total_bytes):>12}   of {_mib(planned.free_bytes)} free: {'fits' if planned.fits else 'too much'}"
    )
    typer.echo(f"{planned.tokens_that_fit} tokens would fit beside the weights; one request has at most {planned.max_context}")
    if not planned.fits:
        raise typer.Exit(1)


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:.1f} MiB"
