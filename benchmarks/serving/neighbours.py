"""Programs that share one machine: two servers' engines, and an engine beside a training run, each alone and beside the other.

    python -m benchmarks.serving.neighbours [--shape pythia-160m] [--format bfloat16] [--seconds 6] [--rounds 4]

Each program is a process of its own and takes as many threads as there are cores, which is what one gets without asking. Two that want
all cores have a share of a half. In every round each runs alone and then both at once, for a time that begins and ends at the same
moment in both, and what it got done is put beside what it did alone. Threads that wait for each other by spinning would burn the other's
share. An engine's greedy answers must be the same beside another as alone, and so must the first losses of the training run. The raw
results go to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

from benchmarks.peer_process import PeerProcess
from tripod.cli.train import SPIN_COUNT

BAR = 0.45  # of what it does alone: a share of a half, less a tenth for what neighbours do to each other's caches
PAIRS = (
    ("engine, 1 stream", "engine, 1 stream"),
    ("engine, 16 streams", "engine, 16 streams"),
    ("engine, 1 stream", "engine, 16 streams"),
    ("engine, 1 stream", "training"),
    ("engine, 16 streams", "training"),
    ("engine, 1 stream", "training that sleeps"),
    ("engine, 16 streams", "training that sleeps"),
)
# How long torch's threads spin wherever they wait for each other: by GNU's default for milliseconds, and as `tripod train` sets it.
GNU_SPIN_COUNT = "300000"
SPIN_COUNTS = {"training that sleeps": SPIN_COUNT}  # of the others it is GNU's
NUM_PROMPT, NUM_OUTPUT = 16, 112  # tokens: most steps decode
NUM_COMPARED = 32  # tokens of each stream's first answer
LEAD_S = 1.0  # from the question to the beginning, in which a training run makes its model anew

Work = Callable[[float, float], tuple[int, list[list[float]]]]  # from when, until when -> tokens done in between, and what must not change


def engine_work(folder: str, weight_format: str, num_streams: int) -> Work:
    """Streams that each ask for one answer after another; the tokens are counted as they come."""
    import torch

    from benchmarks.serving.engines.tripod_engine import FORMATS
    from benchmarks.serving.workloads import w1
    from tripod.engine.engine import Engine, EngineConfig
    from tripod.sampling import SamplingParams
    from tripod.trace import Delta

    dtype = torch.float32 if weight_format == "float32" else torch.bfloat16
    config = EngineConfig(weight_format=FORMATS[weight_format], kv_tokens=16_384, prefix_cache=False)
    engine = Engine.load(folder, config=config, dtype=dtype)
    prompts = [w1(seed).prompts[0][:NUM_PROMPT] for seed in range(num_streams)]
    sampling = SamplingParams(temperature=0.0, max_tokens=NUM_OUTPUT, ignore_eos=True)

    async def stream(prompt: Sequence[int], until: float) -> tuple[int, list[float]]:
        num_tokens, first_answer = 0, list[float]()
        for number in itertools.count():
            async for event in engine.stream(prompt, sampling):
                if time.time() >= until:
                    return num_tokens, first_answer
                if isinstance(event, Delta):
                    num_tokens += len(event.token_ids)
                    if number == 0:
                        first_answer += event.token_ids
        raise AssertionError

    async def all_streams(begin: float, until: float) -> tuple[int, list[list[float]]]:
        await asyncio.sleep(begin - time.time())
        ends = await asyncio.gather(*(stream(prompt, until) for prompt in prompts))
        return sum(tokens for tokens, _ in ends), [answer[:NUM_COMPARED] for _, answer in ends]

    runner = asyncio.Runner()
    return lambda begin, until: runner.run(all_streams(begin, until))


def training_work() -> Work:
    """Steps of our training loop on pythia-14m, a small model, whose threads meet often."""
    import torch

    from benchmarks.training_speed import TOKENS, model_recipe, tripod_step

    recipe = model_recipe("14m")
    tokens = torch.randint(recipe.vocab_size, (4, TOKENS // 4 + 1), generator=torch.Generator().manual_seed(0))

    def steps(begin: float, until: float) -> tuple[int, list[list[float]]]:
        step, _ = tripod_step(recipe, "bf16")
        time.sleep(max(0.0, begin - time.time()))
        losses: list[float] = []
        num_steps = 0.0
        while (began := time.time()) < until:
            losses.append(step(tokens))
            num_steps += min(1.0, (until - began) / (time.time() - began))  # of the last one, the part in time
        return int(num_steps * TOKENS), [losses[:2]]

    return steps


def child(kind: str, folder: str, weight_format: str) -> int:
    """Answers lines of JSON until it is killed."""
    work = training_work() if kind.startswith("training") else engine_work(folder, weight_format, int(kind.split()[1]))
    work(time.time(), time.time() + 2.0)  # warm up
    print(json.dumps({}), flush=True)
    for line in sys.stdin:
        begin, until = (float(json.loads(line)[name]) for name in ("begin", "until"))
        done, same = work(begin, until)
        print(json.dumps({"done": done, "same": same}), flush=True)
    return 0


def agree(some: list[list[float]], others: list[list[float]]) -> bool:
    """Whether each is the beginning of the other: time may have cut one of them."""
    pairs = [pair for one, other in zip(some, others, strict=True) for pair in zip(one, other, strict=False)]
    return bool(pairs) and all(a == b for a, b in pairs)


def measure(kinds: tuple[str, str], folder: str, weight_format: str, seconds: float, num_rounds: int) -> dict[str, Any]:
    """Both programs' tokens a second alone and beside each other, by round."""
    program = (sys.executable, "benchmarks.serving.neighbours", "--child")
    alone: list[list[float]] = [[], []]
    beside: list[list[float]] = [[], []]
    firsts: list[list[list[list[float]]]] = [[], []]

    def run(places: Sequence[int], into: list[list[float]]) -> None:
        begin = time.time() + LEAD_S
        with ThreadPoolExecutor(2) as threads:
            answers = threads.map(lambda place: children[place].ask(begin=begin, until=begin + seconds), places)
            for place, found in zip(places, answers, strict=True):
                into[place].append(found["done"] / seconds)
                firsts[place].append(found["same"])

    with ExitStack() as open_children:
        children = []
        for kind in kinds:
            spins = {"GOMP_SPINCOUNT": SPIN_COUNTS.get(kind, GNU_SPIN_COUNT)}
            children.append(PeerProcess(*program, kind, folder, weight_format, environment=spins))
            open_children.callback(children[-1].close)
        for each in children:
            each.read()
        for number in range(num_rounds):
            first = number % 2
            run([first], alone)
            run([0, 1], beside)
            run([1 - first], alone)
    for kind, answers in zip(kinds, firsts, strict=True):
        assert all(map(agree, itertools.repeat(answers[0]), answers)), f"{kind}: the first answers differ alone and beside the other"
    shares = [[both / one for both, one in zip(beside[i], alone[i], strict=True)] for i in range(2)]
    return {"kinds": kinds, "alone": alone, "beside": beside, "shares": shares}


def main() -> int:
    """Returns 0 if every program keeps its share, but for a training run whose threads spin it away."""
    if sys.argv[1:2] == ["--child"]:
        return child(*sys.argv[2:])
    from rich.console import Console
    from rich.table import Table

    from benchmarks.serving.shapes import SHAPES, model_folder
    from benchmarks.setting import keep, setting

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="pythia-160m")
    parser.add_argument("--format", choices=["float32", "bfloat16", "int8", "int4"], default="bfloat16")
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--pairs", type=int, nargs="+", default=list(range(len(PAIRS))), help="which of the pairs, counted from 0")
    options = parser.parse_args()
    folder = str(model_folder(options.shape))
    rows = [measure(kinds, folder, options.format, options.seconds, options.rounds) for kinds in (PAIRS[i] for i in options.pairs)]
    ran = setting("benchmarks.serving.neighbours", ("tripod", "torch")) | {"cores": len(os.sched_getaffinity(0)), "bar": BAR}
    path = keep(f"neighbours-{options.shape}-{options.format}", {**ran, "rows": rows})
    title = f"{options.shape}, {options.format}: beside another program that wants all cores"
    table = Table(title=title, caption=f"raw: {path.name}; each must keep {BAR:.0%} of what it does alone")
    for heading in ("program", "beside", "alone, tokens/s", "of that, beside the other", "kept"):
        table.add_column(heading)
    worst = 1.0
    for row in rows:
        for i in range(2):
            shares: list[float] = row["shares"][i]
            middle = statistics.median(shares)
            kinds = row["kinds"]
            if kinds[i] != "training":
                worst = min(worst, middle)
            spread = f"{middle:.2f} ({min(shares):.2f} to {max(shares):.2f})"
            table.add_row(kinds[i], kinds[1 - i], f"{statistics.median(row['alone'][i]):,.0f}", spread, "yes" if middle >= BAR else "NO")
    Console().print(table)
    return int(worst < BAR)


if __name__ == "__main__":
    sys.exit(main())
