"""How loss falls with size and data: L(N, D) = E + A / N^alpha + B / D^beta, fitted as Chinchilla's third approach does.

Hoffmann et al. 2022 (arXiv:2203.15556): the Huber loss (delta 1e-3) between the logarithms of predicted and observed loss is minimised
by L-BFGS from a grid of starts; here from the best of a coarse grid, over logarithms of E, A and B. Intervals are of a bootstrap over whole
series (models), because the points of one series are not independent.
"""

# P points

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tripod.errors import ConfigError, MissingExtraError

Floats = NDArray[np.float64]
DELTA = 1e-3
_STARTS = tuple(itertools.product((-1.0, 0.0, 1.0), (0.0, 8.0, 16.0), (0.0, 8.0, 16.0), (0.2, 0.5), (0.2, 0.5)))  # e, a, b, alpha, beta
_NUM_REFINED = 6  # of the starts, the best by their loss alone


@dataclass(frozen=True, slots=True)
class ScalingLaw:
    """Loss in nats; N parameters, D tokens."""

    irreducible: float  # E
    size_scale: float  # A
    data_scale: float  # B
    alpha: float
    beta: float

    def loss(self, num_parameters: Floats | float, num_tokens: Floats | float) -> Any:
        return self.irreducible + self.size_scale / num_parameters**self.alpha + self.data_scale / num_tokens**self.beta

    @property
    def optimal_size_exponent(self) -> float:
        """Of compute C = 6 N D, the best N grows as C to this power."""
        return self.beta / (self.alpha + self.beta)


@dataclass(frozen=True, slots=True)
class ScalingFit:
    law: ScalingLaw
    low: ScalingLaw  # of 95 % of the bootstrap, each parameter by itself
    high: ScalingLaw
    relative_error: float  # root mean square of the logarithms' differences
    num_points: int


def fit_scaling_law(
    num_parameters: Sequence[float],
    num_tokens: Sequence[float],
    losses: Sequence[float],
    *,
    groups: Sequence[Hashable] | None = None,
    num_draws: int = 50,
    seed: int = 0,
) -> ScalingFit:
    """Fit the law to points.

    Args:
        num_parameters: [P], without embeddings by convention; above 0.
        num_tokens: [P], above 0.
        losses: [P], in nats, above 0.
        groups: [P], which series a point is of; the bootstrap draws series. None: each point is its own.
        num_draws: of the bootstrap; 0 makes the interval the fit itself.
        seed: of the draws.

    Raises:
        ConfigError: too few points, all of one size or of one number of tokens, or numbers that have no logarithm.
        MissingExtraError: scipy is not installed.
    """
    points = np.array([num_parameters, num_tokens, losses], float)
    if points.shape[1] < len(fields(ScalingLaw)) + 1:
        raise ConfigError(f"{points.shape[1]} points cannot fix the {len(fields(ScalingLaw))} parameters of the law; give more")
    if not (np.isfinite(points).all() and (points > 0).all()):
        raise ConfigError("sizes, tokens and losses must be above 0 (step 0 has seen no tokens: leave it out)")
    if len(set(points[0])) < 2 or len(set(points[1])) < 2:
        raise ConfigError("points of one size, or of one number of tokens, cannot tell what each of them does; give several of both")
    best = _fit(points, _STARTS, num_refined=_NUM_REFINED)
    law = _law(best)
    members: dict[Hashable, list[int]] = {}
    for at, group in enumerate(groups if groups is not None else range(points.shape[1])):
        members.setdefault(group, []).append(at)
    rng, names = np.random.default_rng(seed), list(members)
    drawn = []
    for _ in range(num_draws):
        chosen = [at for number in rng.integers(len(names), size=len(names)) for at in members[names[number]]]
        drawn.append([getattr(_law(_fit(points[:, chosen], (tuple(best),), num_refined=1)), one.name) for one in fields(ScalingLaw)])
    bounds = (
        np.quantile(np.array(drawn), (0.025, 0.975), axis=0) if drawn else np.array([[getattr(law, one.name) for one in fields(law)]] * 2)
    )
    residuals = np.log(law.loss(points[0], points[1])) - np.log(points[2])
    return ScalingFit(
        law, ScalingLaw(*bounds[0].tolist()), ScalingLaw(*bounds[1].tolist()), float(np.sqrt((residuals**2).mean())), points.shape[1]
    )


def _law(parameters: Floats) -> ScalingLaw:
    e, a, b, alpha, beta = parameters.tolist()
    return ScalingLaw(float(np.exp(e)), float(np.exp(a)), float(np.exp(b)), alpha, beta)


def _fit(points: Floats, starts: Sequence[Sequence[float]], *, num_refined: int) -> Floats:
    minimize = _minimize()
    objective = _objective(points)
    chosen = sorted(starts, key=lambda start: objective(np.array(start))[0])[:num_refined]
    fits = [minimize(objective, np.array(start), jac=True, method="L-BFGS-B", options={"maxiter": 2000}) for start in chosen]
    found: Floats = min(fits, key=lambda fit: fit.fun).x
    return found


def _objective(points: Floats) -> Callable[[Floats], tuple[float, Floats]]:
    """The Huber loss and its gradient, over e, a, b, alpha, beta with E = exp(e) and so on."""
    log_size, log_tokens, log_loss = np.log(points)

    def objective(parameters: Floats) -> tuple[float, Floats]:
        e, a, b, alpha, beta = parameters
        terms = np.stack([np.full_like(log_loss, e), a - alpha * log_size, b - beta * log_tokens])  # [3, P]
        largest = terms.max(0)
        shares = np.exp(terms - largest)
        total = shares.sum(0)
        residual = np.log(total) + largest - log_loss
        shares /= total
        is_far = np.abs(residual) > DELTA
        huber = np.where(is_far, DELTA * (np.abs(residual) - DELTA / 2), residual**2 / 2)
        slope = np.where(is_far, DELTA * np.sign(residual), residual)
        by_term = (shares * slope).sum(1)
        gradient = np.array([*by_term, -(shares[1] * slope * log_size).sum(), -(shares[2] * slope * log_tokens).sum()])
        return float(huber.sum()) / DELTA, gradient / DELTA  # so large that the optimiser's tolerance does not end it early

    return objective


def _minimize() -> Any:
    try:
        from scipy.optimize import minimize
    except ImportError:
        raise MissingExtraError("scipy", "studies", "fitting a scaling law") from None
    return minimize
