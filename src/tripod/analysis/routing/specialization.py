"""Do experts specialise? By the class of a document (domain, language, task), by token id, by position.

The question "by class" is tested by permutation: the labels of whole documents are dealt out anew, because the tokens of one document
resemble each other. The other two are OpenMoE's context-independence (Xue et al. 2024, arXiv:2402.01739, section 4): how far the routing
ratios of a token id, or of a position, stand from even ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tripod.analysis.routing.routed import Ids, Routed, tally
from tripod.errors import ConfigError
from tripod.evaluation.intervals import bootstrap

LEVEL = 0.05  # of a test
Floats = NDArray[np.float64]


def shares(counts: NDArray[np.int64] | NDArray[np.floating[Any]]) -> Floats:
    """Of each group's choices, which share went to which expert: [..., G, E] -> [..., G, E]; even where a group chose nothing."""
    totals = counts.sum(-1, keepdims=True)
    return np.asarray(np.where(totals > 0, counts / np.maximum(totals, 1), 1 / counts.shape[-1]))


def divergence(counts: NDArray[np.int64] | Floats) -> Floats:
    """The Jensen-Shannon divergence of the groups' choices in bits, each group with the same weight: [..., G, E] -> [...].

    What a choice of expert tells about the group: 0 if all groups choose alike, log2(G) if no two share an expert.
    """
    of_groups = shares(counts)
    mean = of_groups.mean(-2, keepdims=True)
    ratios = np.divide(of_groups, mean, out=np.ones_like(of_groups), where=of_groups > 0)
    return np.asarray((of_groups * np.log2(ratios)).sum(-1).mean(-1))


def doublings(counts: NDArray[np.int64]) -> Floats:
    """How many times each group's share of an expert is doubled or halved against the mean of the groups: |log2 ratio|, [G, E].

    Half a choice is added to each count, so that an expert that a group never chose has a ratio.
    """
    of_groups = shares(counts + 0.5)
    return np.asarray(np.abs(np.log2(of_groups / of_groups.mean(0))))


@dataclass(frozen=True, slots=True)
class Specialist:
    """An expert that a class chooses more often than chance over documents allows."""

    layer: int
    expert: int
    name: str  # of the class
    share: float  # of the class's choices
    elsewhere: float  # of the choices of the other classes
    p: float  # against the highest such excess of any class, expert and layer under permutation


@dataclass(frozen=True, slots=True)
class ClassTest:
    """Divergence of the classes by layer, and what it is when documents are labelled by chance."""

    divergence: tuple[float, ...]  # by layer, bits
    low: tuple[float, ...]  # 95 % interval over documents, with the bias of the bootstrap taken off
    high: tuple[float, ...]
    by_chance: tuple[float, ...]  # mean over permutations
    p: tuple[float, ...]  # by layer
    p_of_all: float  # of the sum over layers: one answer for the model
    specialists: tuple[Specialist, ...]  # with p at most 0.05, the largest excess first

    @property
    def is_specialised(self) -> bool:
        return self.p_of_all <= LEVEL


def compare_classes(routed: Routed, generator: np.random.Generator, *, num_permutations: int = 400) -> ClassTest:
    """Whether documents of different classes are routed otherwise than documents of one class.

    Raises:
        ConfigError: there is one class only, or a class of one document.
    """
    labels, names = routed.class_of_document, routed.class_names
    if len(names) < 2 or np.bincount(labels).min() < 2:
        raise ConfigError(
            f"{len(labels)} documents of the classes {', '.join(names)}; give two classes at least, of two documents at least"
        )
    of_documents = np.stack([tally(routed.documents, chosen, len(labels), routed.num_experts) for chosen in routed.experts])

    def of_classes(chosen: Ids, labelled: Ids) -> Ids:  # [documents] each -> [L, C, E]
        return np.eye(len(names), dtype=np.int64)[labelled].T @ of_documents[:, chosen]

    everything = np.arange(len(labels))
    counts = of_classes(everything, labels)
    found = divergence(counts)
    dealt = [of_classes(everything, generator.permutation(labels)) for _ in range(num_permutations)]
    by_chance = divergence(np.stack(dealt))  # [permutations, L]
    drawn = (_resample(labels, generator) for _ in range(num_permutations))
    low, high = 2 * found - np.quantile([divergence(of_classes(chosen, labels[chosen])) for chosen in drawn], [0.975, 0.025], axis=0)
    return ClassTest(
        divergence=tuple(found.tolist()),
        low=tuple(np.clip(low, 0, found).tolist()),
        high=tuple(np.maximum(high, found).tolist()),
        by_chance=tuple(by_chance.mean(0).tolist()),
        p=tuple(_p(found, by_chance).tolist()),
        p_of_all=float(_p(found.sum(), by_chance.sum(1))),
        specialists=_specialists(routed, counts, np.stack(dealt)),
    )


def _specialists(routed: Routed, counts: Ids, dealt: Ids) -> tuple[Specialist, ...]:
    """Classes and experts whose share stands out: more than the highest share of nearly all permutations, in standard deviations.

    Those are taken over the permutations and the data together, which makes the data one of equals: the level is kept for few permutations.
    """
    together = shares(np.concatenate([counts[None], dealt]))  # [1 + permutations, L, C, E]
    together = (together - together.mean(0)) / np.maximum(together.std(0), 1e-9)
    scores = together[0]
    p = _p(scores, together[1:].reshape(len(dealt), -1).max(1)[:, None, None, None])
    found = []
    for layer, name, expert in sorted(np.argwhere(p <= LEVEL).tolist(), key=lambda place: -scores[tuple(place)]):
        share, elsewhere = (float(shares(one)[expert]) for one in (counts[layer, name], np.delete(counts[layer], name, axis=0).sum(0)))
        found.append(Specialist(routed.layers[layer], expert, routed.class_names[name], share, elsewhere, float(p[layer, name, expert])))
    return tuple(found)


def _p(found: Floats, by_chance: Floats) -> Floats:
    """The share of permutations, the data themselves counted in, that are as far out: never 0."""
    return np.asarray((1 + (by_chance >= found).sum(0)) / (1 + len(by_chance)))


def _resample(labels: Ids, generator: np.random.Generator) -> Ids:
    """As many documents of each class as there are, drawn with replacement."""
    of_classes = (np.flatnonzero(labels == one) for one in range(labels.max() + 1))
    return np.concatenate([generator.choice(documents, len(documents)) for documents in of_classes])


@dataclass(frozen=True, slots=True)
class Spread:
    """How far the routing ratios of groups of tokens (a token id, a position, a class) stand from even ones."""

    mean: float  # over groups: the standard deviation of a group's shares over experts
    low: float  # 95 % interval over groups
    high: float
    by_chance: float  # where the same tokens are dealt to groups of the same sizes by chance: what uneven load and few tokens make
    num_groups: int


def spread(groups: Ids, experts: Ids, num_experts: int, generator: np.random.Generator, *, min_tokens: int) -> Spread | None:
    """The spread of one layer's routing ratios by group.

    Args:
        groups: [N], numbers from 0.
        experts: [N, k]
        num_experts: of the layer.
        generator: for the interval and for chance.
        min_tokens: smaller groups are left out.

    Returns:
        None where no group is large enough.
    """
    large = np.flatnonzero(np.bincount(groups) >= min_tokens)
    if not len(large):
        return None

    def deviations(labelled: Ids) -> Floats:
        return np.asarray(shares(tally(labelled, experts, int(groups.max()) + 1, num_experts)[large]).std(-1))

    interval = bootstrap(deviations(groups).tolist(), generator)
    by_chance = float(deviations(generator.permutation(groups)).mean())
    return Spread(interval.mean, interval.low, interval.high, by_chance, len(large))


def told_by_tokens(routed: Routed, layer: int, *, min_tokens: int) -> tuple[float, float]:
    """How much of the divergence of classes their words make: in bits, as it is, and as it would be if only token ids decided.

    Of the token ids that stand often enough in all classes together; the routing ratios of an id are those in all classes together.
    """
    _, tokens = np.unique(routed.token_ids, return_inverse=True)
    is_kept = np.bincount(tokens)[tokens] >= min_tokens
    tokens, classes = tokens[is_kept], routed.class_of_document[routed.documents][is_kept]
    experts, num_classes, num_tokens = routed.experts[layer][is_kept], len(routed.class_names), int(tokens.max(initial=-1)) + 1
    if not num_tokens:
        return math.nan, math.nan
    occurrences = np.bincount(classes * num_tokens + tokens, minlength=num_classes * num_tokens).reshape(num_classes, num_tokens)
    expected = occurrences @ shares(tally(tokens, experts, num_tokens, routed.num_experts))
    return float(divergence(tally(classes, experts, num_classes, routed.num_experts))), float(divergence(expected))


def top_tokens(token_ids: Ids, experts: Ids, expert: int, count: int) -> list[tuple[int, int]]:
    """The token ids that an expert receives most often, with how often."""
    ids, counts = np.unique(token_ids[(experts == expert).any(-1)], return_counts=True)
    order = np.argsort(-counts, kind="stable")[:count]
    return list(zip(ids[order].tolist(), counts[order].tolist(), strict=True))
