"""What batching brings and costs: one stream against sixteen, a long prompt among them, the prefix cache, the engine's own overhead.

    python -m benchmarks.serving.batching [--shape pythia-160m] [--format bfloat16] [--rounds 3]

Every round asks for all of it, with fresh token ids, and ends with what the memory and the matrix products of the machine gave then:

- streams: tokens decoded a second by 16 streams over those by one, and the share of the limit that 16 reach: in a step the weights are read
  once, and keys and values of every stream, or the products are made, whichever takes longer;
- long prompt: the 99th percentile of the time between two tokens of 16 streams while a prompt of 2,000 tokens arrives and is computed, over
  that of the same streams undisturbed, each over a whole answer of 128 tokens;
- overhead: plan and preparation, as a share of the steps with 16 decodes;
- prefix cache at zero hits: the time in which its bookkeeping is done, with it less without it, as a share of the whole; and the walls, in
  turns, which are noisier than what is looked for;
- 90 % cached: the time to the first token of a prompt of 1,000 tokens of which 900 are cached, over that of a prompt of which none is;
- waste: places of the KV pool that are taken and hold no token, averaged over the steps of 16 streams with prompts of 256 to 1,024 tokens.

Raw results go to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.serving.engines.tripod_engine import FORMATS
from benchmarks.serving.limits import BYTES, Limits, measure
from benchmarks.serving.shapes import SHAPES, Shape, model_folder
from benchmarks.serving.workloads import HIGHEST_ID, LOWEST_ID
from benchmarks.setting import keep, setting
from tripod.engine.engine import Engine, EngineConfig
from tripod.sampling import SamplingParams
from tripod.trace import Delta

STREAMS, PROMPT, ANSWER, LONG = 16, 128, 128, 2000
BARS = {
    "streams_ratio": (">=", 4.0),
    "long_prompt_ratio": ("<=", 2.0),
    "overhead_share": ("<=", 0.05),
    "cache_cost": ("<=", 0.01),
    "cached_ttft_ratio": ("<=", 0.2),
    "kv_waste": ("<", 0.04),
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="pythia-160m")
    parser.add_argument("--format", choices=FORMATS, default="bfloat16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rounds = asyncio.run(measure_rounds(options.shape, options.format, options.rounds))
    print_table(rounds, f"{options.shape}, {options.format}")
    raw = {
        "setting": setting("benchmarks.serving.batching", ("torch",)),
        "shape": options.shape,
        "format": options.format,
        "rounds": rounds,
    }
    print(f"raw: {keep(f'batching-{options.shape}', raw).name}")
    return 0


async def measure_rounds(shape: str, weight_format: str, num_rounds: int) -> list[dict[str, float]]:
    rng = np.random.default_rng(7)
    async with (
        open_engine(shape, weight_format, prefix_cache=True) as engine,
        open_engine(shape, weight_format, prefix_cache=False) as bare,
    ):
        for warm in (engine, bare):
            await answers(warm, prompts(rng, [PROMPT]), 8)
        rounds = []
        for number in range(num_rounds):
            figures = await measure_streams(engine, rng)
            figures |= await measure_long_prompt(engine, rng)
            figures |= await measure_cache_cost(engine, bare, rng, is_bare_first=bool(number % 2))
            figures |= await measure_cached_prompt(engine, rng)
            figures |= await measure_waste(engine, rng)
            figures |= of_the_limit(figures["streams_rate"], measure(), SHAPES[shape], weight_format)
            rounds.append(figures)
            print(f"round {number + 1}: { ({name: float(f'{value:.4g}') for name, value in figures.items()}) }", flush=True)
    return rounds


def open_engine(shape: str, weight_format: str, *, prefix_cache: bool) -> Engine:
    config = EngineConfig(weight_format=FORMATS[weight_format], kv_tokens=32_768, prefix_cache=prefix_cache)
    return Engine.load(str(model_folder(shape)), config=config, dtype=torch.float32 if weight_format == "float32" else torch.bfloat16)


async def measure_streams(engine: Engine, rng: np.random.Generator) -> dict[str, float]:
    """Decoding speed of one stream and of 16, both from the first token on; and what the steps of the 16 were spent on."""
    [one] = await answers(engine, prompts(rng, [PROMPT]), ANSWER)
    first_id = engine.stats().steps
    many = await answers(engine, prompts(rng, [PROMPT] * STREAMS), ANSWER)
    steps = [step for step in engine.recent_steps() if step.id >= first_id and step.num_decode_tokens == STREAMS]
    rate_one = (ANSWER - 1) / (one[-1] - one[0])
    begin, end = max(times[0] for times in many), min(times[-1] for times in many)  # while all of them decode
    rate = sum(begin < at <= end for times in many for at in times) / (end - begin)
    whole = sum(step.plan_s + step.prepare_s + step.model_s + step.sample_s + step.deliver_s for step in steps)
    return {
        "stream_rate": rate_one,
        "streams_rate": rate,
        "streams_ratio": rate / rate_one,
        "overhead_share": sum(step.plan_s + step.prepare_s for step in steps) / whole,
        "sample_share": sum(step.sample_s for step in steps) / whole,
        "deliver_share": sum(step.deliver_s for step in steps) / whole,
    }


async def measure_long_prompt(engine: Engine, rng: np.random.Generator) -> dict[str, float]:
    """Times between tokens of 16 streams, undisturbed, and with a prompt of 2,000 tokens that comes when they decode."""

    async def late() -> None:
        await asyncio.sleep(0.3)
        began_s = time.perf_counter()
        await answers(engine, prompts(rng, [LONG]), 1)
        ttft_s.append(time.perf_counter() - began_s)

    ttft_s: list[float] = []
    quiet = await answers(engine, prompts(rng, [PROMPT] * STREAMS), ANSWER)
    disturbed, _ = await asyncio.gather(answers(engine, prompts(rng, [PROMPT] * STREAMS), ANSWER), late())
    before, with_it = p99_gap(quiet), p99_gap(disturbed)
    return {"itl_p99_ms": 1e3 * before, "itl_p99_long_ms": 1e3 * with_it, "long_prompt_ratio": with_it / before, "long_ttft_s": ttft_s[0]}


def p99_gap(streams: Sequence[Sequence[float]]) -> float:
    """Of the gaps from when all streams decode: those before are of the streams' own prompts."""
    begin = max(times[0] for times in streams)
    return float(np.quantile([after - at for times in streams for at, after in pairwise(times) if at >= begin], 0.99))


async def measure_cache_cost(engine: Engine, bare: Engine, rng: np.random.Generator, *, is_bare_first: bool) -> dict[str, float]:
    """No two prompts begin alike, so the cache only costs."""
    plan, wall = {}, {}
    for one in (bare, engine) if is_bare_first else (engine, bare):
        first_id, began_s = one.stats().steps, time.perf_counter()
        await answers(one, prompts(rng, [256] * 32), 16)
        wall[one] = time.perf_counter() - began_s
        plan[one] = sum(step.plan_s for step in one.recent_steps() if step.id >= first_id)
    return {"cache_cost": (plan[engine] - plan[bare]) / wall[engine], "cache_wall_ratio": wall[engine] / wall[bare]}


async def measure_cached_prompt(engine: Engine, rng: np.random.Generator) -> dict[str, float]:
    [cold], [cached_part], [rest] = prompts(rng, [1000]), prompts(rng, [900]), prompts(rng, [100])
    began_s = time.perf_counter()
    [[cold_at]] = await answers(engine, [cold], 1)
    await answers(engine, [cached_part], 1)
    middle_s = time.perf_counter()
    [[cached_at]] = await answers(engine, [[*cached_part, *rest]], 1)
    return {"cached_ttft_ratio": (cached_at - middle_s) / (cold_at - began_s), "cold_ttft_ms": 1e3 * (cold_at - began_s)}


async def measure_waste(engine: Engine, rng: np.random.Generator) -> dict[str, float]:
    """Asks the policy between steps: what running requests hold, and how much of it has a token of theirs, known or to be computed."""
    shares = []
    lengths = [int(length) for length in rng.integers(256, 1025, size=STREAMS)]
    running = asyncio.gather(*(answers(engine, prompts(rng, [length]), 64) for length in lengths))

    def look() -> None:
        policy = engine._loop.policy
        held = sum(len(request.block_ids) for request in policy.running) * engine.config.block_size
        if len(policy.running) == STREAMS:
            shares.append(1.0 - sum(request.num_tokens for request in policy.running) / held)

    while not running.done():
        await engine.between_steps(look)
        await asyncio.sleep(0.02)
    await running
    return {"kv_waste": statistics.mean(shares) if shares else float("nan")}


def of_the_limit(rate: float, limits: Limits, shape: Shape, weight_format: str) -> dict[str, float]:
    size = BYTES[weight_format]
    weights = shape.block_weights + shape.head_weights
    kv_bytes = 2 * shape.num_layers * shape.kv_size * (PROMPT + ANSWER // 2) * (4 if weight_format == "float32" else 2)
    bandwidth_s = (weights * size + STREAMS * kv_bytes) / limits.bandwidth
    gemm_s = 2 * weights * STREAMS / limits.gemm[weight_format]
    return {
        "streams_of_limit": rate * max(bandwidth_s, gemm_s) / STREAMS,
        **{f"limit_{k}": v for k, v in asdict(limits).items() if k == "bandwidth"},
    }


def prompts(rng: np.random.Generator, lengths: Sequence[int]) -> list[list[int]]:
    return [[int(i) for i in rng.integers(LOWEST_ID, HIGHEST_ID, size=length)] for length in lengths]


async def answers(engine: Engine, asked: Sequence[Sequence[int]], num_tokens: int) -> list[list[float]]:
    """When each token of each answer was read, in seconds of the clock."""

    async def one(prompt: Sequence[int]) -> list[float]:
        times: list[float] = []
        async for event in engine.stream(prompt, SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True)):
            if isinstance(event, Delta):
                times += [time.perf_counter()] * len(event.token_ids)
        return times

    return list(await asyncio.gather(*map(one, asked)))


def print_table(rounds: Sequence[dict[str, float]], title: str) -> None:
    table = Table("figure", "median", "least", "most", "bar", "met", title=title)
    for name in rounds[0]:
        values = [figures[name] for figures in rounds]
        middle = statistics.median(values)
        relation, bar = BARS.get(name, ("", 0.0))
        met = {">=": middle >= bar, "<=": middle <= bar, "<": middle < bar}.get(relation)
        row = [f"{value:.4g}" for value in (middle, min(values), max(values))]
        table.add_row(name, *row, f"{relation} {bar:g}" if relation else "", "" if met is None else "yes" if met else "NO")
    Console(width=120).print(table)


if __name__ == "__main__":
    sys.exit(main())
