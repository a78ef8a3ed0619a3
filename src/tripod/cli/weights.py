"""The options `--weights`, `--kv-cache-dtype` and `--expert-cache` of commands that open a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, TypeAlias, cast

import typer

if TYPE_CHECKING:
    from tripod.engine.execution.kv_cache import KVCacheDtype
    from tripod.ops.linear import WeightFormat

Weights: TypeAlias = Annotated[
    str | None, typer.Option("--weights", metavar="f32|bf16|int8|int4|int4-64|int4-128", help="Format of linear layers.")
]
KVCacheType: TypeAlias = Annotated[
    str | None, typer.Option("--kv-cache-dtype", metavar="int8", help="Of keys and values, if not as precise as the weights.")
]
ExpertCacheSize: TypeAlias = Annotated[
    int | None,
    typer.Option("--expert-cache", metavar="N", min=1, help="Experts kept in memory, of all layers together; others stay on disk."),
]


def weight_format(value: str | None) -> WeightFormat | None:
    """The format that was named; None where none was.

    Raises:
        ConfigError: there is no such format.
    """
    if value is None:
        return None
    from tripod.ops.linear import parts_of

    parts_of(value)
    return cast("WeightFormat", value)


def kv_dtype(value: str | None) -> KVCacheDtype | None:
    """As it was named; `EngineConfig` refuses what it does not know."""
    return cast("KVCacheDtype | None", value)
