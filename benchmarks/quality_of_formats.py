"""What the formats of weights, keys and values cost a trained model: its perplexity on unread text, beside that of float32.

    python -m benchmarks.quality_of_formats [--size tiny-m] [--work FOLDER] [--rows 512] [--data FOLDER]

Trains one size of recipes/tiny.yaml on public-domain books (a few minutes; with --work FOLDER the run is kept there, and one that is there
is not trained again), then lets the engine's native route score the rows that no run reads, once in each format. All formats see the same
tokens, so a difference is of the same texts: its interval is 95 % of a paired bootstrap over the rows. The promises, of the perplexity
itself: int8 weights add at most 0.5 %, keys and values in 8 bits at most 0.1 %, both beside the same model without; int4 is reported.
Raw results go to benchmarks/results/quality-of-formats.json.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import tripod
from benchmarks.campaigns.books import train
from benchmarks.setting import RESULTS, setting
from benchmarks.shared_data import DATA
from tripod.engine.engine import Engine
from tripod.engine.engine_config import EngineConfig
from tripod.engine.execution.kv_cache import KVCacheDtype
from tripod.ops.kernels.cpu import library
from tripod.ops.linear import WeightFormat
from tripod.training.compare import difference
from tripod.training.run import Run


@dataclass(frozen=True, slots=True)
class Case:
    """A format, what it is compared with, and how much it may add to the perplexity."""

    weights: WeightFormat
    kv: KVCacheDtype | None = None
    beside: tuple[WeightFormat, KVCacheDtype | None] = ("f32", None)
    most: float | None = None  # as a share; None: reported only

    @property
    def name(self) -> str:
        return self.weights + (f", {self.kv} keys and values" if self.kv else "")


CASES = (
    Case("f32"),
    Case("f32", "int8", most=1e-3),
    Case("bf16"),
    Case("bf16", "int8", beside=("bf16", None), most=1e-3),
    Case("int8", most=5e-3),
    Case("int8", "int8", beside=("int8", None), most=1e-3),
    Case("int4"),
    Case("int4-64"),
    Case("int4-128"),
)


@dataclass(frozen=True, slots=True)
class Quality:
    """One case on some rows of tokens."""

    name: str
    perplexity: float
    kv_bytes_per_token: int
    added: float  # to the perplexity of what it is compared with, as a share of it
    low: float  # of a 95 % interval
    high: float
    is_kept: bool  # the promise


async def losses(address: str, rows: Sequence[Sequence[int]], case: Case) -> tuple[NDArray[np.float64], int]:
    """The mean loss of each row's tokens but the first, in nats, and the bytes of a token's keys and values."""
    config = EngineConfig(weight_format=case.weights, kv_cache_dtype=case.kv, kernels="native", prefix_cache=False, kv_tokens=4096)
    async with Engine.load(address, config=config) as engine:
        means = [-math.fsum((await engine.score(row[:1], row[1:])).logprobs) / (len(row) - 1) for row in rows]
        stats = engine.stats()
        return np.array(means), stats.kv_bytes // (stats.total_blocks * stats.block_size)


async def compare(address: str, rows: Sequence[Sequence[int]], cases: Sequence[Case] = CASES) -> list[Quality]:
    """Each case on the same rows; what one is compared with comes before it.

    Args:
        address: of the model.
        rows: tokens, at least two each, all of one length.
        cases: formats.
    """
    found: dict[tuple[WeightFormat, KVCacheDtype | None], NDArray[np.float64]] = {}
    qualities = []
    for case in cases:
        means, num_bytes = await losses(address, rows, case)
        found[case.weights, case.kv] = means
        apart = difference(case.name, 0, means[None], found[case.beside][None])
        added, low, high = (math.expm1(nats if nats is not None else math.nan) for nats in (apart.difference, apart.low, apart.high))
        is_kept = case.most is None or added <= case.most
        qualities.append(Quality(case.name, math.exp(means.mean()), num_bytes, added, low, high, is_kept))
    return qualities


def main() -> int:
    """0 if the promises hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("tiny-s", "tiny-m", "tiny-l"), default="tiny-m")
    parser.add_argument("--work", type=Path, help="where the run is kept; a temporary folder if absent")
    parser.add_argument("--rows", type=int, default=512, help="of 129 tokens (at most %(default)s)")
    parser.add_argument("--data", type=Path, default=DATA, help="folder that holds text-classic-books (default: %(default)s)")
    options = parser.parse_args()
    if not library.is_available():
        sys.exit(f"not measured: no CPU kernels here: {library.why_not()}")
    with tempfile.TemporaryDirectory(prefix="tripod-formats-") as name:
        work = options.work or Path(name)
        train(options.data / "text-classic-books", work, 1, 0, sizes=(options.size,))
        run = Run.open(work / "runs" / options.size)
        unread = run.order("valid").rows
        rows = [unread.row(row).tolist() for row in range(options.rows)]
        step = run.recipe.num_steps
        qualities = tripod.run(compare(f"{run.folder}@step{step}", rows))
    of = {"size": options.size, "step": step, "rows": len(rows), "tokens": sum(len(row) - 1 for row in rows), "level": library.load()}
    raw = {"setting": setting("benchmarks.quality_of_formats", ("torch",)), "of": of, "formats": [asdict(one) for one in qualities]}
    (RESULTS / "quality-of-formats.json").write_text(json.dumps(raw, indent=1) + "\n", encoding="utf-8")
    print(f"{of['size']} at step {step}, {of['tokens']} unread tokens")
    for case, one in zip(CASES, qualities, strict=True):
        allowed = "" if case.most is None else f"; {case.most:.1%} allowed" + ("" if one.is_kept else ": BROKEN")
        beside = f"{one.added:+.3%} ({one.low:+.3%} to {one.high:+.3%}) beside {case.beside[0]}{allowed}"
        print(f"  {one.name:28} perplexity {one.perplexity:8.4f}  {beside}; {one.kv_bytes_per_token} bytes of keys and values a token")
    return 0 if all(one.is_kept for one in qualities) else 1


if __name__ == "__main__":
    sys.exit(main())
