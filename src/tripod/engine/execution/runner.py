"""One step of the model: schedule -> ragged batch -> hidden states -> the logits that are needed -> tokens and scores."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor

from tripod.engine.execution.kv_cache import KVCacheSpec
from tripod.engine.execution.paged_attention import PagedAttention
from tripod.engine.execution.ragged_batch import RaggedBatch
from tripod.engine.execution.sampler import sample, score
from tripod.engine.policy.policy import Schedule
from tripod.engine.policy.request import Request
from tripod.models.language_model import LanguageModel

TokenScore: TypeAlias = tuple[float, list[tuple[int, float]]]  # own log-probability; the best (token id, log-probability)

_SCORED_ROWS = 256  # of logits held at once while a prompt is scored


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step brought."""

    token_ids: dict[Request, list[int]] = field(default_factory=dict)  # new tokens, of the requests that got any
    scores: dict[Request, list[TokenScore]] = field(default_factory=dict)  # of the new tokens, where logprobs are wanted
    prompt_scores: dict[Request, list[TokenScore]] = field(default_factory=dict)  # of the prompt's tokens from num_scored_tokens on


class Runner:
    """Carries schedules out on one device. It owns the KV pool; which block is whose, the policy decides."""

    def __init__(self, model: LanguageModel, spec: KVCacheSpec) -> None:
        self._model = model
        self._block_size = spec.block_size
        self._kv_cache = spec.allocate(model.device)

    @torch.inference_mode()
    def run(self, schedule: Schedule) -> StepResult:
        """Compute the scheduled tokens. Reads the requests and changes none; the pool's blocks are written in place."""
        batch = RaggedBatch.of(schedule, self._block_size, self._model.device)
        hidden = self._model.hidden(batch.token_ids, batch.positions, PagedAttention(self._kv_cache, batch))  # [N, D]
        result = StepResult()
        sampled: list[Request] = []
        rows: list[int] = []
        end = 0
        for request, num_tokens in schedule.items():
            start, end = end, end + num_tokens
            if request.num_scored_tokens < len(request.prompt_ids):
                result.prompt_scores[request] = self._score_prompt(request, hidden[start:end])
            if num_tokens == request.num_pending_tokens and request.max_tokens > 0:
                sampled.append(request)
                rows.append(end - 1)
        if sampled:
            self._sample(sampled, hidden if len(rows) == len(hidden) else hidden[rows], result)
        return result

    def _sample(self, requests: list[Request], hidden: Tensor, result: StepResult) -> None:
        logits = self._model.logits(hidden)  # [R, V]
        token_ids = sample(logits, requests)
        for request, token_id in zip(requests, token_ids, strict=True):
            result.token_ids[request] = [token_id]
        scored = [row for row, request in enumerate(requests) if request.sampling.logprobs is not None]
        if scored:
            num_top = max(requests[row].sampling.logprobs or 0 for row in scored)
            for row, scores in zip(scored, score(logits[scored], [token_ids[row] for row in scored], num_top), strict=True):
                own, top = scores
                result.scores[requests[row]] = [(own, top[: requests[row].sampling.logprobs])]

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
