"""Whether a confidence tells what can be answered from what cannot, and what an answer's confidence is worth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def auroc(confidences: Sequence[float], is_answerable: Sequence[bool]) -> float:
    """How often an answerable question stands above one that is not (area under the ROC curve); ties count half.

    NaN where all questions are of one kind.
    """
    scores, positive = np.asarray(confidences, dtype=float), np.asarray(is_answerable, dtype=bool)
    num_positive, num_negative = int(positive.sum()), int((~positive).sum())
    if not num_positive or not num_negative:
        return float("nan")
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]  # of equal scores the mean rank
    return float((ranks[positive].sum() - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative))


def risk_coverage(confidences: Sequence[float], is_right: Sequence[bool]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """For each share of questions answered, the surest first, the share of the answers that is wrong (El-Yaniv & Wiener 2010).

    Equal confidences are given together, and each of them has the risk of all.

    Returns:
        Coverage and risk, [N] each, coverage from 1/N to 1.
    """
    order = np.argsort(-np.asarray(confidences, dtype=float), kind="stable")
    sorted_scores = np.asarray(confidences, dtype=float)[order]
    wrong = 1.0 - np.asarray(is_right, dtype=float)[order]
    _, inverse = np.unique(-sorted_scores, return_inverse=True)
    wrong = (np.bincount(inverse, weights=wrong) / np.bincount(inverse))[inverse]  # ties share out their errors
    count = np.arange(1, len(wrong) + 1)
    return count / len(wrong), np.cumsum(wrong) / count


def area_under_risk_coverage(confidences: Sequence[float], is_right: Sequence[bool]) -> float:
    """The mean risk over all coverages (AURC; Geifman, Uziel & El-Yaniv 2018): 0 is best, and the error rate is no better than chance."""
    return float(risk_coverage(confidences, is_right)[1].mean()) if len(confidences) else float("nan")


def calibration_error(confidences: Sequence[float], is_right: Sequence[bool], *, num_bins: int = 10) -> float:
    """The mean gap of confidence and accuracy, over bins of equal width weighed by their size (ECE; Guo et al. 2017, arXiv:1706.04599)."""
    scores, right = np.asarray(confidences, dtype=float), np.asarray(is_right, dtype=float)
    if not len(scores):
        return float("nan")
    bins = np.minimum((scores * num_bins).astype(int), num_bins - 1)
    gaps = [abs(scores[bins == place].mean() - right[bins == place].mean()) * (bins == place).sum() for place in np.unique(bins)]
    return float(sum(gaps) / len(scores))
