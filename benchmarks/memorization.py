"""Memorisation of training rows on a model shaped as pythia-14m: Tripod's study beside transformers' batched `generate`.

    python -m benchmarks.memorization [--rows 10000] [--rounds 1] [--batch 64 256] [--threads 2]

The model has random weights, with a seed; a row is 64 random tokens. Both continue the first 32 tokens of each row by 32, greedily, in
float32. transformers runs in the batch sizes given, without padding since all prompts are of one length, and its fastest counts. The
tokens of both are compared; where logits tie within rounding, greedy paths may part, so the share of equal continuations is printed, and
no ratio where it is below 99 %. Raw results go to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.setting import keep, setting

PROMPT, LENGTH = 32, 32
LOWEST_AGREEMENT = 0.99


def write_model(folder: Path) -> None:
    """Random weights in pythia-14m's shape."""
    from tripod.models.initialize import random_language_model
    from tripod.models.save import save_checkpoint
    from tripod.text.byte_level import write_byte_tokenizer
    from tripod.training.model_recipe import ModelRecipe
    from tripod.training.presets import PRESETS

    recipe = ModelRecipe(**PRESETS["pythia-14m"]["model"])
    save_checkpoint(random_language_model(recipe.config(), seed=0), folder)
    write_byte_tokenizer(folder)


def rows_of(num_rows: int) -> NDArray[np.int64]:
    return np.random.default_rng(0).integers(300, 50_000, (num_rows, PROMPT + LENGTH))


def ours(folder: Path, rows: NDArray[np.int64]) -> tuple[float, NDArray[np.int64]]:
    """Seconds, and the continuations."""
    from tripod.analysis.memorized_rows import bulk_config, continuations
    from tripod.engine.engine import Engine

    async def play() -> tuple[float, NDArray[np.int64]]:
        async with Engine.load(str(folder), config=bulk_config(PROMPT + LENGTH)) as engine:
            await continuations(engine, rows[:64, :PROMPT], LENGTH)
            before = time.perf_counter()
            found = await continuations(engine, rows[:, :PROMPT], LENGTH)
            return time.perf_counter() - before, found

    return asyncio.run(play())


def theirs(folder: Path, rows: NDArray[np.int64], batch: int) -> tuple[float, NDArray[np.int64]]:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 1

    def generate(some: NDArray[np.int64]) -> NDArray[np.int64]:
        ids = torch.from_numpy(some[:, :PROMPT])
        with torch.inference_mode():
            out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=LENGTH, do_sample=False)
        return out[:, PROMPT:].numpy()

    generate(rows[:64])
    before = time.perf_counter()
    found = np.concatenate([generate(rows[start : start + batch]) for start in range(0, len(rows), batch)])
    return time.perf_counter() - before, found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--batch", type=int, nargs="+", default=[64, 256, 1024], help="of transformers")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--contestant", help=argparse.SUPPRESS)  # a child process of this program
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    rows = rows_of(options.rows)
    if options.contestant:
        kind, _, batch = options.contestant.partition("-")
        seconds, found = ours(options.folder, rows) if kind == "tripod" else theirs(options.folder, rows, int(batch))
        np.save(options.folder / f"{options.contestant}.npy", found)
        print(json.dumps(seconds))
        return 0
    contestants = ["tripod", *(f"transformers-{batch}" for batch in options.batch)]
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder)
        for _ in range(options.rounds):
            for contestant in contestants:
                seconds[contestant].append(_child(contestant, folder, options))
        tokens = {contestant: np.load(folder / f"{contestant}.npy") for contestant in contestants}
    ran = setting("benchmarks.memorization", ("torch", "transformers", "numpy")) | {"threads": options.threads}
    print(f"{ran['processor']}, {options.threads} threads, commit {ran['commit']}, {ran['versions']}")
    agreement = {contestant: float((found == tokens["tripod"]).all(1).mean()) for contestant, found in tokens.items()}
    for contestant, taken in seconds.items():
        median, alike = statistics.median(taken), agreement[contestant]
        print(f"{contestant:18s}{median:8.1f} s  {options.rows / median:8.0f} rows/s   {alike:.2%} of continuations as Tripod's")
    fastest = min(contestants[1:], key=lambda contestant: statistics.median(seconds[contestant]))
    agrees = agreement[fastest] >= LOWEST_AGREEMENT
    ratio = statistics.median(seconds[fastest]) / statistics.median(seconds["tripod"]) if agrees else None
    print("no ratio: the continuations differ" if ratio is None else f"ratio to {fastest}: {ratio:.2f}")
    raw: dict[str, Any] = {"setting": ran, "num_rows": options.rows, "seconds": seconds, "agreement": agreement, "ratio": ratio}
    print(f"raw: {keep('memorization', raw).name}")
    return 0 if agrees else 1


def _child(contestant: str, folder: Path, options: argparse.Namespace) -> float:
    import os

    command = [sys.executable, "-m", "benchmarks.memorization", "--contestant", contestant]
    command += ["--folder", str(folder), "--rows", str(options.rows)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout.splitlines()[-1])


if __name__ == "__main__":
    sys.exit(main())
