"""What it costs that a request's logits have the same bits whatever runs beside it: W2 with `batch_invariant` and without, in turns.

    python -m benchmarks.serving.invariance [--shape pythia-160m] [--routes native torch] [--formats bfloat16 float32] [--rounds 3]

The native kernels sum every row in one order always, so the switch changes nothing there; torch's matrix products do not, so its route
computes in tiles of fixed heights. In every round each engine answers W2 (64 requests of mixed lengths) once, with fresh token ids. With
the switch on, the first four requests are also asked alone, and must get the same tokens. Raw results go to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import time
from collections.abc import Sequence

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.serving.engines.tripod_engine import FORMATS
from benchmarks.serving.shapes import SHAPES, model_folder
from benchmarks.serving.workloads import Requests, w2
from benchmarks.setting import keep, setting
from tripod.engine.engine import Engine, EngineConfig
from tripod.sampling import SamplingParams

BAR = 0.35  # of the time without the switch
NUM_ALONE = 4


async def answer(engine: Engine, requests: Requests) -> tuple[list[tuple[int, ...]], float]:
    """The tokens of every request, all asked at once, and the seconds it took."""

    async def one(prompt: Sequence[int], num_output: int) -> tuple[int, ...]:
        return (await engine.generate(prompt, SamplingParams(temperature=0.0, max_tokens=num_output, ignore_eos=True))).token_ids

    began_s = time.perf_counter()
    answers = await asyncio.gather(*map(one, requests.prompts, requests.num_outputs))
    return answers, time.perf_counter() - began_s


def load(folder: str, route: str, weight_format: str, *, batch_invariant: bool) -> Engine:
    dtype = torch.float32 if weight_format == "float32" else torch.bfloat16
    config = EngineConfig(
        kernels=route,  # type: ignore[arg-type]
        weight_format=FORMATS[weight_format] if route == "native" else None,
        batch_invariant=batch_invariant,
        kv_tokens=32_768,
        prefix_cache=False,  # asked alone, a request must be computed again
    )
    return Engine.load(folder, config=config, dtype=dtype)


async def measure(folder: str, route: str, weight_format: str, num_rounds: int) -> dict[str, object]:
    seconds: dict[bool, list[float]] = {False: [], True: []}
    async with (
        load(folder, route, weight_format, batch_invariant=False) as plain,
        load(folder, route, weight_format, batch_invariant=True) as invariant,
    ):
        engines = {False: plain, True: invariant}
        for engine in engines.values():
            await answer(engine, Requests([list(range(100, 132))], [4]))  # warm up
        for number in range(num_rounds):
            requests = w2(number)
            for is_invariant in (False, True) if number % 2 == 0 else (True, False):
                answers, took_s = await answer(engines[is_invariant], requests)
                seconds[is_invariant].append(took_s)
                if is_invariant and number == 0:
                    for i in range(NUM_ALONE):
                        alone, _ = await answer(invariant, Requests([requests.prompts[i]], [requests.num_outputs[i]]))
                        assert alone[0] == answers[i], f"request {i} was answered otherwise alone than beside 63 others"
        mode = invariant.mode
    overheads = [on / off - 1.0 for off, on in zip(seconds[False], seconds[True], strict=True)]
    return {
        "route": route,
        "format": weight_format,
        "mode": mode,
        "plain_s": seconds[False],
        "invariant_s": seconds[True],
        "overhead": overheads,
    }


def main() -> int:
    """Returns 0 if the switch costs at most 35 % everywhere, in the median."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="pythia-160m")
    parser.add_argument("--routes", nargs="+", choices=["native", "torch"], default=["native", "torch"])
    parser.add_argument("--formats", nargs="+", choices=["bfloat16", "float32"], default=["bfloat16", "float32"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    folder = str(model_folder(options.shape))
    rows = [
        asyncio.run(measure(folder, route, weight_format, options.rounds)) for route in options.routes for weight_format in options.formats
    ]
    path = keep(f"invariance-{options.shape}", {**setting("benchmarks.serving.invariance", ("tripod", "torch")), "rows": rows})
    table = Table(title=f"{options.shape}, W2: what batch_invariant costs", caption=f"raw: {path.name}")
    for heading in ("route", "format", "without, s", "with, s", "overhead: median (least to most)", "at most 35 %"):
        table.add_column(heading)
    medians = []
    for row in rows:
        overheads: list[float] = row["overhead"]  # type: ignore[assignment]
        medians.append(statistics.median(overheads))
        table.add_row(
            str(row["route"]),
            str(row["format"]),
            *(f"{statistics.median(row[name]):.2f}" for name in ("plain_s", "invariant_s")),  # type: ignore[call-overload]
            f"{medians[-1]:+.1%} ({min(overheads):+.1%} to {max(overheads):+.1%})",
            "yes" if medians[-1] <= BAR else "NO",
        )
    Console().print(table)
    return int(max(medians) > BAR)


if __name__ == "__main__":
    sys.exit(main())
