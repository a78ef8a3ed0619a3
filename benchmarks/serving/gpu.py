"""The CUDA route on a GPU: its speed beside transformers and the limit of the GPU's memory.

    python -m benchmarks.serving.gpu [--shape pythia-1.4b|mixtral-0.5b] [--batch 1 64] [--prompt 128] [--tokens 128] [--rounds 3]
                                     [--profile FILE]

Pythia-1.4b has 24 layers of 2,048 and 50,304 rows of vocabulary; the Mixtral 12 layers of 768 with 16 experts of 1,024, two for a token.
Both are in bfloat16 with random weights; nothing is downloaded. Ours and transformers' `generate` (its defaults: a cache that grows,
nothing compiled) take turns, greedy, on the same weights and token ids. Before anything is timed, transformers' model reads both answers
from their first token, and no token of ours may be further from its most likely one than stated. The limit of the memory is the reading of
all weights once a step, of experts those that are likely to be chosen, and of each stream's keys and values. Whether the route is exact on
every path, `benchmarks.serving.gpu_exactness` tells.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.serving.gpu_exactness import neox
from benchmarks.serving.shapes import SHAPES
from benchmarks.setting import keep, setting
from tripod.engine.engine import Engine, EngineConfig
from tripod.engine.step_record import StepRecord
from tripod.models.architectures import Decoder, DecoderConfig, build
from tripod.models.save import save_checkpoint
from tripod.models.sparse_llama import SparseLlamaConfig
from tripod.sampling import SamplingParams
from tripod.text.byte_level import write_byte_tokenizer
from tripod.text.load_tokenizer import load_tokenizer
from tripod.text.tokenizer import Tokenizer

# Of logits in bfloat16, in standard deviations: a chosen token's from the largest. A router's logits tie now and then, and which of equal
# experts is chosen is nobody's right: ours takes the first, torch any.
GAPS = {"pythia-1.4b": 0.2, "mixtral-0.5b": 0.5}
Ids = list[int]
SHAPES_ON_GPU: dict[str, DecoderConfig] = {
    "pythia-1.4b": neox(2048, 24, 16),
    "mixtral-0.5b": SparseLlamaConfig.from_hf({**SHAPES["mixtral-0.5b"].config, "model_type": "mixtral"}),
}


def prompts_of(number: int, length: int) -> list[Ids]:
    generator = torch.Generator().manual_seed(number)
    return torch.randint(0, 50000, (number, length), generator=generator).tolist()


async def answers(engine: Engine, prompts: Sequence[Ids], num_tokens: int) -> list[Ids]:
    sampling = SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True)
    replies = await asyncio.gather(*(engine.generate(prompt, sampling) for prompt in prompts))
    return [list(reply.token_ids) for reply in replies]


def bandwidth() -> float:
    """bytes/s that a copy inside the GPU's memory moves, read and written."""
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    return 2 * source.nbytes / min(timed(lambda: target.copy_(source)) for _ in range(8))


def timed(call: Callable[[], object]) -> float:
    torch.cuda.synchronize()
    started = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return time.perf_counter() - started


def limit_tokens_per_s(num_bytes: float, model: Decoder, batch: int, context: float) -> float:
    """All weights are read once a step, the keys and values of each stream once a token; bfloat16."""
    config = model.config
    share = 1.0  # of the experts that a step reads
    if isinstance(config, SparseLlamaConfig):
        share -= (1.0 - config.router.top_k / config.router.num_experts) ** batch
    read = {name: share if ".experts." in name else 1.0 for name, _ in model.named_parameters() if not name.startswith("embedding")}
    weights = 2 * sum(read.get(name, 0.0) * parameter.numel() for name, parameter in model.named_parameters())
    cached = 2 * 2 * config.num_layers * config.num_kv_heads * config.head_dim * context
    return batch * num_bytes / (weights + batch * cached)


def random_on_gpu(config: DecoderConfig) -> Decoder:
    """Drawn where it is used, in a moment; biases are zeros and norms ones."""
    with torch.device("meta"):
        model = build(config).to(torch.bfloat16)
    model = model.to_empty(device="cuda").eval().requires_grad_(False)
    generator = torch.Generator("cuda").manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2:
            parameter.normal_(std=(0.4 / config.hidden_size) ** 0.5, generator=generator)
        else:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
    return model


def transformers_model(model: Decoder) -> Any:
    """The same weights as transformers' own."""
    from transformers import AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as name:
        save_checkpoint(model, Path(name))
        peer: Any = AutoModelForCausalLM.from_pretrained(name, dtype=torch.bfloat16)
    return peer.to("cuda").eval()


@torch.inference_mode()
def generate(peer: Any, prompts: Sequence[Ids], num_tokens: int) -> list[Ids]:
    ids = torch.tensor(prompts, device="cuda")
    output = peer.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=num_tokens, min_new_tokens=num_tokens, do_sample=False, pad_token_id=0
    )
    return [row[ids.shape[1] :] for row in output.tolist()]


@torch.inference_mode()
def widest_gap(peer: Any, prompts: Sequence[Ids], outputs: Sequence[Ids]) -> float:
    """How far a chosen token's logit is from the largest, given what stands before it; in standard deviations of the logits."""
    ids = torch.tensor([[*prompt, *output] for prompt, output in zip(prompts, outputs, strict=True)], device="cuda")
    logits = peer(ids, logits_to_keep=len(outputs[0]) + 1).logits[:, :-1].float()
    chosen = logits.gather(-1, torch.tensor(outputs, device="cuda")[..., None])[..., 0]
    return float(((logits.amax(-1) - chosen) / logits.std(-1)).max())


def parts_of(steps: Sequence[StepRecord], batch: int) -> dict[str, float]:
    """Median seconds of the parts of a step in which all requests decode."""
    decodes = [step for step in steps if step.num_decode_tokens == batch == step.num_requests]
    names = ("plan_s", "prepare_s", "model_s", "sample_s", "deliver_s", "total_s")
    return {name: statistics.median(getattr(step, name) for step in decodes) for name in names}


async def measure(options: argparse.Namespace, tokenizer: Tokenizer) -> dict[str, object]:
    """Seconds of whole answers, prompt included, round by round."""
    model = random_on_gpu(SHAPES_ON_GPU[options.shape])
    peer = transformers_model(model)
    speed = bandwidth()
    results: dict[str, object] = {"bandwidth": speed}
    tokens = sum(options.batch) * (options.prompt + options.tokens) * 2
    engine_config = EngineConfig(kv_tokens=max(16384, tokens), max_batch_tokens=2048, prefix_cache=False)
    async with Engine(model, tokenizer, engine_config, name=options.shape) as engine:
        print(engine.mode, flush=True)
        for batch in options.batch:
            prompts = prompts_of(batch, options.prompt)
            cold_s = time.perf_counter()
            outputs = await answers(engine, prompts, options.tokens)
            cold_s = time.perf_counter() - cold_s
            await answers(engine, prompts, options.tokens)  # requests arrive in other steps now, for which there may be no graph yet
            gaps = {
                "tripod": widest_gap(peer, prompts, outputs),
                "transformers": widest_gap(peer, prompts, generate(peer, prompts, options.tokens)),
            }
            if gaps["tripod"] > GAPS[options.shape]:
                raise SystemExit(f"batch {batch}: a token is {gaps['tripod']:.3f} standard deviations from transformers' choice: not timed")
            seconds: dict[str, list[float]] = {"tripod": [], "transformers": []}
            for _ in range(options.rounds):
                started = time.perf_counter()
                await answers(engine, prompts, options.tokens)
                seconds["tripod"].append(time.perf_counter() - started)
                seconds["transformers"].append(timed(lambda: generate(peer, prompts, options.tokens)))  # noqa: B023 - called at once
            limit = limit_tokens_per_s(speed, model, batch, options.prompt + options.tokens / 2)
            rates = {name: batch * options.tokens / statistics.median(values) for name, values in seconds.items()}
            step = parts_of(engine.recent_steps()[-options.tokens :], batch)
            print(
                f"batch {batch}: ours {rates['tripod']:.0f} tokens/s, transformers {rates['transformers']:.0f}, "
                f"limit of memory {limit:.0f} ({rates['tripod'] / limit:.0%} of it); gaps {gaps}; first {cold_s:.1f} s\n"
                "  a step: " + ", ".join(f"{name} {value * 1e6:.0f} us" for name, value in step.items()),
                flush=True,
            )
            results[str(batch)] = {
                "seconds": seconds, "tokens_per_s": rates, "limit_tokens_per_s": limit, "widest_gap": gaps, "cold_s": cold_s, "step": step,
            }  # fmt: skip
            if options.profile is not None:
                await profile(engine, prompts, options.profile)
    return results


async def profile(engine: Engine, prompts: Sequence[Ids], path: Path) -> None:
    """Where the GPU's time goes in some steps, added to a text file."""
    num_tokens = 33  # of a prompt, then decodes
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        seconds = time.perf_counter()
        await answers(engine, prompts, num_tokens)
        seconds = time.perf_counter() - seconds
    averages = profiler.key_averages()
    busy_s = sum(event.self_device_time_total for event in averages) * 1e-6
    with path.open("a") as file:
        file.write(f"batch {len(prompts)}: {seconds:.4f} s for {num_tokens} tokens, the GPU busy for {busy_s:.4f} s\n")
        file.write(averages.table(sort_by="self_device_time_total", row_limit=40, max_name_column_width=70) + "\n")


def main() -> int:
    """Returns 0 if measured, 2 if there is no GPU."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving.gpu", description=__doc__)
    parser.add_argument("--shape", choices=SHAPES_ON_GPU, default="pythia-1.4b")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--prompt", type=int, default=128, help="tokens of each prompt")
    parser.add_argument("--tokens", type=int, default=128, help="of each answer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--profile", type=Path, help="a text file that is told where the GPU's time goes")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("not measured: torch sees no GPU here", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as name:
        write_byte_tokenizer(Path(name))
        results = asyncio.run(measure(options, load_tokenizer(Path(name))))
    about = setting("benchmarks.serving.gpu", ["torch", "triton", "transformers"])
    print(keep("gpu", {**about, "shape": options.shape, "device": torch.cuda.get_device_name(), "results": results}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
