"""One step of the model: schedule -> ragged batch -> hidden states -> the logits that are needed -> tokens and scores."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TypeAlias

import torch
from torch import Tensor

from tripod.engine.execution.kv_cache import KVCache
from tripod.engine.execution.ragged_batch import RaggedBatch
from tripod.engine.execution.route import Route
from tripod.engine.execution.sampler import is_plain, sample, score, sound_tokens
from tripod.engine.grammar.masks import PendingMasks, TokenMasks
from tripod.engine.policy.policy import Schedule
from tripod.engine.policy.request import Request
from tripod.errors import EngineError
from tripod.models.language_model import LanguageModel

TokenScore: TypeAlias = tuple[float, list[tuple[int, float]]]  # own log-probability; the best (token id, log-probability)

_SCORED_ROWS = 256  # of logits held at once while a prompt is scored


@dataclass(slots=True)
class StepResult:
    """What a step brought, and how long its parts took."""

    token_ids: dict[Request, list[int]] = field(default_factory=dict)  # new tokens, of the requests that got any
    scores: dict[Request, list[TokenScore]] = field(default_factory=dict)  # of the new tokens, where logprobs are wanted
    prompt_scores: dict[Request, list[TokenScore]] = field(default_factory=dict)  # of the prompt's tokens from num_scored_tokens on
    failed: dict[Request, Exception] = field(default_factory=dict)  # requests that could not be computed; they are in none of the others
    model_s: float = 0.0
    sample_s: float = 0.0  # on a GPU, with the wait for what the model has launched

    def fail(self, request: Request, error: Exception) -> None:
        """Take back what the step brought this request."""
        self.failed[request] = error
        for brought in (self.token_ids, self.scores, self.prompt_scores):
            brought.pop(request, None)

    def follow_grammars(self) -> None:
        """Move the matchers on by what was sampled. Before the commit, which asks them whether a text is over."""
        for request, token_ids in list(self.token_ids.items()):
            if request.matcher is not None:
                try:
                    for token_id in token_ids:
                        request.matcher.accept(token_id)
                except EngineError as error:
                    self.fail(request, error)

    def add(self, other: StepResult) -> None:
        """Take in the result of other requests of the same step."""
        self.token_ids |= other.token_ids
        self.scores |= other.scores
        self.prompt_scores |= other.prompt_scores
        self.failed |= other.failed
        self.model_s += other.model_s
        self.sample_s += other.sample_s


class Runner:
    """Carries schedules out on one device. Which block of the cache is whose, the policy decides."""

    def __init__(self, model: LanguageModel, kv_cache: KVCache, route: Route) -> None:
        self._model = model
        self._device = model.device
        self._kv_cache = kv_cache
        self._route = route
        self._masks = TokenMasks(model.config.vocab_size)

    def start_thread(self) -> None:
        """Called once on the thread that will run the steps."""
        self._route.start_thread()

    @property
    def is_asynchronous(self) -> bool:
        """Steps are launched first and waited for then."""
        return self._device.type == "cuda"

    @torch.inference_mode()
    def run(self, schedule: Schedule, meanwhile: Callable[[], None] = lambda: None) -> StepResult:
        """Compute the scheduled tokens. Reads the requests and changes none; the cache's blocks are written in place.

        A request that cannot be computed fails alone: where the whole raises, each half is computed by itself, until the culprits
        stand alone. Computing a token again writes the same keys and values again, so the others lose nothing but time.

        Args:
            schedule: of the policy.
            meanwhile: done when the work is launched, before its outcome is waited for.
        """
        with self._route.step():
            result = self._run(schedule, meanwhile)
        for request in result.failed:  # what it wrote may not be finite, and the next owner of the blocks masks by multiplying with zero
            self._kv_cache.clear(request.block_ids, request.num_computed_tokens, schedule[request])
        return result

    def _run(self, schedule: Schedule, meanwhile: Callable[[], None]) -> StepResult:
        try:
            return self._compute(schedule, meanwhile)
        except Exception as error:
            requests = list(schedule)
            if len(requests) == 1:
                return StepResult(failed={requests[0]: error})
        result = StepResult()
        for half in (requests[: len(requests) // 2], requests[len(requests) // 2 :]):
            result.add(self._run({request: schedule[request] for request in half}, meanwhile))
        return result

    def _compute(self, schedule: Schedule, meanwhile: Callable[[], None]) -> StepResult:
        result = StepResult()
        batch = RaggedBatch.of(schedule, self._kv_cache.spec.block_size, self._device)
        attend = self._kv_cache.attend(batch)
        masks = self._masks.begin([request for request, num_tokens in schedule.items() if _is_sampled(request, num_tokens)])
        prepared = time.perf_counter()
        num_kept = [_num_looked_at(request, num_tokens) for request, num_tokens in schedule.items()]
        kept = [row for span, num in zip(batch.spans, num_kept, strict=True) for row in range(span.rows.stop - num, span.rows.stop)]
        hidden = self._route.hidden(self._model, batch, attend, kept if len(kept) < len(batch.token_ids) else None)  # [K, D]
        rows = {request: slice(stop - num, stop) for request, num, stop in zip(schedule, num_kept, accumulate(num_kept), strict=True)}
        for request, own in rows.items():
            if request.is_scored:
                result.prompt_scores[request] = self._score_prompt(request, request.num_computed_tokens + schedule[request], hidden[own])
        sampled = [request for request, num_tokens in schedule.items() if _is_sampled(request, num_tokens)]
        # Nothing is looked at before all is launched: looking waits for the device, which then waits for us.
        is_sound = None if len(sampled) == len(hidden) else _is_sound(hidden)
        ends = [rows[request].stop - 1 for request in sampled]
        last = hidden[ends] if 0 < len(ends) < len(hidden) else hidden  # [R, D]
        if not sampled:
            meanwhile()
        elif all(map(_needs_no_logits, sampled)):
            best = self._route.greedy(self._model, last)
            meanwhile()
            self._take(sampled, sound_tokens(*best), result)
        else:
            logits = self._model.logits(last)  # [R, V]
            meanwhile()
            computed = time.perf_counter()
            self._sample(sampled, logits, masks, result)
            result.sample_s = time.perf_counter() - computed
        if is_sound is not None or result.failed:  # else all rows have logits, which are finite only where the states are
            sound = (_is_sound(hidden) if is_sound is None else is_sound).tolist()
            for request, own in rows.items():
                if not all(sound[own]):
                    result.fail(request, _not_finite("hidden state", request))
        result.model_s = time.perf_counter() - prepared - result.sample_s
        return result

    def _sample(self, requests: list[Request], logits: Tensor, masks: PendingMasks | None, result: StepResult) -> None:
        """Choose from logits, [R, V]."""
        token_ids = sample(
            logits,
            requests,
            ruled_out=None if masks is None else masks.wait(requests, logits.device),
            argmax=self._route.argmax,
        )
        self._take(requests, token_ids, result)
        scored = [row for row, request in enumerate(requests) if request.sampling.logprobs is not None and request in result.token_ids]
        if scored:
            chosen = [token_id for row in scored if (token_id := token_ids[row]) is not None]
            num_top = max(requests[row].sampling.logprobs or 0 for row in scored)
            for row, (own, top) in zip(scored, score(logits[scored], chosen, num_top), strict=True):
                result.scores[requests[row]] = [(own, top[: requests[row].sampling.logprobs])]

    def _take(self, requests: Sequence[Request], token_ids: Sequence[int | None], result: StepResult) -> None:
        """Give each request its token, or its error."""
        for request, token_id in zip(requests, token_ids, strict=True):
            error = request.matcher.error if request.matcher is not None else None
            if token_id is None or error is not None:
                result.fail(request, error or _not_finite("logit", request))
            else:
                result.token_ids[request] = [token_id]

    def _score_prompt(self, request: Request, chunk_end: int, hidden: Tensor) -> list[TokenScore]:
        """Scores of the prompt's tokens that follow the last rows of the chunk that ends before this token: [num_rows, D]."""
        first = chunk_end + 1 - len(hidden)  # the token that row 0 predicts
        begin = max(request.num_scored_tokens, first)
        end = min(first + len(hidden), len(request.prompt_ids))
        scores: list[TokenScore] = []
        for token in range(begin, end, _SCORED_ROWS):
            last = min(token + _SCORED_ROWS, end)
            logits = self._model.logits(hidden[token - first : last - first])
            scores += score(logits, request.prompt_ids[token:last], request.sampling.prompt_logprobs or 0)
        return scores

    def copy_blocks(self, copies: Sequence[tuple[int, int]]) -> None:
        """Copy whole blocks, (source, target) each, before the step that writes to the targets."""
        self._kv_cache.copy_blocks(copies)


def _num_looked_at(request: Request, num_tokens: int) -> int:
    """Of its last rows: those that predict tokens of the prompt to be scored, and the very last, which shows if what it saw is sound."""
    num_before = max(0, request.num_scored_tokens - 1 - request.num_computed_tokens)
    return max(1, num_tokens - num_before) if request.is_scored else 1


def _is_sound(hidden: Tensor) -> Tensor:
    """[N, D] -> [N]: a sum is not finite if any of its terms is not."""
    return hidden.sum(-1, dtype=torch.float32).isfinite()


def _is_sampled(request: Request, num_tokens: int) -> bool:
    """It gets a new token: with these, all its known ones are computed."""
    return num_tokens == request.num_pending_tokens and request.max_tokens > 0


def _needs_no_logits(request: Request) -> bool:
    """Its next token is the most likely one, and nobody asks how likely."""
    return is_plain(request) and request.matcher is None and request.sampling.logprobs is None


def _not_finite(what: str, request: Request) -> EngineError:
    return EngineError(
        f"the model gave a {what} that is not a finite number, after {request.num_computed_tokens} computed tokens; "
        "the weights may be damaged, or overflow in this precision"
    )
