"""The CUDA route on a GPU: its speed beside transformers and the limit of the GPU's memory.

    python -m benchmarks.serving.gpu [--shape pythia-1.4b|mixtral-0.5b] [--batch 1 64] [--prompt 128] [--tokens 128] [--rounds 3]
                                     [--profile FILE]

Pythia-1.4b has 24 layers of 2,048 and 50,304 rows of vocabulary; the Mixtral 12 layers of 768 with 16 experts of 1,024, two for a token.
Both are in bfloat16 with random weights; nothing is downloaded. Ours and transformers' `generate` (its defaults: a cache that grows,
nothing compiled) take turns, greedy, on the same weights and token ids. Before anything is timed, the engine draws tokens at temperature 1,
as many streams at a time and at least 16 in all, and transformers' model reads them from their first one, in float32, which is right, and
in bfloat16. The log-probabilities that ours gave them may not be further from the right ones, on average, than transformers' in bfloat16,
within a tolerance. The limit of the memory is the reading of all weights once a step, of experts those that are likely to be chosen, and of
each stream's keys and values. Whether the route is exact on every path, `benchmarks.serving.gpu_exactness` tells.
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.serving.gpu_exactness import neox
from benchmarks.serving.shapes import SHAPES
from benchmarks.setting import keep, setting
from tripod.engine.engine import Engine, EngineConfig
from tripod.engine.step_record import StepRecord
from tripod.messages import Reply
from tripod.models.architectures import Decoder, DecoderConfig, build
from tripod.models.save import save_checkpoint
from tripod.models.sparse_llama import SparseLlamaConfig
from tripod.sampling import SamplingParams
from tripod.text.byte_level import write_byte_tokenizer
from tripod.text.load_tokenizer import load_tokenizer
from tripod.text.tokenizer import Tokenizer

STREAMS_JUDGED = 16  # at least: one expert that is chosen otherwise is felt by all of a stream's later tokens
ERROR_RATIO = 1.2  # of mean errors of log-probabilities, ours to transformers': both round to bfloat16, each in its own places
Ids = list[int]
SHAPES_ON_GPU: dict[str, DecoderConfig] = {
    "pythia-1.4b": neox(2048, 24, 16),
    "mixtral-0.5b": SparseLlamaConfig.from_hf({**SHAPES["mixtral-0.5b"].config, "model_type": "mixtral"}),
}


def prompts_of(number: int, length: int) -> list[Ids]:
    generator = torch.Generator().manual_seed(number)
    return torch.randint(0, 50000, (number, length), generator=generator).tolist()


async def answers(engine: Engine, prompts: Sequence[Ids], num_tokens: int, *, temperature: float = 0.0) -> list[Reply]:
    sampling = SamplingParams(temperature=temperature, seed=0, max_tokens=num_tokens, ignore_eos=True, logprobs=0 if temperature else None)
    return await asyncio.gather(*(engine.generate(prompt, sampling) for prompt in prompts))


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
def generate(peer: Any, prompts: Sequence[Ids], num_tokens: int) -> None:
    ids = torch.tensor(prompts, device="cuda")
    peer.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=num_tokens, min_new_tokens=num_tokens, do_sample=False, pad_token_id=0
    )


@torch.inference_mode()
def errors(reference: Any, peer: Any, prompts: Sequence[Ids], replies: Sequence[Reply]) -> dict[str, float]:
    """How far the log-probabilities of generated tokens are from the reference's, on average: those of the replies, and the peer's.

    Args:
        reference: reads each reply from the first token of its prompt.
        peer: reads the same.
        prompts: what was asked.
        replies: with the log-probabilities of their tokens.
    """
    found: dict[str, list[Tensor]] = {"tripod": [], "transformers": []}
    for prompt, reply in zip(prompts, replies, strict=True):
        ids = torch.tensor([[*prompt, *reply.token_ids]], device=reference.device)
        chosen = ids[0, len(prompt) :, None]
        right, near = (
            model(ids, logits_to_keep=len(chosen) + 1).logits[0, :-1].float().log_softmax(-1).gather(-1, chosen)[:, 0]
            for model in (reference, peer)
        )
        ours = torch.tensor([token.logprob for token in reply.logprobs], device=reference.device)
        found["tripod"].append((ours - right).abs())
        found["transformers"].append((near - right).abs())
    return {name: float(torch.cat(parts).mean()) for name, parts in found.items()}


def parts_of(steps: Sequence[StepRecord], batch: int) -> dict[str, float]:
    """Median seconds of the parts of a step in which all requests decode."""
    decodes = [step for step in steps if step.num_decode_tokens == batch == step.num_requests]
    names = ("plan_s", "prepare_s", "model_s", "sample_s", "deliver_s", "total_s")
    return {name: statistics.median(getattr(step, name) for step in decodes) for name in names}


async def measure(options: argparse.Namespace, tokenizer: Tokenizer) -> dict[str, object]:
    """Seconds of whole answers, prompt included, round by round."""
    model = random_on_gpu(SHAPES_ON_GPU[options.shape])
    peer = transformers_model(model)
    reference = copy.deepcopy(peer).float()
    speed = bandwidth()
    results: dict[str, object] = {"bandwidth": speed}
    tokens = sum(options.batch) * (options.prompt + options.tokens) * 2
    engine_config = EngineConfig(kv_tokens=max(16384, tokens), max_batch_tokens=2048, prefix_cache=False)
    async with Engine(model, tokenizer, engine_config, name=options.shape) as engine:
        print(engine.mode, flush=True)
        for batch in options.batch:
            prompts = prompts_of(batch, options.prompt)
            cold_s = time.perf_counter()
            await answers(engine, prompts, options.tokens)
            cold_s = time.perf_counter() - cold_s
            drawn_of = prompts_of(max(batch, STREAMS_JUDGED), options.prompt)
            drawn = [
                reply
                for at in range(0, len(drawn_of), batch)
                for reply in await answers(engine, drawn_of[at : at + batch], options.tokens, temperature=1.0)
            ]
            found = errors(reference, peer, drawn_of, drawn)
            print(f"batch {batch}: mean errors of log-probabilities {found}", flush=True)
            if found["tripod"] > ERROR_RATIO * found["transformers"]:
                raise SystemExit(
                    f"batch {batch}: log-probabilities are {found['tripod']:.4f} from those in float32, transformers' "
                    f"{found['transformers']:.4f}; at most {ERROR_RATIO} times as much was expected: not timed"
                )
            await answers(engine, prompts, options.tokens)  # requests arrive in other steps now, for which there may be no graph yet
            generate(peer, prompts, options.tokens)
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
                f"limit of memory {limit:.0f} ({rates['tripod'] / limit:.0%} of it); first {cold_s:.1f} s\n"
                "  a step: " + ", ".join(f"{name} {value * 1e6:.0f} us" for name, value in step.items()),
                flush=True,
            )
            results[str(batch)] = {
                "seconds": seconds, "tokens_per_s": rates, "limit_tokens_per_s": limit, "logprob_errors": found, "cold_s": cold_s,
                "step": step,
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
