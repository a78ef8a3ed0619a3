"""How fast LAMBADA is scored: Tripod's tasks beside lm-eval with its Hugging Face backend, on one checkpoint, the same tokens and threads.

    python -m benchmarks.task_scoring [--data FOLDER] [--items 5000] [--rounds 3] [--batch-size 1 --batch-size 16 ...]

The model has the shape of pythia-14m and random weights; FOLDER holds lm-evals/lambada_openai and tokenizers/. Both score the same
questions: log-likelihoods are compared before a ratio is printed. The peer is measured at several batch sizes and its best counts. What is
timed is the scoring of requests, tokenising included, without loading the model or the data. The two take turns. Raw: benchmarks/results/.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.setting import keep, setting
from benchmarks.shared_data import DATA
from tripod.engine.engine import Engine, EngineConfig
from tripod.evaluation.tasks.asking import answer, flat
from tripod.evaluation.tasks.catalogue import TASKS
from tripod.evaluation.tasks.question import Ask, Continuation, Likelihood
from tripod.models.gpt_neox import GPTNeoXConfig
from tripod.models.initialize import random_language_model
from tripod.models.save import save_checkpoint
from tripod.ops.rope import RopeConfig

SHAPE = GPTNeoXConfig(
    vocab_size=50304, hidden_size=128, intermediate_size=512, num_layers=6, num_heads=4, max_positions=2048, rope=RopeConfig(rotary_dim=8)
)  # pythia-14m
TOLERANCE = 1e-3  # of a log-likelihood


def write_checkpoint(folder: Path, data: Path) -> None:
    model = random_language_model(SHAPE, seed=1)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.mul_(2.0)
    save_checkpoint(model, folder)
    shutil.copy(data / "tokenizers" / "pythia-20B_tokenizer.json", folder / "tokenizer.json")
    end = "<|endoftext|>"
    tokenizer = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": end, "eos_token": end, "unk_token": end}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))


def by_lm_eval(folder: Path, asks: Sequence[Ask], batch_size: int) -> Any:
    """A function that scores with lm-eval's Hugging Face model."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    model = HFLM(pretrained=str(folder), dtype="float32", device="cpu", batch_size=batch_size, max_length=SHAPE.max_positions - 1)
    pairs = [(ask.context, ask.text) for ask in asks if isinstance(ask, Continuation)]
    requests = [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(pairs)]
    return lambda: [logprob for logprob, _ in model.loglikelihood(requests, disable_tqdm=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--items", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, action="append", help="of the peer; may be given several times (1, 16 and 64)")
    arguments = parser.parse_args()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)

    task = TASKS["lambada_openai"]
    questions = task.questions(task.path(arguments.data), limit=arguments.items)
    asks = flat(question.asks for question in questions)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "pythia-14m-shaped"
        write_checkpoint(folder, arguments.data)
        engine = Engine.load(str(folder), config=EngineConfig())

        def by_tripod() -> list[float]:
            replies = asyncio.run(answer(engine, asks))
            return [reply.logprob for reply in replies if isinstance(reply, Likelihood)]

        peers = {size: by_lm_eval(folder, asks, size) for size in arguments.batch_size or (1, 16, 64)}
        contestants = {"tripod": by_tripod, **{f"lm-eval, batch {size}": call for size, call in peers.items()}}
        seconds: dict[str, list[float]] = {name: [] for name in contestants}
        results: dict[str, list[float]] = {}
        for _ in range(arguments.rounds):
            for name, call in contestants.items():
                began = time.perf_counter()
                results[name] = call()
                seconds[name].append(time.perf_counter() - began)
        asyncio.run(engine.aclose())

    ran = setting("benchmarks.task_scoring", ("torch", "transformers", "lm-eval", "tokenizers")) | {"threads": torch.get_num_threads()}
    ran |= {"engine": engine.mode}
    print(f"{ran['processor']}, {ran['threads']} threads, commit {ran['commit']}, {ran['versions']}, engine {engine.mode}")
    largest = {
        name: float(np.abs(np.subtract(results["tripod"], values)).max())  # NaN where one of them is
        for name, values in results.items()
    }
    for name, values in seconds.items():
        rates = sorted(len(asks) / second for second in values)
        print(
            f"{name:20} {statistics.median(rates):8.1f} items/s ({rates[0]:.1f} to {rates[-1]:.1f}); largest difference {largest[name]:.1e}"
        )
    agrees = all(one <= TOLERANCE for one in largest.values())
    best = min((name for name in seconds if name != "tripod"), key=lambda name: statistics.median(seconds[name]))
    ratios = [theirs / ours for theirs, ours in zip(seconds[best], seconds["tripod"], strict=True)]
    if agrees:
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"ratio to the peer's best ({best}), round by round: median {spread}")
    else:
        print(f"no ratio: log-likelihoods differ by more than {TOLERANCE}")
    raw = {"setting": ran, "num_items": len(asks), "largest_difference": largest, "seconds": seconds, "ratios": ratios if agrees else None}
    print(f"raw: {keep('task-scoring', raw).name}")
    if not agrees:
        sys.exit(1)


if __name__ == "__main__":
    main()
