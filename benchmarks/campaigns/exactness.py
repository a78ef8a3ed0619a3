"""Runs seeded random schedules on every route, and judges each logit: against transformers in float32, and against itself on other paths.

    python -m benchmarks.campaigns exactness [--schedules 6] [--seed 0] [--out benchmarks/results]

A schedule is a random engine (block size, pool, batch, prefix cache on or off) and random requests over it: shared beginnings, several
answers to one prompt, forks at any moment, priorities, tenants, deadlines, aborts, pools so small that requests are preempted. The
promises: every row of logits is that of transformers within the route's tolerance; where the route is batch-invariant, a row is a
function of the tokens before it, bit for bit, over all schedules; and so is an answer, given its prompt and its seed.

Sparse models: where two experts are nearly equal, rounding takes the other one, and what follows is far from transformers' and no worse. So
a row is held to the tolerance if rounding cannot have done that: in transformers, in float32, the last chosen expert leads the first that
is not by more than the route's error allows, for the row in every layer and for the tokens before it in every layer but the last, whose
choices no other row sees. All other rows ("unsure") are compared bit for bit alone, where a route promises bits. Of a router of random
weights (`mixtral`) nearly all rows are held in float32, few in bfloat16 and next to none in int8 and int4; so there is one that is sure
of itself as well (`mixtral-sure`: most of what it reads says which token it is). Of that one on every route, and of the other in
float32, nine tenths must be held. Experts that are kept in memory by use must give the bits of all in memory.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import tempfile
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn

from benchmarks.setting import setting
from benchmarks.shared_data import DATA
from tripod.engine.assemble import assemble
from tripod.engine.engine_config import EngineConfig
from tripod.engine.execution.kv_cache import KVCacheDtype
from tripod.engine.execution.route import Kernels
from tripod.engine.policy.request import Request
from tripod.errors import TripodError
from tripod.models.gpt_neox import GPTNeoX, GPTNeoXConfig
from tripod.models.initialize import random_language_model
from tripod.models.llama import Llama, LlamaBlock, LlamaConfig
from tripod.models.load import load_language_model
from tripod.models.moe import SparseMLP
from tripod.models.save import save_checkpoint
from tripod.models.sparse_llama import SparseLlama, SparseLlamaConfig
from tripod.ops.attention import Attend
from tripod.ops.linear import WeightFormat
from tripod.ops.moe_routing import RouterConfig
from tripod.ops.rope import RopeConfig
from tripod.sampling import SamplingParams

NEOX = GPTNeoXConfig(
    vocab_size=259, hidden_size=60, intermediate_size=140, num_layers=2, num_heads=5, max_positions=160, rope=RopeConfig(rotary_dim=6)
)
LLAMA = LlamaConfig(
    vocab_size=259, hidden_size=64, intermediate_size=88, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=16, max_positions=160,
    rope=RopeConfig(rotary_dim=16),
)  # fmt: skip
QWEN3 = LlamaConfig(
    model_type="qwen3", vocab_size=259, hidden_size=48, intermediate_size=96, num_layers=2, num_heads=6, num_kv_heads=2, head_dim=8,
    max_positions=160, rope=RopeConfig(rotary_dim=8), qk_norm=True,
)  # fmt: skip
MIXTRAL = SparseLlamaConfig(
    model_type="mixtral", dense=replace(LLAMA, model_type="mistral", intermediate_size=52), expert_size=52,
    router=RouterConfig(num_experts=4, top_k=2, is_normalized=True, precision="model"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class RouteCase:
    """A route, and how far its logits may be from float32: root mean square of the difference over that of the logits."""

    kernels: Kernels
    weight_format: WeightFormat
    batch_invariant: bool
    tolerance: float
    kv_cache_dtype: KVCacheDtype | None = None
    expert_cache: int | None = None

    @property
    def name(self) -> str:
        return self.arithmetic + (f", {self.expert_cache} experts in memory" if self.expert_cache else "")

    @property
    def arithmetic(self) -> str:
        """All that may decide the bits of a row: where experts lie does not."""
        kv = f", {self.kv_cache_dtype} keys and values" if self.kv_cache_dtype else ""
        return f"{self.kernels} {self.weight_format}{kv}" + (", batch-invariant" if self.batch_invariant else "")


# Float32 sums in another order. bfloat16 keeps 8 bits of every factor, int8 about 7 of the largest in a row, int4 not quite 4 in a group;
# the kernels themselves are held to their formats, bit by bit where that is possible, in tests/ops/kernels.
TOLERANCES: Mapping[WeightFormat, float] = {"f32": 1e-5, "bf16": 3e-2, "int8": 1e-1, "int4": 6e-1}
INT8_KV = 3e-2  # what is added by keys and values of about 7 bits, and by queries and weights of 8
WORST = 3.0  # times the tolerance: the farthest of thousands of rows, of which some are small themselves
WORST_INT8_KV = 4.0  # 3.5 was seen, of 14,104 rows
ROUTES = (
    *(RouteCase("torch", name, False, TOLERANCES[name]) for name in ("f32", "bf16", "int8")),
    *(RouteCase("torch", name, True, TOLERANCES[name]) for name in ("f32", "bf16", "int8")),
    *(RouteCase("native", name, True, TOLERANCES[name]) for name in ("f32", "bf16", "int8", "int4")),
    *(RouteCase("native", name, True, TOLERANCES[name] + INT8_KV, "int8") for name in ("f32", "int8")),
)
SPARSE_ROUTES = (*ROUTES, *(RouteCase("native", name, True, TOLERANCES[name], expert_cache=5) for name in ("f32", "int4")))  # 5 of 8
LEAD = 2 * WORST  # times the tolerance: so far ahead is an expert that rounding does not unseat where two logits move by WORST each
LEAST_HELD = 0.9  # of a schedule's rows, to the tolerance


Model: TypeAlias = GPTNeoX | Llama | SparseLlama


def random_model(config: GPTNeoXConfig | LlamaConfig | SparseLlamaConfig) -> Model:
    """Random weights, scaled up so that choices depend on the context, and biases that are not zero."""
    model = random_language_model(config, 3)
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2:
            parameter.mul_(3.0)
        elif name.endswith("bias"):
            parameter.add_(0.1)
    return model


def sure_of_its_experts(model: SparseLlama) -> SparseLlama:
    """Each token likes two experts, drawn at random: the first places of its embedding say which not, no layer writes there, and routers
    hardly read anything else. How much of either of the two is for the context to decide.
    """
    num_experts, top_k = model.config.router.num_experts, model.config.router.top_k
    draw = torch.Generator().manual_seed(0)
    liked = torch.stack([torch.randperm(num_experts, generator=draw) < top_k for _ in range(model.config.vocab_size)])
    model.embedding.weight[:, :num_experts] = torch.where(liked, 0.0, -1.0)
    for block in model.blocks:
        assert isinstance(block, LlamaBlock)
        assert isinstance(block.mlp, SparseMLP)
        block.attention.output.weight[:num_experts] = 0.0
        block.mlp.experts.down[:, :num_experts] = 0.0
        block.mlp.router.weight.mul_(0.3)
        block.mlp.router.weight[:, :num_experts] = 30.0 * torch.eye(num_experts)
    return model


MODELS: Mapping[str, Callable[[], Any]] = {
    "gpt_neox": lambda: random_model(NEOX),
    "llama": lambda: random_model(LLAMA),
    "qwen3": lambda: random_model(QWEN3),
    "mixtral": lambda: random_model(MIXTRAL),
    "mixtral-sure": lambda: sure_of_its_experts(cast("SparseLlama", random_model(MIXTRAL))),
    "stories260K": lambda: load_language_model(DATA / "stories260K" / "stories260K.bin"),
}


def routes_of(name: str) -> tuple[RouteCase, ...]:
    """Those that a model has."""
    return SPARSE_ROUTES if name.startswith("mixtral") else ROUTES


@dataclass(frozen=True, slots=True)
class Truth:
    """What transformers make of a sequence in float32."""

    logits: Tensor  # [T, V]
    lead: Tensor  # [T]: the least by which an expert that the row depends on was chosen; infinite in a dense model

    def is_held(self, position: int, tolerance: float) -> bool:
        """Whether a route of that tolerance has chosen the same experts."""
        return float(self.lead[position]) >= LEAD * tolerance


class Routers:
    """How sure a sparse model is of the experts that it chose."""

    def __init__(self, model: SparseLlama) -> None:
        self._top_k = model.config.router.top_k
        self._moves = [_move(block) for block in model.blocks]

    def lead(self, router_logits: Sequence[Tensor]) -> Tensor:
        """`Truth.lead` from what the router of each layer made of each token: [T, E] each."""
        leads = []
        for logits, move in zip(router_logits, self._moves, strict=True):
            best = logits.sort(-1, descending=True).values
            leads.append((best[:, self._top_k - 1] - best[:, self._top_k]) / move)
        *inner, last = leads  # what the last layer chose for earlier tokens is seen by no later row
        return torch.stack([*(lead.cummin(0).values for lead in inner), last]).amin(0)


def _move(block: nn.Module) -> float:
    """By how much a router's logits move, in the root mean square, if all that layers wrote into its input moves by its own size.

    The input's entries are 1 in the root mean square, so it is the length of the weights that read what was written.
    """
    assert isinstance(block, LlamaBlock)
    assert isinstance(block.mlp, SparseMLP)
    is_written = (block.attention.output.weight != 0).any(1) | (block.mlp.experts.down != 0).any(2).any(0)  # [D]
    return float((block.mlp.router.weight * is_written).square().sum(1).mean().sqrt())


class Judge:
    """What is known of one model: transformers' logits, and what each route said before."""

    def __init__(self, model: Model) -> None:
        from transformers import AutoModelForCausalLM
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        self.model = model
        with tempfile.TemporaryDirectory() as folder:
            save_checkpoint(model, Path(folder))
            self._theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self._routers = Routers(model) if isinstance(model, SparseLlama) else None
        self._truths: dict[tuple[int, ...], Truth] = {}
        self.bits: dict[tuple[str, bytes], tuple[bytes, str]] = {}  # by route and tokens: the logits' digest, and where they came from
        self.answers: dict[tuple[str, tuple[int, ...], float, int], list[int]] = {}  # by route, prompt, temperature and seed
        source = random.Random(0)
        beginnings = [[source.randrange(259) for _ in range(40)] for _ in range(3)]
        self.prompts = [
            (*beginnings[number % 3][: source.choice((0, 16, 33, 40))], *(source.randrange(259) for _ in range(source.randint(1, 20))))
            for number in range(14)
        ]

    @torch.inference_mode()
    def truth(self, token_ids: tuple[int, ...]) -> Truth:
        """Of one whole sequence."""
        if token_ids not in self._truths:
            if self._routers is None:
                lead, theirs = torch.full((len(token_ids),), torch.inf), self._theirs(torch.tensor([token_ids]))
            else:
                theirs = self._theirs(torch.tensor([token_ids]), output_router_logits=True)
                lead = self._routers.lead(theirs.router_logits)
            self._truths[token_ids] = Truth(theirs.logits[0], lead)
        return self._truths[token_ids]


class _Watched:
    """A model that keeps what it gave in the last step."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.config, self.dtype, self.device = inner.config, inner.dtype, inner.device
        self.rows = torch.empty(0)
        self.given: list[Tensor] = []

    def hidden(self, token_ids: Tensor, positions: Tensor, attend: Attend, rows: Sequence[int] | None = None) -> Tensor:
        """All rows, to be judged, and then those that were asked for, which must have the same bits."""
        self.rows, self.given = self._inner.hidden(token_ids, positions, attend), []
        if rows is None:
            return self.rows
        kept: Tensor = self._inner.hidden(token_ids, positions, attend, rows)
        if not torch.equal(kept, self.rows[rows]):
            raise AssertionError(f"rows {rows} alone differ from what they are among all")
        return kept

    def logits(self, hidden: Tensor) -> Tensor:
        self.given.append(self._inner.logits(hidden))
        return self.given[-1]

    def greedy(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """What the native kernels find without writing the logits, and the logits beside it."""
        token_ids, largest = self._inner.greedy(hidden)
        logits = self.logits(hidden)
        if not (torch.equal(token_ids, logits.argmax(-1)) and torch.equal(largest, logits.amax(-1).float())):
            raise AssertionError(f"of logits {logits} the kernels took {token_ids} with {largest}")
        return token_ids, largest

    @torch.inference_mode()
    def all_logits(self) -> Tensor:
        """[N, V] of every token of the step, wanted by the engine or not."""
        return self._inner.logits(self.rows).float()


@dataclass(slots=True, kw_only=True)
class Outcome:
    """One schedule."""

    model: str
    route: str
    seed: int
    num_steps: int = 0
    num_rows: int = 0  # of logits that were judged
    num_unsure: int = 0  # of these, not held to the tolerance: experts that are nearly equal
    num_again: int = 0  # of these, whose tokens had been computed on another path before, bits compared
    num_cached_tokens: int = 0
    num_preemptions: int = 0
    num_forks: int = 0
    num_copies: int = 0  # of blocks, before somebody wrote to a shared one
    num_cut: int = 0  # requests that were aborted or whose deadline passed
    most_requests: int = 0  # in one step
    distance: float = 0.0  # of all rows that are held from transformers', as in RouteCase
    worst: float = 0.0  # of one row
    failures: list[str] = field(default_factory=list)  # empty if the promises held


def run_schedule(name: str, judge: Judge, route: RouteCase, seed: int) -> Outcome:
    """Draw one engine and its requests, run them to their ends, and judge every row."""
    return _Schedule(name, judge, route, seed).run()


class _Schedule:
    def __init__(self, name: str, judge: Judge, route: RouteCase, seed: int) -> None:
        self.draw = random.Random(f"{name} {seed}")
        self.judge, self.route = judge, route
        self.outcome = Outcome(model=name, route=route.name, seed=seed)
        is_roomy = seed % 2 == 0  # many at once; else few blocks, and preemptions
        most = 32 if is_roomy else self.draw.choice((1, 4, 32))
        block_size = self.draw.choice((3, 8, 16))
        config = EngineConfig(
            block_size=16 if route.kernels == "native" else block_size,
            kv_tokens=4096 if is_roomy else self.draw.choice((112, 112, 176)),
            max_num_requests=most,
            max_batch_tokens=most + self.draw.choice((0, 3, 40, 300)),
            prefix_cache=self.draw.random() < 0.8,
            weight_format=route.weight_format,
            kernels=route.kernels,
            batch_invariant=route.batch_invariant,
            kv_cache_dtype=route.kv_cache_dtype,
            expert_cache=route.expert_cache,
        )
        parts = assemble(judge.model, config)
        self.policy, self.runner = parts.policy, parts.runner
        self.watched = self.runner._model = _Watched(self.runner._model)  # type: ignore[assignment]
        self.runner.start_thread()
        self.requests: list[Request] = []
        self.rows: list[tuple[Request, int, Tensor]] = []  # [V] of the token at a position
        self.now = 0.0

    def run(self) -> Outcome:
        num_to_come, num_forks_to_come = self.draw.randint(12, 30), 10
        while num_to_come > 0 or self.policy.has_work:
            self.now += 0.01
            if num_to_come > 0 and (not self.policy.has_work or self.draw.random() < 0.7):
                num_to_come -= self._ask(self.draw.choice((1, 3, 8)))
            if num_forks_to_come and self.policy.running and self.draw.random() < 0.15:
                num_forks_to_come -= 1
                self._fork(self.draw.choice(self.policy.running))
            if self.policy.has_work and self.draw.random() < 0.01:
                self.policy.finish(self.draw.choice(list(self.policy.requests())), "abort")
                self.outcome.num_cut += 1
            self.outcome.num_cut += len(self.policy.expire(self.now))
            if self.policy.has_work:
                self._step()
        self._judge()
        return self.outcome

    def _ask(self, num_prompts: int) -> int:
        for _ in range(num_prompts):
            prompt = self.draw.choice(self.judge.prompts)
            for _ in range(self.draw.choice((1, 1, 1, 2, 4))):  # answers to one prompt
                request = self._request(prompt)
                self.policy.add(request, self.now)
                self.requests.append(request)
        return num_prompts

    def _request(self, prompt_ids: Sequence[int]) -> Request:
        temperature = self.draw.choice((0.0, 0.0, 0.8))
        return Request(
            id=str(len(self.requests)),
            prompt_ids=tuple(prompt_ids),
            sampling=SamplingParams(temperature=temperature),
            max_tokens=self.draw.choice((0, 1, 9, 40)),
            seed=self.draw.randrange(3),
            score_from=self.draw.choice((None, None, None, 1)),
            priority=self.draw.randint(-1, 1),
            tenant=self.draw.choice(("", "a")),
            deadline_s=self.draw.choice((None, None, None, None, None, self.now + 0.5)),
        )

    def _fork(self, source: Request) -> None:
        known = source.token_ids(0, source.num_tokens)
        cut = self.draw.choice((len(known), len(known), self.draw.randint(1, len(known))))
        request = self._request([*known[:cut], *self.draw.choice(((), (), (7,)))])
        try:
            self.policy.fork(source, request, self.now)
        except TripodError:  # too long after many forks
            return
        self.requests.append(request)
        self.outcome.num_forks += request.num_computed_tokens > 0

    def _step(self) -> None:
        outcome, num_preemptions = self.outcome, self.policy.num_preemptions
        schedule = self.policy.plan(self.now)
        copies = self.policy.take_copies()
        self.runner.copy_blocks(copies)
        result = self.runner.run(schedule)
        outcome.failures += [f"request {request.id} failed: {error}" for request, error in result.failed.items()]
        logits = self.watched.all_logits()
        sampled = dict(zip(result.token_ids, self.watched.given[-1].float() if result.token_ids else (), strict=True))
        end = 0
        for request, num_tokens in schedule.items():
            start, end = end, end + num_tokens
            first = request.num_computed_tokens
            own = [(first + place, logits[start + place]) for place in range(num_tokens)]
            if request in sampled:
                own.append((first + num_tokens - 1, sampled[request]))
            for position, row in own:
                self.rows.append((request, position, row.clone()))
                if self.route.batch_invariant:
                    self._compare_bits(request, position, row)
        outcome.num_steps += 1
        outcome.num_copies += len(copies)
        outcome.num_preemptions += self.policy.num_preemptions - num_preemptions
        outcome.most_requests = max(outcome.most_requests, len(schedule))
        self.policy.commit(schedule, result.token_ids, self.now)

    def _compare_bits(self, request: Request, position: int, row: Tensor) -> None:
        tokens = hashlib.sha256(array("l", request.token_ids(0, position + 1)).tobytes()).digest()
        found = hashlib.sha256(row.contiguous().numpy().tobytes()).digest()
        here = f"schedule {self.outcome.seed}, step {self.outcome.num_steps}"
        known, where = self.judge.bits.setdefault((self.route.arithmetic, tokens), (found, here))
        self.outcome.num_again += where != here
        if known != found:
            self.outcome.failures.append(f"{here}: the logits after token {position} of request {request.id} differ from those of {where}")

    def _judge(self) -> None:
        outcome, route = self.outcome, self.route
        if self.policy.blocks.num_available != self.policy.config.num_blocks or self.policy.reclaim():
            outcome.failures.append("blocks are missing when all is done")
        truths = {request: self.judge.truth((*request.prompt_ids, *request.output_ids)) for request in self.requests}
        away, size = 0.0, 0.0
        for request, position, row in self.rows:
            if not truths[request].is_held(position, route.tolerance):
                outcome.num_unsure += 1
                continue
            truth = truths[request].logits[position]
            ours, theirs = float((row - truth).square().sum()), float(truth.square().sum())
            away, size, distance = away + ours, size + theirs, (ours / theirs) ** 0.5
            outcome.worst = max(outcome.worst, distance)
            if not distance <= (WORST if route.kv_cache_dtype is None else WORST_INT8_KV) * route.tolerance:
                outcome.failures.append(f"request {request.id}, token {position}: {distance:.2e} away from transformers")
        outcome.distance = (away / size) ** 0.5 if size else 0.0
        if not outcome.distance <= route.tolerance:
            outcome.failures.append(f"all rows together are {outcome.distance:.2e} away from transformers")
        outcome.num_rows = len(self.rows)
        rounds = route.weight_format != "f32" or route.kv_cache_dtype is not None
        if not (outcome.model == "mixtral" and rounds) and outcome.num_unsure > (1 - LEAST_HELD) * outcome.num_rows:
            outcome.failures.append(f"of {outcome.num_rows} rows {outcome.num_unsure} are not held to the tolerance")
        outcome.num_cached_tokens = sum(request.num_cached_tokens for request in self.requests)
        for request in self.requests:
            # In keys and values of 8 bits a choice may be off by as much as a row: it is judged with the rows.
            if route.weight_format == "f32" and route.kv_cache_dtype is None and request.sampling.temperature == 0.0:
                self._judge_greedy(request, truths[request])
            if route.batch_invariant:
                self._judge_answer(request)

    def _judge_greedy(self, request: Request, truth: Truth) -> None:
        for place, token_id in enumerate(request.output_ids):
            position = len(request.prompt_ids) + place - 1
            row = truth.logits[position]
            if truth.is_held(position, self.route.tolerance) and float(row.max() - row[token_id]) > self.route.tolerance * float(
                row.abs().max()
            ):
                self.outcome.failures.append(f"request {request.id}, output {place}: {token_id} is not transformers' choice")

    def _judge_answer(self, request: Request) -> None:
        key = (self.route.arithmetic, request.prompt_ids, request.sampling.temperature, request.seed)
        known = self.judge.answers.setdefault(key, request.output_ids)
        num_both = min(len(known), len(request.output_ids))
        if known[:num_both] != request.output_ids[:num_both]:
            self.outcome.failures.append(f"request {request.id} was answered otherwise before, with the same seed")
        elif len(request.output_ids) > len(known):
            self.judge.answers[key] = request.output_ids


def main(arguments: list[str]) -> int:
    """Runs the campaign; 0 if the promises held and everything that they speak of happened."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.campaigns exactness", description=__doc__)
    parser.add_argument("--schedules", type=int, default=6, help="of each model on each route")
    parser.add_argument("--seed", type=int, default=0, help="the first of them")
    parser.add_argument("--models", nargs="+", choices=sorted(MODELS), default=[*MODELS])
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    outcomes: list[Outcome] = []
    with (options.out / "exactness.jsonl").open("w", encoding="utf-8") as log:
        log.write(json.dumps(setting("benchmarks.campaigns", ("torch", "transformers"))) + "\n")
        for name in options.models:
            judge = Judge(MODELS[name]())
            for route in routes_of(name):
                ours = [run_schedule(name, judge, route, options.seed + number) for number in range(options.schedules)]
                log.writelines(json.dumps(asdict(outcome)) + "\n" for outcome in ours)
                outcomes += ours
                print(_line(name, route, ours), *(f for outcome in ours for f in outcome.failures[:3]), sep="\n    ", flush=True)
    what = ("steps", "rows", "again", "cached_tokens", "preemptions", "forks", "copies", "cut")
    totals = {name: sum(getattr(outcome, f"num_{name}") for outcome in outcomes) for name in what}
    num_failed = sum(bool(outcome.failures) for outcome in outcomes)
    print(f"{len(outcomes)} schedules, {num_failed} failed; " + ", ".join(f"{count} {name}" for name, count in totals.items()))
    return 1 if num_failed or not all(totals.values()) else 0


def _line(name: str, route: RouteCase, outcomes: Sequence[Outcome]) -> str:
    rows, unsure, again = (sum(getattr(outcome, what) for outcome in outcomes) for what in ("num_rows", "num_unsure", "num_again"))
    distance, worst = (max(getattr(outcome, what) for outcome in outcomes) for what in ("distance", "worst"))
    told = f"{distance:.1e} from transformers ({route.tolerance:g} allowed), the worst row {worst:.1e}"
    if unsure == rows:
        told = "none held to transformers"
    not_held = f" ({unsure / rows:.1%} unsure)" if unsure else ""
    return f"{name:12} {route.name:50} {rows:7} rows{not_held}, {again:7} of them again, {told}"
