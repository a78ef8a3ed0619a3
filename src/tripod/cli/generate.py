"""`tripod generate`: go on from a text."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tripod.cli.weights import ExpertCacheSize, KVCacheType, Weights, kv_dtype, weight_format

if TYPE_CHECKING:
    from tripod.sampling import SamplingParams
    from tripod.trace import Finished


def generate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A folder, run@stepN, or org/name[@revision].")],
    prompt: Annotated[str, typer.Argument(help="The text to go on from; '-' reads it from stdin.")],
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1)] = 64,
    temperature: Annotated[float, typer.Option("--temperature", help="0 always takes the likeliest token.")] = 0.0,
    top_p: Annotated[float, typer.Option("--top-p")] = 1.0,
    seed: Annotated[int | None, typer.Option("--seed", help="Makes a temperature above 0 repeatable.")] = None,
    weights: Weights = None,
    kv_cache_dtype: KVCacheType = None,
    expert_cache: ExpertCacheSize = None,
    stop: Annotated[list[str] | None, typer.Option("--stop", help="End before this string; may be given several times.")] = None,
) -> None:
    """Continue a text with a local model, as it is generated. Only the continuation is printed."""
    import tripod
    from tripod.cli.terminal import note
    from tripod.sampling import SamplingParams

    sampling = SamplingParams(max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed, stop=tuple(stop or ()))
    text = sys.stdin.read() if prompt == "-" else prompt
    engine_options = {
        "weight_format": weight_format(weights),
        "kv_cache_dtype": kv_dtype(kv_cache_dtype),
        "expert_cache": expert_cache,
    }
    finished = tripod.run(_generate(model, text, sampling, engine_options))
    usage, timings = finished.usage, finished.timings
    rate = f", {(usage.completion_tokens - 1) / timings.decode_s:.0f} tokens/s" if timings.decode_s and usage.completion_tokens > 1 else ""
    note(f"{usage.prompt_tokens} tokens in, {usage.completion_tokens} out ({finished.finish_reason}){rate}")


async def _generate(model: str, prompt: str, sampling: SamplingParams, engine_options: Mapping[str, Any]) -> Finished:
    from tripod.errors import EngineError, MissingExtraError
    from tripod.trace import Delta

    try:
        from tripod.engine.engine import Engine, EngineConfig
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "torch", "engine", "tripod generate") from error

    async with Engine.load(model, config=EngineConfig(**engine_options)) as engine:
        async for event in engine.stream(prompt, sampling):
            if isinstance(event, Delta):
                sys.stdout.write(event.text)
                sys.stdout.flush()
            else:
                sys.stdout.write("\n")
                return event
    raise EngineError("the engine ended its stream without saying why")
