"""The CUDA route on a GPU: its logits against the CPU's, and its speed beside transformers and the limit of the GPU's memory.

    python -m benchmarks.serving.gpu [--batch 1 64] [--prompt 128] [--tokens 128] [--rounds 3]

Not yet measured on a GPU: no result of it is kept here. The shape is Pythia-1.4b (24 layers of 2,048, 50,304 rows of vocabulary) with
random weights; nothing is downloaded. First a small model in float32 answers on the CPU and on the GPU, in chunks and batches; every token
that the GPU chose must be the CPU's own choice, or within a stated gap of it. Only then is anything timed, ours and transformers'
`generate` taking turns, greedy, on the same weights and the same token ids.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks.setting import keep, setting
from tripod.engine.engine import Engine, EngineConfig
from tripod.models.gpt_neox import GPTNeoXConfig
from tripod.models.initialize import random_language_model
from tripod.models.language_model import LanguageModel
from tripod.models.load import load_language_model
from tripod.models.save import save_checkpoint
from tripod.ops.attention import causal_attention
from tripod.ops.rope import RopeConfig
from tripod.sampling import SamplingParams
from tripod.text.byte_level import write_byte_tokenizer
from tripod.text.load_tokenizer import load_tokenizer
from tripod.text.tokenizer import Tokenizer

GAP = 1e-3  # of logits in float32, in standard deviations: sums in another order
Ids = list[int]


def neox(hidden_size: int, num_layers: int, num_heads: int) -> GPTNeoXConfig:
    """A Pythia of this size."""
    return GPTNeoXConfig(
        vocab_size=50304, hidden_size=hidden_size, intermediate_size=4 * hidden_size, num_layers=num_layers, num_heads=num_heads,
        max_positions=2048, rope=RopeConfig(rotary_dim=hidden_size // num_heads // 4),
    )  # fmt: skip


def prompts_of(number: int, length: int) -> list[Ids]:
    generator = torch.Generator().manual_seed(number)
    return torch.randint(0, 50000, (number, length), generator=generator).tolist()


async def answers(engine: Engine, prompts: Sequence[Ids], num_tokens: int) -> list[Ids]:
    sampling = SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True)
    replies = await asyncio.gather(*(engine.generate(prompt, sampling) for prompt in prompts))
    return [list(reply.token_ids) for reply in replies]


@torch.inference_mode()
def widest_gap(model: LanguageModel, prompts: Sequence[Ids], outputs: Sequence[Ids]) -> float:
    """How far a chosen token's logit is from the largest, given what stands before it; in standard deviations of the logits."""
    widest = 0.0
    for prompt, output in zip(prompts, outputs, strict=True):
        ids = torch.tensor([[*prompt, *output]])
        hidden = model.hidden(ids, torch.arange(ids.shape[1])[None], causal_attention)
        logits = model.logits(hidden)[0, len(prompt) - 1 : -1]
        chosen = logits.gather(-1, torch.tensor(output)[:, None])[:, 0]
        widest = max(widest, float(((logits.amax(-1) - chosen) / logits.std(-1)).max()))
    return widest


async def check(tokenizer: Tokenizer) -> dict[str, object]:
    """Whether the CUDA route says what the CPU says, in one batch of prompts of many lengths, cut into chunks."""
    reference = random_language_model(neox(256, 4, 4), 0)
    prompts = [prompt[: 3 + 29 * i] for i, prompt in enumerate(prompts_of(24, 800))]
    async with Engine(_moved(reference, torch.float32), tokenizer, EngineConfig(max_batch_tokens=200), name="check") as engine:
        outputs = await answers(engine, prompts, 40)
        mode = engine.mode
    gap = widest_gap(reference, prompts, outputs)
    return {"route": mode, "widest_gap": gap, "is_right": gap <= GAP}


def _moved(model: LanguageModel, dtype: torch.dtype) -> LanguageModel:
    with tempfile.TemporaryDirectory() as name:
        save_checkpoint(model, Path(name))
        return load_language_model(Path(name), dtype=dtype, device="cuda")


def bandwidth() -> float:
    """bytes/s that a copy inside the GPU's memory moves, read and written."""
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / min(timed(lambda: target.copy_(source)) for _ in range(8))


def timed(call: Callable[[], object]) -> float:
    torch.cuda.synchronize()
    started = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return time.perf_counter() - started


def limit_tokens_per_s(num_bytes: float, config: GPTNeoXConfig, batch: int, context: float) -> float:
    """All weights are read once a step, the keys and values of each stream once a token; bfloat16."""
    block = 12 * config.hidden_size**2 * config.num_layers
    weights = 2 * (block + config.vocab_size * config.hidden_size)
    cached = 2 * 2 * config.num_layers * config.hidden_size * context
    return batch * num_bytes / (weights + batch * cached)


def transformers_model(folder: Path) -> Callable[[Sequence[Ids], int], list[Ids]]:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).to("cuda").eval()

    def generate(prompts: Sequence[Ids], num_tokens: int) -> list[Ids]:
        ids = torch.tensor(prompts, device="cuda")
        with torch.inference_mode():
            output = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=num_tokens, min_new_tokens=num_tokens, do_sample=False,
                pad_token_id=0,
            )  # fmt: skip
        return [row[ids.shape[1] :] for row in output.tolist()]

    return generate


async def measure(options: argparse.Namespace, tokenizer: Tokenizer, folder: Path) -> dict[str, object]:
    """Seconds of whole answers, prompt included, round by round."""
    config = neox(2048, 24, 16)
    save_checkpoint(random_language_model(config, 0), folder)
    gc.collect()
    peer = transformers_model(folder)
    speed = bandwidth()
    results: dict[str, object] = {"bandwidth": speed}
    tokens = sum(options.batch) * (options.prompt + options.tokens) * 2
    model = load_language_model(folder, dtype=torch.bfloat16, device="cuda")
    async with Engine(model, tokenizer, EngineConfig(kv_tokens=max(16384, tokens), max_batch_tokens=2048), name="1.4b") as engine:
        print(engine.mode)
        for batch in options.batch:
            prompts = prompts_of(batch, options.prompt)
            await answers(engine, prompts, options.tokens)
            peer(prompts, 8)
            seconds: dict[str, list[float]] = {"tripod": [], "transformers": []}
            for _ in range(options.rounds):
                started = time.perf_counter()
                await answers(engine, prompts, options.tokens)
                seconds["tripod"].append(time.perf_counter() - started)
                seconds["transformers"].append(timed(lambda: peer(prompts, options.tokens)))  # noqa: B023 - called at once
            limit = limit_tokens_per_s(speed, config, batch, options.prompt + options.tokens / 2)
            rates = {name: batch * options.tokens / statistics.median(values) for name, values in seconds.items()}
            print(
                f"batch {batch}: ours {rates['tripod']:.0f} tokens/s, transformers {rates['transformers']:.0f}, "
                f"limit of memory {limit:.0f} ({rates['tripod'] / limit:.0%} of it)",
                flush=True,
            )
            results[str(batch)] = {"seconds": seconds, "tokens_per_s": rates, "limit_tokens_per_s": limit}
    return results


def main() -> int:
    """Returns 0 if measured, 1 if the route's answers are wrong, 2 if there is no GPU."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving.gpu", description=__doc__)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--prompt", type=int, default=128, help="tokens of each prompt")
    parser.add_argument("--tokens", type=int, default=128, help="of each answer")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("not measured: torch sees no GPU here", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_byte_tokenizer(folder / "tokenizer")
        tokenizer = load_tokenizer(folder / "tokenizer")
        checked = asyncio.run(check(tokenizer))
        print(json.dumps(checked))
        if not checked["is_right"]:
            print("the CUDA route's answers are not the CPU's: nothing is timed", file=sys.stderr)
            return 1
        results = asyncio.run(measure(options, tokenizer, folder / "model"))
    about = setting("benchmarks.serving.gpu", ["torch", "triton", "transformers"])
    device = torch.cuda.get_device_name()
    print(keep("gpu", {**about, "device": device, "check": checked, "results": results}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
