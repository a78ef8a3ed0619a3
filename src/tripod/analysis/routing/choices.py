"""What the choices of one layer are like: how even, which experts together, which are lost to capacity, and how they change in training."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tripod.analysis.routing.routed import Ids, tally
from tripod.analysis.routing.specialization import divergence

Floats = NDArray[np.float64]
DEAD = 0.01  # of an even share


def load(experts: Ids, num_experts: int) -> Floats:
    """The share of all choices that goes to each expert: [N, k] -> [E]."""
    counts = np.bincount(experts.ravel(), minlength=num_experts)
    return np.asarray(counts / max(1, counts.sum()))


def num_dead(of_experts: Floats) -> int:
    """Experts that receive less than a hundredth of an even share."""
    return int((of_experts < DEAD / len(of_experts)).sum())


def coactivation(experts: Ids, num_experts: int) -> Floats:
    """Of the tokens that chose expert i, which share chose j too: [N, k] -> [E, E], the diagonal 0 (OLMoE, arXiv:2409.02060)."""
    num_tokens = len(experts)
    chosen = np.zeros((num_tokens, num_experts))
    chosen[np.arange(num_tokens)[:, None], experts] = 1
    together = chosen.T @ chosen
    counts = together.diagonal().copy()
    np.fill_diagonal(together, 0)
    return np.asarray(together / np.maximum(counts, 1)[:, None])


def overlap(before: Ids, after: Ids) -> float:
    """The share of a token's choices that two checkpoints have in common, over tokens: [N, k] twice (OLMoE's router saturation)."""
    return float((before[:, :, None] == after[:, None, :]).any(-1).mean())


def token_divergence(token_ids: Ids, before: Ids, after: Ids, num_experts: int, *, min_tokens: int) -> float:
    """How far the routing ratios of token ids differ between two checkpoints: Jensen-Shannon, bits (0 to 1), over ids that are frequent."""
    _, groups, counts = np.unique(token_ids, return_inverse=True, return_counts=True)
    both = np.stack([tally(groups, chosen, len(counts), num_experts) for chosen in (before, after)], axis=1)  # [ids, 2, E]
    frequent = both[counts >= min_tokens]
    return float(divergence(frequent).mean()) if len(frequent) else float("nan")
