"""Whether the CUDA route says what the CPU says, on every path of the engine.

    python -m benchmarks.serving.gpu_exactness

Small models with random weights answer on the GPU: in chunks beside decodes, from the prefix cache, after preemptions, branched off, with
grouped heads and sliding windows, through experts, over contexts of several parts. The CPU, in float32, then reads each answer from its
first token, without a cache. Every token that the GPU chose must be the CPU's own choice or within a tolerance of it, and its
log-probability the CPU's.
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing import get_context

import torch
from torch import Tensor

from benchmarks.setting import keep, setting
from tripod.engine.assemble import EngineParts, assemble
from tripod.engine.engine_config import EngineConfig
from tripod.engine.execution.route import mode_of
from tripod.engine.policy.request import Request
from tripod.models.architectures import Decoder, DecoderConfig
from tripod.models.gpt_neox import GPTNeoXConfig
from tripod.models.initialize import random_language_model
from tripod.models.language_model import LanguageModel
from tripod.models.llama import LlamaConfig
from tripod.models.sparse_llama import SparseLlamaConfig
from tripod.ops.attention import causal_attention
from tripod.ops.moe_routing import RouterConfig
from tripod.ops.rope import RopeConfig
from tripod.sampling import SamplingParams

# Of natural log-probabilities: sums in another order; three steps of bfloat16 at a logit of 4 to 8, where the largest ones are.
TOLERANCES = {torch.float32: 2e-4, torch.bfloat16: 0.1}
SAMPLING = SamplingParams(temperature=0.0, logprobs=0)
VOCAB_SIZE = 50304
BRANCH_AFTER = 5  # tokens of an answer


def neox(hidden_size: int, num_layers: int, num_heads: int) -> GPTNeoXConfig:
    """A Pythia of this size."""
    return GPTNeoXConfig(
        vocab_size=VOCAB_SIZE, hidden_size=hidden_size, intermediate_size=4 * hidden_size, num_layers=num_layers, num_heads=num_heads,
        max_positions=2048, rope=RopeConfig(rotary_dim=hidden_size // num_heads // 4),
    )  # fmt: skip


def qwen3(windows: tuple[int | None, ...] = ()) -> LlamaConfig:
    """Four query heads to a key head, norms on both, and windows."""
    return LlamaConfig(
        model_type="qwen3", vocab_size=VOCAB_SIZE, hidden_size=256, intermediate_size=768, num_layers=4, num_heads=8, num_kv_heads=2,
        head_dim=64, max_positions=2048, rope=RopeConfig(rotary_dim=64), qk_norm=True, windows=windows,
    )  # fmt: skip


def mixtral() -> SparseLlamaConfig:
    """Two experts of eight for a token, in every layer."""
    dense = replace(qwen3(), model_type="mistral", qk_norm=False)
    router = RouterConfig(num_experts=8, top_k=2, is_normalized=True)
    return SparseLlamaConfig(model_type="mixtral", dense=dense, router=router, expert_size=384)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Prompts of these lengths, asked of one engine all at once."""

    name: str
    model: DecoderConfig
    lengths: Sequence[int]
    dtype: torch.dtype = torch.float32
    num_tokens: int = 24  # of each answer
    engine: EngineConfig = field(default_factory=lambda: EngineConfig(max_batch_tokens=200, kv_tokens=32768))
    has_branches: bool = False
    is_repeated: bool = False  # each prompt again, a token longer, when all are answered

    @property
    def tolerance(self) -> float:
        return TOLERANCES[self.dtype]


MANY = tuple(range(3, 700, 29))
CASES = (
    Case(name="chunks beside decodes", model=neox(256, 4, 4), lengths=MANY),
    Case(name="prefix hits", model=neox(256, 4, 4), lengths=MANY[::3], is_repeated=True),
    Case(
        name="preemption",
        model=neox(256, 4, 4),
        lengths=[60] * 16,
        num_tokens=80,
        engine=EngineConfig(max_batch_tokens=512, kv_tokens=1600, prefix_cache=False),
    ),
    Case(name="branches", model=neox(256, 4, 4), lengths=(33, 100, 250), has_branches=True),
    Case(name="grouped heads, norms, a window", model=qwen3((None, 100, None, 300)), lengths=MANY, is_repeated=True, has_branches=True),
    Case(name="contexts of many parts", model=qwen3(), lengths=(1500, 1990, 700), engine=EngineConfig(kv_tokens=8192)),
    Case(name="contexts of many parts, one alone", model=neox(256, 4, 4), lengths=(1900,), engine=EngineConfig(kv_tokens=8192)),
    Case(name="experts", model=mixtral(), lengths=MANY, is_repeated=True, has_branches=True),
    Case(name="bfloat16, NeoX", model=neox(256, 4, 4), lengths=MANY, dtype=torch.bfloat16, is_repeated=True),
    Case(name="bfloat16, grouped heads", model=qwen3((None, 100, None, None)), lengths=MANY, dtype=torch.bfloat16, has_branches=True),
)


def random_model(config: DecoderConfig, dtype: torch.dtype) -> Decoder:
    """On the CPU in float32, all values representable in `dtype`; its choices depend on what it reads, and no bias is zero."""
    model = random_language_model(config, 0)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.mul_(2.0 if parameter.ndim >= 2 else 1.0).add_(torch.randn(parameter.shape, generator=generator), alpha=0.02)
    return model.to(dtype).float()


def prompts_of(lengths: Sequence[int]) -> Iterator[tuple[int, ...]]:
    generator = torch.Generator().manual_seed(len(lengths))
    for length in lengths:
        yield tuple(torch.randint(0, VOCAB_SIZE, (length,), generator=generator).tolist())


@dataclass(slots=True)
class Ran:
    """What an engine answered, and by which ways."""

    logprobs: dict[Request, list[float]] = field(default_factory=dict)
    num_copied: int = 0

    def answer(self, parts: EngineParts, prompts: Sequence[tuple[int, ...]], num_tokens: int, *, has_branches: bool) -> None:
        """All prompts at once. A branch takes another token where its trunk has its fifth, on the blocks that they share."""
        trunks = [self._request(prompt, num_tokens) for prompt in prompts]
        for request in trunks:
            parts.policy.add(request, 0.0)
        while parts.policy.has_work:
            schedule = parts.policy.plan(0.0)
            copies = parts.policy.take_copies()
            self.num_copied += len(copies)
            parts.runner.copy_blocks(copies)
            result = parts.runner.run(schedule)
            for error in result.failed.values():
                raise error
            parts.policy.commit(schedule, result.token_ids, 0.0)
            for request, scores in result.scores.items():
                self.logprobs[request] += [own for own, _ in scores]
            for trunk in trunks if has_branches else ():
                if len(trunk.output_ids) == BRANCH_AFTER and trunk in schedule:
                    known = trunk.token_ids(0, trunk.num_tokens)
                    parts.policy.fork(trunk, self._request((*known[:-1], (known[-1] + 1) % VOCAB_SIZE), num_tokens), 0.0)

    def _request(self, prompt: tuple[int, ...], num_tokens: int) -> Request:
        request = Request(id=str(len(self.logprobs)), prompt_ids=prompt, sampling=SAMPLING, max_tokens=num_tokens)
        self.logprobs[request] = []
        return request


@torch.inference_mode()
def judge(model: LanguageModel, request: Request, logprobs: Sequence[float]) -> tuple[float, float]:
    """How far the chosen tokens are from the most likely ones, and their log-probabilities from the model's own, at most."""
    ids = torch.tensor([[*request.prompt_ids, *request.output_ids]])
    hidden = model.hidden(ids, torch.arange(ids.shape[1])[None], causal_attention)[0, len(request.prompt_ids) - 1 : -1]
    expected: Tensor = model.logits(hidden).log_softmax(-1)
    chosen = expected.gather(-1, torch.tensor(request.output_ids)[:, None])[:, 0]
    return float((expected.amax(-1) - chosen).max()), float((chosen - torch.tensor(logprobs)).abs().max())


def check(case: Case, device: str = "cuda") -> dict[str, object]:
    """What came of a case; `is_right` says whether it stands."""
    reference = random_model(case.model, case.dtype)
    parts = assemble(copy.deepcopy(reference).to(device, case.dtype), case.engine)
    parts.runner.start_thread()
    ran = Ran()
    prompts = list(prompts_of(case.lengths))
    ran.answer(parts, prompts, case.num_tokens, has_branches=case.has_branches)
    if case.is_repeated:
        ran.answer(parts, [(*prompt, 7) for prompt in prompts], case.num_tokens, has_branches=False)
    judged = [judge(reference, request, logprobs) for request, logprobs in ran.logprobs.items()]
    gap, error = map(max, zip(*judged, strict=True))
    num_cached = sum(request.num_cached_tokens for request in ran.logprobs)
    ways = {"preemptions": parts.policy.num_preemptions, "cached_tokens": num_cached, "copied_blocks": ran.num_copied}
    were_taken = (
        (num_cached > 0 or not case.is_repeated)
        and (ran.num_copied > 0 or not case.has_branches)
        and (parts.policy.num_preemptions > 0 or case.name != "preemption")
    )
    return {
        "case": case.name,
        "mode": mode_of(parts.route),
        "answers": len(judged),
        **ways,
        "widest_gap": gap,
        "logprob_error": error,
        "tolerance": case.tolerance,
        "is_right": were_taken and gap <= case.tolerance and error <= case.tolerance,
    }


def main() -> int:
    """Returns 0 if all cases stand, 1 if not, 2 if there is no GPU."""
    if not torch.cuda.is_available():
        print("not measured: torch sees no GPU here", file=sys.stderr)
        return 2
    results = []
    with ProcessPoolExecutor(4, mp_context=get_context("spawn")) as pool:  # what takes time is the compiler, once for each kind of model
        for result in pool.map(check, CASES):
            results.append(result)
            print(json.dumps(result), flush=True)
    about = setting("benchmarks.serving.gpu_exactness", ["torch", "triton"])
    print(keep("gpu-exactness", {**about, "device": torch.cuda.get_device_name(), "cases": results}))
    return 0 if all(result["is_right"] for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
