"""What grammars cost in a step: masks over a real vocabulary, beside the step of the model that they constrain, in one run.

    python -m benchmarks.grammar_mask [--data FOLDER] [--dtype bfloat16] [--streams 1 16] [--rounds 3]

The model has Pythia-160m's shape and random weights (12 layers of 768, 50,304 rows of vocabulary), the tokenizer is Pythia's own, the
schemas are drawn from json-schema-bench. FOLDER holds tokenizers and json-schema-bench. Rounds of free and of constrained requests take
turns; both sample at temperature 1. Told apart are

- mask: computing the masks of all rows of a step, alone, which the engine does beside the model's forward pass;
- follow: moving the matchers on by the sampled tokens;
- step: the engine's decode steps, free and constrained, as it records them itself.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.setting import keep, setting
from benchmarks.shared_data import DATA
from tripod.engine.engine import Engine, EngineConfig
from tripod.engine.grammar.compiler import GrammarCompiler
from tripod.engine.grammar.masks import TokenMasks
from tripod.engine.policy.request import Request
from tripod.errors import RequestError
from tripod.models.gpt_neox import GPTNeoXConfig
from tripod.models.initialize import random_language_model
from tripod.ops.rope import RopeConfig
from tripod.sampling import Grammar, SamplingParams
from tripod.text.load_tokenizer import load_tokenizer
from tripod.text.tokenizer import Tokenizer

NUM_TOKENS = 48  # of each answer
VOCAB_SIZE = 50304


def open_tokenizer(data: Path) -> Tokenizer:
    """Pythia's, which names its end token in a file beside it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "tokenizer.json").write_bytes((data / "tokenizers" / "pythia-20B_tokenizer.json").read_bytes())
        (folder / "tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>"}')
        return load_tokenizer(folder)


async def draw_grammars(data: Path, tokenizer: Tokenizer, number: int, seed: int) -> list[Grammar]:
    """Schemas that can be enforced and describe an object."""
    lines = (data / "json-schema-bench" / "maskbench-sample.jsonl").read_text(encoding="utf-8").splitlines()
    random.Random(seed).shuffle(lines)
    compiler = GrammarCompiler(tokenizer, VOCAB_SIZE)
    drawn: list[Grammar] = []
    for line in lines:
        schema: Any = json.loads(line)["schema"]
        if len(drawn) == number:
            break
        if "properties" in schema:
            try:
                await compiler.matcher(Grammar.json_schema(schema))
            except RequestError:
                continue
            drawn.append(Grammar.json_schema(schema))
    compiler.close()
    return drawn


async def decode(engine: Engine, samplings: Sequence[SamplingParams]) -> tuple[list[list[int]], list[float]]:
    """The answers' tokens, and the seconds of every step in which all streams decoded."""
    first = engine.stats().steps
    replies = await asyncio.gather(*(engine.generate("Once upon a time", sampling) for sampling in samplings))
    steps = [step for step in engine.recent_steps() if step.id >= first and step.num_decode_tokens == len(samplings)]
    return [list(reply.token_ids) for reply in replies], [step.total_s for step in steps if not step.num_prefill_tokens]


async def replay(
    tokenizer: Tokenizer, samplings: Sequence[SamplingParams], answers: Sequence[list[int]]
) -> tuple[list[float], list[float]]:
    """Seconds of computing the masks and of following the tokens, for each step of these answers, with nothing beside them."""
    compiler, masks = GrammarCompiler(tokenizer, VOCAB_SIZE), TokenMasks(VOCAB_SIZE)
    requests = [Request(id="", prompt_ids=(0,), sampling=sampling, max_tokens=NUM_TOKENS) for sampling in samplings]
    for request in requests:
        assert request.sampling.grammar is not None
        request.matcher = await compiler.matcher(request.sampling.grammar)
    mask_s, follow_s = [], []
    for step in range(NUM_TOKENS):
        running = [(request, answer) for request, answer in zip(requests, answers, strict=True) if step < len(answer)]
        if len(running) < len(requests):
            break
        started = time.perf_counter()
        pending = masks.begin(requests)
        assert pending is not None
        pending.wait(requests, torch.device("cpu"))
        masked = time.perf_counter()
        for request, answer in running:
            assert request.matcher is not None
            request.matcher.accept(answer[step])
        mask_s.append(masked - started)
        follow_s.append(time.perf_counter() - masked)
    compiler.close()
    return mask_s, follow_s


def middle(seconds: Sequence[float]) -> str:
    ordered = [1e3 * value for value in sorted(seconds)]
    return f"{statistics.median(ordered):8.3f} ms median, {ordered[int(0.99 * (len(ordered) - 1))]:8.3f} ms at 99 %, {len(ordered)} steps"


async def measure(options: argparse.Namespace) -> dict[str, object]:
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=VOCAB_SIZE, hidden_size=768, intermediate_size=3072, num_layers=12, num_heads=12, max_positions=2048,
        rope=RopeConfig(rotary_dim=16),
    )  # fmt: skip
    model = random_language_model(config, 0).to(getattr(torch, options.dtype))
    tokenizer = open_tokenizer(options.data)
    results: dict[str, object] = {}
    async with Engine(model, tokenizer, EngineConfig(kv_tokens=8192), name="pythia-160m") as engine:
        for number in options.streams:
            grammars = await draw_grammars(options.data, tokenizer, number, seed=number)
            constrained = [
                SamplingParams(grammar=grammar, max_tokens=NUM_TOKENS, min_tokens=NUM_TOKENS, seed=i) for i, grammar in enumerate(grammars)
            ]
            free = [replace(sampling, grammar=None, ignore_eos=True) for sampling in constrained]
            for sampling in constrained:
                assert sampling.grammar is not None
                await engine.check_grammar(sampling.grammar)
            await decode(engine, free)
            seconds: dict[str, list[float]] = {"mask": [], "follow": [], "step, free": [], "step, constrained": []}
            for _ in range(options.rounds):
                seconds["step, free"] += (await decode(engine, free))[1]
                answers, steps = await decode(engine, constrained)
                seconds["step, constrained"] += steps
                mask_s, follow_s = await replay(tokenizer, constrained, answers)
                seconds["mask"] += mask_s
                seconds["follow"] += follow_s
            step_s = statistics.median(seconds["step, free"])
            share = (statistics.median(seconds["mask"]) + statistics.median(seconds["follow"])) / step_s
            ratio = statistics.median(seconds["step, constrained"]) / step_s
            print(f"{number} streams")
            for name, values in seconds.items():
                print(f"  {name:18} {middle(values)}")
            print(f"  mask and follow are {share:.2%} of a free step; a constrained step takes {ratio:.3f} of a free one", flush=True)
            results[str(number)] = {"seconds": seconds, "mask_share": share, "step_ratio": ratio}
    return results


def main() -> int:
    """Returns 0 if masks take at most 2 % of a step, 1 if they take more, 2 if nothing could be measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.grammar_mask", description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the collections (default: %(default)s)")
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    absent = [name for name in ("tokenizers", "json-schema-bench") if not (options.data / name).is_dir()]
    if absent:
        print(f"not measured: {options.data} holds no {', '.join(absent)}", file=sys.stderr)
        return 2
    results = asyncio.run(measure(options))
    about = setting("benchmarks.grammar_mask", ["torch", "llguidance", "tokenizers"])
    print(keep("grammar-mask", {**about, "threads": torch.get_num_threads(), "dtype": options.dtype, "streams": results}))
    return int(any(result["mask_share"] > 0.02 for result in results.values()))  # type: ignore[index]


if __name__ == "__main__":
    sys.exit(main())
