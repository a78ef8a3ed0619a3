"""Learning rate schedules: pure functions of how many updates came before.

The count is 0 for the first update and grows by one with each update that was made; a step that is skipped because its gradients
overflowed does not count. So steps 1 and 2 of a run both have the rate of count <= 1, as in GPT-NeoX.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, assert_never

ScheduleKind = Literal["cosine", "linear", "wsd", "constant", "inverse-sqrt", "t5"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Linear warm-up to the peak, then a decay by `kind` that ends at `num_updates`.

    cosine: half a wave down to `min_lr` (Loshchilov & Hutter 2017, arXiv:1608.03983).
    linear: straight down to `min_lr`.
    wsd: the peak, then straight down to `min_lr` over the last `num_decay` updates (Hu et al. 2024, arXiv:2404.06395).
    constant: the peak.
    inverse-sqrt: peak * sqrt(num_warmup / count), not below `min_lr` (Vaswani et al. 2017, arXiv:1706.03762).
    t5: the same without warm-up: the peak for the first `num_warmup` updates (Raffel et al. 2020, arXiv:1910.10683). With a peak of 0.01
        and 10 000 of them it is 1 / sqrt(max(count, 10 000)), T5's and OpenMoE's.
    """

    kind: ScheduleKind
    peak_lr: float
    min_lr: float
    num_updates: int
    num_warmup: int
    num_decay: int = 0  # of wsd

    def learning_rate(self, count: int) -> float:
        """The rate of the update before which `count` updates were made."""
        if count <= self.num_warmup and self.num_warmup and self.kind != "t5":
            return self.peak_lr * max(1, count) / self.num_warmup
        match self.kind:
            case "cosine":
                return self.min_lr + (self.peak_lr - self.min_lr) / 2 * (math.cos(math.pi * self._progress(count, self.num_warmup)) + 1)
            case "linear":
                return self.peak_lr - (self.peak_lr - self.min_lr) * self._progress(count, self.num_warmup)
            case "wsd":
                return self.peak_lr - (self.peak_lr - self.min_lr) * self._progress(count, self.num_updates - self.num_decay)
            case "constant":
                return self.peak_lr
            case "inverse-sqrt":
                return max(self.min_lr, self.peak_lr * math.sqrt(max(1, self.num_warmup) / max(1, count)))
            case "t5":
                return max(self.min_lr, self.peak_lr * math.sqrt(max(1, self.num_warmup) / max(1, count, self.num_warmup)))
            case _:
                assert_never(self.kind)

    def _progress(self, count: int, start: int) -> float:
        """How much of the decay from `start` on is over, from 0 to 1."""
        return min(1.0, max(0, count - start) / max(1, self.num_updates - start))
