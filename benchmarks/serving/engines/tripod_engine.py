"""Our engine, called as a user calls it: every request of a workload is a stream of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from importlib.metadata import version

from benchmarks.serving.engines.worker import Generate
from tripod.ops.linear import WeightFormat

FORMATS: dict[str, WeightFormat] = {"float32": "f32", "bfloat16": "bf16", "int8": "int8", "int4": "int4"}
_KV_TOKENS = 32_768  # the most that the 64 requests of W2 or the 32 of W4 may take is 24,576 and 18,432


def versions() -> dict[str, str]:
    return {name: version(name) for name in ("tripod", "torch")}


def load(folder: str, weight_format: str, num_threads: int) -> Generate:
    import torch

    from tripod.engine.engine import Engine, EngineConfig
    from tripod.sampling import SamplingParams

    torch.set_num_threads(num_threads)
    # What is not packed is kept in bfloat16 unless weights are float32. The pool has room for all requests of the largest workload.
    dtype = torch.float32 if weight_format == "float32" else torch.bfloat16
    config = EngineConfig(weight_format=FORMATS[weight_format], kv_tokens=_KV_TOKENS)
    engine = Engine.load(folder, config=config, dtype=dtype)

    async def one(prompt: Sequence[int], num_output: int) -> list[int]:
        sampling = SamplingParams(temperature=0.0, max_tokens=num_output, ignore_eos=True)
        return list((await engine.generate(prompt, sampling)).token_ids)

    async def all_of(prompts: Sequence[Sequence[int]], num_outputs: Sequence[int]) -> list[list[int]]:
        return await asyncio.gather(*map(one, prompts, num_outputs))

    return lambda prompts, num_outputs: asyncio.run(all_of(prompts, num_outputs))
