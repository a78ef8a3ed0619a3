"""How sure an answer is, as a probability that was fitted on data, and the threshold below which it is better not given."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from tripod.documents import Passage
from tripod.errors import ConfigError
from tripod.protocols import ChatModel
from tripod.rag.prompts import answerable
from tripod.retrieval.yes_no import probability_of_yes

if TYPE_CHECKING:
    from tripod.rag.extractive import Evidence

Signals: TypeAlias = Mapping[str, float]  # what is known about an answer, by name; see `signals`


def signals(evidence: Evidence | None, *, answerability: float | None = None, logprob: float | None = None) -> dict[str, float]:
    """What is known about an answer: the evidence of the words and vectors, and of the model's logits where it tells them.

    Args:
        evidence: of the extractive answer to the same question; None where no sentence could be quoted, which counts as none at all.
        answerability: how likely the model says that the passages answer.
        logprob: of the answer, a token; natural logarithm.
    """
    found: dict[str, float | None] = {
        "coverage": evidence.coverage if evidence else 0.0,
        "context": evidence.context if evidence else 0.0,
        "known": evidence.known if evidence else 0.0,
        "similarity": evidence.similarity if evidence else None,
        "answerability": None if answerability is None else logit(answerability),
        "logprob": logprob,
    }
    return {name: value for name, value in found.items() if value is not None}


async def answerability(question: str, passages: Sequence[Passage], model: ChatModel) -> float | None:
    """The probability that the model gives to "yes, these passages answer this question"; None where it tells no probabilities."""
    return await probability_of_yes(answerable(question, passages), model)


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Signals to a confidence (logistic regression; Platt 1999), and the confidence from which on an answer is given.

    Raises:
        ConfigError: a threshold that is no probability.
    """

    weights: Mapping[str, float] = field(hash=False)
    bias: float
    threshold: float = 0.5

    def __post_init__(self) -> None:
        if not 0.0 <= self.threshold <= 1.0:
            raise ConfigError(f"threshold={self.threshold} is no probability; give a number between 0 and 1")

    def confidence(self, known: Signals) -> float:
        """How likely the answer is right, from 0 to 1. A signal that is not known here counts as 0, as it did in `fit`."""
        return _sigmoid(self.bias + sum(weight * known.get(name, 0.0) for name, weight in self.weights.items()))

    def save(self, path: Path) -> None:
        path.write_text(json.dumps({"weights": dict(self.weights), "bias": self.bias, "threshold": self.threshold}, indent=1) + "\n")

    @staticmethod
    def load(path: Path) -> Calibration:
        """Read what `save` wrote.

        Raises:
            ConfigError: the file is none of these.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            weights = {str(name): float(weight) for name, weight in content["weights"].items()}
            return Calibration(weights=weights, bias=float(content["bias"]), threshold=float(content["threshold"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"{path} holds no calibration: {error}; expected an object of weights, bias and threshold") from None


def fit(samples: Sequence[Signals], is_right: Sequence[bool], *, ridge: float = 1e-2) -> Calibration:
    """The calibration that makes these outcomes likeliest, with a little ridge; by Newton's method. Its threshold is 0.5.

    Args:
        samples: of answers to questions that are not used to judge the result.
        is_right: for each whether it was a right answer.
        ridge: half the penalty on each squared weight; the bias is free.

    Raises:
        ConfigError: fewer than two samples, or all right, or all wrong.
    """
    import numpy as np

    if len(samples) != len(is_right) or len(samples) < 2 or len(set(is_right)) < 2:
        raise ConfigError(f"{len(samples)} samples with {len(set(is_right))} outcomes fit no calibration; give right and wrong answers")
    names = sorted({name for sample in samples for name in sample})
    features = np.array([[1.0, *(sample.get(name, 0.0) for name in names)] for sample in samples])
    target = np.asarray(is_right, dtype=float)
    beta = np.zeros(len(names) + 1)
    penalty = np.array([0.0, *([ridge] * len(names))])
    for _ in range(100):
        probability = 1.0 / (1.0 + np.exp(-np.clip(features @ beta, -500, 500)))
        curvature = (features * (probability * (1 - probability))[:, None]).T @ features + np.diag(penalty + 1e-9)
        step = np.linalg.solve(curvature, features.T @ (target - probability) - penalty * beta)
        beta += step / max(1.0, float(np.abs(step).max()) / 5.0)  # no leap: separable samples have no finite optimum without the ridge
        if np.abs(step).max() < 1e-10:
            break
    return Calibration(weights=dict(zip(names, map(float, beta[1:]), strict=True)), bias=float(beta[0]))


def threshold_for_risk(confidences: Sequence[float], is_right: Sequence[bool], *, max_risk: float, delta: float = 0.05) -> float | None:
    """The lowest threshold whose answers are wrong at most so often, with confidence 1 - delta (Geifman & El-Yaniv 2017, arXiv:1705.08500).

    Twenty shares of the questions are tried, from all to a twentieth of them; each bound holds with a twentieth of delta, so that the
    promise is kept for whichever is taken.

    Args:
        confidences: of answers on which nothing else was fitted.
        is_right: for each whether it was right.
        max_risk: share of wrong ones among the answers given.
        delta: how often the promise may be broken, over samples.

    Returns:
        None where no threshold can be vouched for: there are too few samples, or too many wrong ones.
    """
    order = sorted(range(len(confidences)), key=lambda index: -confidences[index])
    for share in range(_NUM_SHARES, 0, -1):
        count = len(order) * share // _NUM_SHARES
        while 0 < count < len(order) and confidences[order[count]] == confidences[order[count - 1]]:
            count += 1  # equal confidences are given or withheld together
        num_wrong = sum(not is_right[index] for index in order[:count])
        if count and _at_most(num_wrong, count, max_risk) <= delta / _NUM_SHARES:  # so `upper_bound` is at most `max_risk`
            return confidences[order[count - 1]]
    return None


_NUM_SHARES = 20


def upper_bound(num_wrong: int, count: int, delta: float) -> float:
    """The largest rate under which so few wrong ones are seen with probability delta (Clopper & Pearson 1934)."""
    if num_wrong >= count:
        return 1.0
    low, high = num_wrong / count, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if _at_most(num_wrong, count, middle) < delta else (middle, high)
    return high


def _at_most(num_wrong: int, count: int, rate: float) -> float:
    """The probability of at most so many among `count`, each with this rate."""
    if rate <= 0.0:
        return 1.0
    if rate >= 1.0:
        return 0.0
    logs = [
        math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1) + k * math.log(rate) + (count - k) * math.log1p(-rate)
        for k in range(num_wrong + 1)
    ]
    return math.fsum(map(math.exp, logs))


def logit(probability: float) -> float:
    """The logarithm of the odds, within ±10."""
    bounded = min(max(probability, 4.54e-5), 1 - 4.54e-5)
    return math.log(bounded / (1.0 - bounded))


def _sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x)) if x >= 0 else math.exp(x) / (1.0 + math.exp(x))
