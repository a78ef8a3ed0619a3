"""How long a step takes, from what is in it."""

# R requests in a step, N tokens, C tokens of context behind those that decode, P pairs of a prompt's token and one that it attends to

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from tripod.engine.policy.policy import Schedule
from tripod.errors import ConfigError, DatasetError


@dataclass(frozen=True, slots=True, kw_only=True)
class StepWork:
    """What a step has to do."""

    num_requests: int  # R
    num_tokens: int  # N
    num_context: int  # C
    num_pairs: int  # P

    @classmethod
    def of(cls, schedule: Schedule) -> Self:
        """The work of a planned step, before it is committed."""
        num_context = num_pairs = 0
        for request, num_tokens in schedule.items():
            if num_tokens == 1:
                num_context += request.num_computed_tokens + 1
            else:
                num_pairs += num_tokens * request.num_computed_tokens + num_tokens * (num_tokens + 1) // 2
        return cls(num_requests=len(schedule), num_tokens=sum(schedule.values()), num_context=num_context, num_pairs=num_pairs)


@dataclass(frozen=True, slots=True, kw_only=True)
class CostModel:
    """Seconds of a step: `overhead_s + request_s R + context_s C + pair_s P + max(weights_s, token_s N)`.

    The last term is the roofline (Williams et al. 2009) of the linear layers: all weights are read once, however few tokens
    there are, and beyond the knee arithmetic takes longer than reading.
    """

    overhead_s: float  # of each step
    request_s: float  # of each request: planning, sampling, delivery
    weights_s: float  # reading the weights
    token_s: float  # arithmetic of the linear layers for one token
    context_s: float  # attention of a decode to one token
    pair_s: float  # attention of a prompt's token to one token
    origin: str  # where the numbers come from

    def __post_init__(self) -> None:
        for name in ("overhead_s", "request_s", "weights_s", "token_s", "context_s", "pair_s"):
            if not getattr(self, name) >= 0.0:
                raise ConfigError(f"{name}={getattr(self, name)} is not a time; give seconds, 0 or more")
        if self.step_s(StepWork(num_requests=1, num_tokens=1, num_context=1, num_pairs=0)) <= 0.0:
            raise ConfigError("a step of this cost model takes no time; give at least one of its terms")

    def step_s(self, work: StepWork) -> float:
        """Seconds of one step."""
        return (
            self.overhead_s
            + self.request_s * work.num_requests
            + self.context_s * work.num_context
            + self.pair_s * work.num_pairs
            + max(self.weights_s, self.token_s * work.num_tokens)
        )

    @classmethod
    def of_limits(
        cls, *, num_parameters: float, bytes_per_parameter: float, num_layers: int, hidden_size: int, gigabytes_s: float, gigaflops: float
    ) -> Self:
        """What a machine's limits allow a dense model with full attention heads: a bound, not a measurement.

        Args:
            num_parameters: of the linear layers.
            gigabytes_s: memory bandwidth, 10**9 bytes a second.
            gigaflops: 10**9 multiplications and additions a second.
        """
        bandwidth, flops = gigabytes_s * 1e9, gigaflops * 1e9
        return cls(
            overhead_s=0.0,
            request_s=0.0,
            weights_s=num_parameters * bytes_per_parameter / bandwidth,
            token_s=2 * num_parameters / flops,
            context_s=2 * num_layers * hidden_size * bytes_per_parameter / bandwidth,
            pair_s=4 * num_layers * hidden_size / flops,
            origin=f"limits of {gigabytes_s:g} GB/s and {gigaflops:g} GFLOP/s for {num_parameters / 1e6:.0f} M parameters; not measured",
        )

    @classmethod
    def fit(cls, work: Sequence[StepWork], seconds: Sequence[float], *, origin: str) -> Self:
        """The model of least relative error over measured steps, every term 0 or more.

        The knee is looked for among the numbers of tokens that were measured; between knees the model is linear.

        Raises:
            DatasetError: too few steps.
        """
        if len(work) < 16 or len(work) != len(seconds):
            raise DatasetError(f"{len(work)} steps and {len(seconds)} times do not tell a step's cost; measure at least 16 of both")
        num_tokens = np.array([step.num_tokens for step in work], float)
        measured = np.array(seconds)
        fixed = np.array([[1.0, step.num_requests, step.num_context, step.num_pairs] for step in work])
        best: tuple[float, Self] | None = None
        for knee in np.unique(num_tokens):
            is_below = num_tokens <= knee
            linear = np.column_stack([fixed, np.where(is_below, knee, num_tokens)])  # weights_s = token_s x knee: the two lines meet there
            overhead_s, request_s, context_s, pair_s, token_s = _least_squares(linear / measured[:, None], np.ones(len(measured)))
            model = cls(
                overhead_s=overhead_s, request_s=request_s, weights_s=token_s * float(knee), token_s=token_s,
                context_s=context_s, pair_s=pair_s, origin=origin,
            )  # fmt: skip
            error = float(np.mean(model.relative_errors(work, seconds) ** 2))
            if best is None or error < best[0]:
                best = error, model
        assert best is not None
        return best[1]

    def relative_errors(self, work: Sequence[StepWork], seconds: Sequence[float]) -> NDArray[np.float64]:
        """(predicted - measured) / measured, of each step."""
        return np.array([self.step_s(step) / measured - 1.0 for step, measured in zip(work, seconds, strict=True)])

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Self:
        """
        Raises:
            DatasetError: there is no cost model in this file.
        """
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise DatasetError(
                f"{path} is not a cost model: {error}; benchmarks/serving/simulator_check.py measures and writes one"
            ) from error


def _least_squares(matrix: NDArray[np.float64], target: NDArray[np.float64]) -> list[float]:
    """Coefficients of 0 or more that bring matrix @ x nearest to the target: coordinate descent, exact for convex problems."""
    scales = np.linalg.norm(matrix, axis=0)
    scales[scales == 0.0] = 1.0
    scaled = matrix / scales
    gram, right = scaled.T @ scaled, scaled.T @ target
    x = np.zeros(matrix.shape[1])
    for _ in range(3000):
        before = x.copy()
        for i in range(len(x)):
            if gram[i, i] > 0.0:
                x[i] = max(0.0, x[i] + (right[i] - gram[i] @ x) / gram[i, i])
        if np.abs(x - before).max() < 1e-12:
            break
    return [float(value) for value in x / scales]
