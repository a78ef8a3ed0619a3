"""Our engine, called as a user calls it: every request of a workload is a stream of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from importlib.metadata import version

from benchmarks.serving.engines.worker import Generate


def versions() -> dict[str, str]:
    return {name: version(name) for name in ("tripod", "torch")}


def load(folder: str, weight_format: str, num_threads: int) -> Generate:
    import torch

    from tripod.engine.engine import Engine
    from tripod.sampling import SamplingParams

    torch.set_num_threads(num_threads)
    engine = Engine.load(folder, dtype=getattr(torch, weight_format))

    async def one(prompt: Sequence[int], num_output: int) -> list[int]:
        sampling = SamplingParams(temperature=0.0, max_tokens=num_output, ignore_eos=True)
        return list((await engine.generate(prompt, sampling)).token_ids)

    async def all_of(prompts: Sequence[Sequence[int]], num_outputs: Sequence[int]) -> list[list[int]]:
        return await asyncio.gather(*map(one, prompts, num_outputs))

    return lambda prompts, num_outputs: asyncio.run(all_of(prompts, num_outputs))
