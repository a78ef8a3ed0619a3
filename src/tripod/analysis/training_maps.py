"""Training maps: the states that runs of several seeds pass through, by a hidden Markov model (Hu et al. 2023, arXiv:2308.09543), as in
PolyPythias (van der Wal et al. 2025, arXiv:2503.09543).

Each checkpoint of each seed is a vector of statistics; after a z-score of each statistic over all of them, one Gaussian hidden Markov
model with diagonal covariances is fitted to the seeds' sequences by expectation-maximisation, and each sequence is decoded by Viterbi. A
seed that passes through other states than the others do is an outlier.
"""

# S sequences, T steps, D statistics, K states

from __future__ import annotations

import csv
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tripod.errors import ConfigError
from tripod.evaluation.agreement import cohen_kappa
from tripod.evaluation.table import Table

Floats = NDArray[np.float64]
_SMALLEST_VARIANCE = 1e-3  # of z-scored numbers: a state of few checkpoints must not close in on one of them
_ALIKE = 0.05  # kappas that differ by less are as good as the same: one path enters a state a checkpoint later
_FAR = 3.5  # of a modified z-score (Iglewicz & Hoaglin 1993): so much less agreement than the median makes an outlier


@dataclass(frozen=True, slots=True)
class TrainingMap:
    """A fitted model and the way of each sequence through it."""

    states: NDArray[np.int64]  # [S, T], numbered in the order in which runs reach them
    means: Floats  # [K, D], z-scored
    transitions: Floats  # [K, K], rows sum to 1
    log_likelihood: float
    num_parameters: int

    @property
    def bic(self) -> float:
        """Bayesian information criterion; of several models, the smallest is taken."""
        return self.num_parameters * float(np.log(self.states.size)) - 2.0 * self.log_likelihood


def zscored(statistics: Floats) -> Floats:
    """[S, T, D]: each statistic with mean 0 and variance 1 over all checkpoints; one that never changes becomes 0."""
    flat = statistics.reshape(-1, statistics.shape[-1])
    spread = flat.std(0)
    result: Floats = (statistics - flat.mean(0)) / np.where(spread > 0, spread, 1.0)
    return result


def fit_training_map(statistics: Floats, num_states: int, *, seed: int = 0, num_starts: int = 8, num_iterations: int = 200) -> TrainingMap:
    """Fit one model to all sequences; the best of several starts counts.

    Args:
        statistics: [S, T, D], z-scored.
        num_states: K.
        seed: of the starts, which are K checkpoints drawn as means.
        num_starts: tried.
        num_iterations: of expectation-maximisation at most, each start.

    Raises:
        ConfigError: there are fewer checkpoints than states.
    """
    num_checkpoints = statistics.shape[0] * statistics.shape[1]
    if not 1 <= num_states <= num_checkpoints:
        raise ConfigError(f"{num_states} states cannot be told apart in {num_checkpoints} checkpoints; ask for 1 to {num_checkpoints}")
    rng = np.random.default_rng(seed)
    fits = [_expectation_maximisation(statistics, num_states, rng, num_iterations) for _ in range(num_starts)]
    start, transitions, means, variances, log_likelihood = max(fits, key=lambda fit: fit[4])
    states = np.array([_viterbi(densities, start, transitions) for densities in _log_densities(statistics, means, variances)])
    order = _by_arrival(states, num_states)
    rank = np.argsort(order)
    dim = statistics.shape[2]
    return TrainingMap(
        states=rank[states],
        means=means[order],
        transitions=transitions[np.ix_(order, order)],
        log_likelihood=log_likelihood,
        num_parameters=num_states - 1 + num_states * (num_states - 1) + 2 * num_states * dim,
    )


def best_training_map(statistics: Floats, numbers_of_states: Sequence[int], *, seed: int = 0) -> TrainingMap:
    """The fit with the smallest BIC."""
    return min((fit_training_map(statistics, number, seed=seed) for number in numbers_of_states), key=lambda fit: fit.bic)


def _log_densities(statistics: Floats, means: Floats, variances: Floats) -> Floats:
    """[..., D] -> [..., K]."""
    distances = (statistics[..., None, :] - means) ** 2 / variances
    result: Floats = -0.5 * (distances + np.log(2 * np.pi * variances)).sum(-1)
    return result


def _expectation_maximisation(
    statistics: Floats, num_states: int, rng: np.random.Generator, num_iterations: int
) -> tuple[Floats, Floats, Floats, Floats, float]:
    num_sequences, _, dim = statistics.shape
    flat = statistics.reshape(-1, dim)
    means = flat[rng.choice(len(flat), num_states, replace=False)]
    variances = np.ones((num_states, dim))
    start = np.full(num_states, 1.0 / num_states)
    transitions = np.full((num_states, num_states), 0.5 / num_states) + 0.5 * np.eye(num_states)
    before = -np.inf
    for _ in range(num_iterations):
        occupied, moved, log_likelihood = _forward_backward(_log_densities(statistics, means, variances), start, transitions)
        gain, before = log_likelihood - before, log_likelihood
        if gain < 1e-6 * abs(log_likelihood):
            break
        weights = occupied.reshape(-1, num_states)
        totals = weights.sum(0)[:, None] + 1e-12
        means = weights.T @ flat / totals
        variances = np.maximum(weights.T @ flat**2 / totals - means**2, _SMALLEST_VARIANCE)
        start = (occupied[:, 0].sum(0) + 1e-6) / (num_sequences + 1e-6 * num_states)
        transitions = (moved + 1e-6) / (moved + 1e-6).sum(1, keepdims=True)
    return start, transitions, means, variances, float(before)


def _forward_backward(log_densities: Floats, start: Floats, transitions: Floats) -> tuple[Floats, Floats, float]:
    """Of all sequences, [S, T, K]: shares of the states, [S, T, K]; expected moves, [K, K]; and their log-likelihood.

    A sequence's shares have the same bits whatever others there are, which a BLAS does not promise of its products.
    """
    largest = log_densities.max(-1, keepdims=True)
    densities = np.exp(log_densities - largest)
    num_steps = densities.shape[1]
    forward, scale = np.empty_like(densities), np.empty(densities.shape[:2])
    for step in range(num_steps):
        reached = start if step == 0 else np.einsum("sk,kj->sj", forward[:, step - 1], transitions)
        forward[:, step] = reached * densities[:, step]
        scale[:, step] = forward[:, step].sum(-1)
        forward[:, step] /= scale[:, step, None]
    backward = np.ones_like(densities)
    moved = np.zeros_like(transitions)
    for step in range(num_steps - 2, -1, -1):
        ahead = densities[:, step + 1] * backward[:, step + 1] / scale[:, step + 1, None]
        moved += transitions * (forward[:, step].T @ ahead)
        backward[:, step] = np.einsum("sk,jk->sj", ahead, transitions)
    return forward * backward, moved, float(np.log(scale).sum() + largest.sum())


def _viterbi(log_densities: Floats, start: Floats, transitions: Floats) -> NDArray[np.int64]:
    with np.errstate(divide="ignore"):
        log_start, log_moves = np.log(start), np.log(transitions)
    best = log_start + log_densities[0]
    came_from = np.zeros(log_densities.shape, np.int64)
    for step in range(1, len(log_densities)):
        candidates = best[:, None] + log_moves
        came_from[step] = candidates.argmax(0)
        best = candidates.max(0) + log_densities[step]
    path = [int(best.argmax())]
    for step in range(len(log_densities) - 1, 0, -1):
        path.append(int(came_from[step, path[-1]]))
    return np.array(path[::-1])


def _by_arrival(states: NDArray[np.int64], num_states: int) -> list[int]:
    """States in the order of the mean step at which they are first reached; what nobody reaches comes last."""
    arrivals = []
    for state in range(num_states):
        firsts = [int(np.argmax(path == state)) for path in states if (path == state).any()]
        arrivals.append(float(np.mean(firsts)) if firsts else np.inf)
    return sorted(range(num_states), key=lambda state: arrivals[state])


# --- outliers


def seeds_apart(paths: Mapping[Hashable, Sequence[int]]) -> dict[Hashable, float]:
    """How much each seed's path agrees with the others': the median of its Cohen's kappas with them."""
    return {
        seed: float(np.median([cohen_kappa(path, other) for name, other in paths.items() if name != seed])) for seed, path in paths.items()
    }


def outliers(agreement: Mapping[Hashable, float]) -> list[Hashable]:
    """Those that agree far less than the median does, by a modified z-score over the median absolute deviation."""
    values = np.array(list(agreement.values()))
    below = np.median(values) - values
    spread = float(np.median(np.abs(below)))
    floor = max(spread, _ALIKE)
    return [seed for seed, far in zip(agreement, 0.6745 * below / floor, strict=True) if far > _FAR]


def read_training_maps(path: Path) -> Table:
    """The states that PolyPythias published.

    Raises:
        FileNotFoundError: the file is absent.
        ConfigError: it is another table.
    """
    with path.open(encoding="utf-8", newline="") as stream:
        lines = list(csv.DictReader(stream, delimiter="\t"))
    try:
        return Table.of(
            {"seed": int(line["seed"]), "step": int(line["step"]), "state": int(line["state"]), "score": float(line["score"])}
            for line in lines
        )
    except (KeyError, ValueError) as error:
        raise ConfigError(f"{path} is not a table of training maps ({error}); expected columns seed, step, state, score") from error


def outlier_seeds(maps: Table) -> list[int]:
    """The seeds whose way through the states is unlike the others', in order."""
    ordered = maps.sorted_by("seed", "step")
    paths: dict[Hashable, Sequence[int]] = {
        seed: [int(state) for state in group.numbers("state")] for (seed,), group in ordered.by("seed").items()
    }
    return sorted(int(str(seed)) for seed in outliers(seeds_apart(paths)))
