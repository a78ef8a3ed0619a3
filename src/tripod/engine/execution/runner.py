"""One step of the model: schedule -> ragged batch -> hidden states -> the logits that are needed -> tokens and scores."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
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
    sample_s: float = 0.0

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
        self._kv_cache = kv_cache
        self._route = route
        self._masks = TokenMasks(model.config.vocab_size)

    def start_thread(self) -> None:
        """Called once on the thread that will run the steps."""
        self._route.start_thread()

    @torch.inference_mode()
    def run(self, schedule: Schedule) -> StepResult:
        """Compute the scheduled tokens. Reads the requests and changes none; the cache's blocks are written in place.

        A request that cannot be computed fails alone: where the whole raises, each half is computed by itself, until the culprits
        stand alone. Computing a token again writes the same keys and values again, so the others lose nothing but time.
        """
        with self._route.step():
            result = self._run(schedule)
        for request in result.failed:  # what it wrote may not be finite, and the next owner of the blocks masks by multiplying with zero
            self._kv_cache.clear(request.block_ids, request.num_computed_tokens, schedule[request])
        return result

    def _run(self, schedule: Schedule) -> StepResult:
        try:
            return self._compute(schedule)
        except Exception as error:
            requests = list(schedule)
            if len(requests) == 1:
                return StepResult(failed={requests[0]: error})
        result = StepResult()
        for half in (requests[: len(requests) // 2], requests[len(requests) // 2 :]):
            result.add(self._run({request: schedule[request] for request in half}))
        return result

    def _compute(self, schedule: Schedule) -> StepResult:
        result = StepResult()
        batch = RaggedBatch.of(schedule, self._kv_cache.spec.block_size, self._model.device)
        attend = self._kv_cache.attend(batch)
        masks = self._masks.begin([request for request, num_tokens in schedule.items() if _is_sampled(request, num_tokens)])
        prepared = time.perf_counter()
        hidden = self._model.hidden(batch.token_ids, batch.positions, attend)  # [N, D]
        sound = hidden.sum(-1, dtype=torch.float32).isfinite().tolist()  # [N]: a sum is not finite if any of its terms is not
        sampled: list[Request] = []
        rows: list[int] = []
        end = 0
        for request, num_tokens in schedule.items():
            start, end = end, end + num_tokens
            if not all(sound[start:end]):
                result.failed[request] = _not_finite("hidden state", request)
                continue
            if request.num_scored_tokens < len(request.prompt_ids):
                result.prompt_scores[request] = self._score_prompt(request, hidden[start:end])
            if _is_sampled(request, num_tokens):
                sampled.append(request)
                rows.append(end - 1)
        computed = time.perf_counter()
        if sampled:
            last = hidden if len(rows) == len(hidden) else hidden[rows]  # [R, D]
            if all(map(_needs_no_logits, sampled)):
                self._take(sampled, sound_tokens(*self._route.greedy(self._model, last)), result)
                computed = time.perf_counter()
            else:
                logits = self._model.logits(last)  # [R, V]
                computed = time.perf_counter()
                self._sample(sampled, logits, masks, result)
        result.model_s = computed - prepared
        result.sample_s = time.perf_counter() - computed
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

    def _score_prompt(self, request: Request, hidden: Tensor) -> list[TokenScore]:
        """Scores of the prompt's tokens that follow the rows of this chunk: [num_tokens, D]."""
        first = request.num_computed_tokens + 1  # the token that row 0 predicts
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
