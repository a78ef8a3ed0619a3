"""Which tokens may come next: computed for all rows of a step at once, beside the model's forward pass."""

# R rows with a grammar, V vocabulary

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from tripod.engine.execution.sampler import RuledOut
from tripod.engine.policy.request import Request

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MOST_THREADS = 4
_WORTH_THREADS_S = 2e-3  # of the last step's masks: below, waking other threads takes longer than their work
_PENALTIES = np.where(np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little") == 1, 0.0, -np.inf).astype(
    np.float32
)


class TokenMasks:
    """What the grammars of a batch rule out. The next token's mask depends on committed tokens alone, so it needs no logits."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._thread: ThreadPoolExecutor | None = None
        self._workers: Any = None  # llguidance's own, for rows that take long
        self._penalties = np.empty((0, 0, 8), dtype=np.float32)  # one for all steps: fresh memory costs more than what is written to it
        self._last_s = 0.0  # what the last step's masks took

    def begin(self, requests: Sequence[Request]) -> PendingMasks | None:
        """Start on the rows of those requests that have a grammar; None if none has.

        Until it was waited for, the matchers are not to be touched; what was waited for holds until the next begin.
        """
        constrained = [request for request in requests if request.matcher is not None]
        if not constrained:
            return None
        if self._thread is None:
            from llguidance import LLExecutor

            self._thread = ThreadPoolExecutor(1, thread_name_prefix="tripod-masks")
            self._workers = LLExecutor(min(_MOST_THREADS, os.cpu_count() or 1))
        return PendingMasks(constrained, self._thread.submit(self._compute, constrained))

    def _compute(self, requests: Sequence[Request]) -> Tensor:
        started = time.perf_counter()
        bits = np.zeros((len(requests), -(-self._vocab_size // 32)), dtype=np.int32)
        matchers = [request.matcher.inner for request in requests if request.matcher is not None]
        if self._last_s > _WORTH_THREADS_S:
            from llguidance.numpy import fill_next_token_bitmask_par

            fill_next_token_bitmask_par(self._workers, [(matcher, row) for row, matcher in enumerate(matchers)], bits)
        else:
            for row, matcher in enumerate(matchers):
                matcher.unsafe_compute_mask_ptr(bits[row].ctypes.data, bits[row].nbytes)
        self._last_s = time.perf_counter() - started
        for row, request in enumerate(requests):
            if request.stop_ids and len(request.output_ids) < request.sampling.min_tokens:
                _forbid(bits[row], request.stop_ids)
        as_bytes = bits.view(np.uint8)
        if len(self._penalties) < len(requests):
            self._penalties = np.empty((len(requests), as_bytes.shape[1], 8), dtype=np.float32)
        penalties = self._penalties[: len(requests)]
        _PENALTIES.take(as_bytes, axis=0, out=penalties, mode="clip")
        return torch.from_numpy(penalties.reshape(len(requests), -1)[:, : self._vocab_size])


@dataclass(frozen=True, slots=True)
class PendingMasks:
    """Masks under way."""

    requests: Sequence[Request]  # R
    penalties: Future[Tensor]  # [R, V], float32: -inf is ruled out, 0 is not

    def wait(self, rows: Sequence[Request], device: torch.device) -> RuledOut | None:
        """What is ruled out in those rows that have a grammar. Where its limits are exhausted it means nothing: ask the matcher."""
        penalties = self.penalties.result()
        if rows == self.requests:
            return RuledOut(range(len(rows)), penalties.to(device))
        place = {request: i for i, request in enumerate(self.requests)}
        constrained = [row for row, request in enumerate(rows) if request in place]
        if not constrained:
            return None
        return RuledOut(constrained, penalties[[place[rows[row]] for row in constrained]].to(device))


def _forbid(bits: NDArray[np.int32], token_ids: frozenset[int]) -> None:
    """Take these tokens out of a row, in place, unless nothing else is left: a complete text ends before `min_tokens`."""
    words = bits.view(np.uint32).copy()
    for token_id in token_ids:
        words[token_id // 32] &= ~np.uint32(1 << token_id % 32)
    if words.any():
        bits[:] = words.view(np.int32)
