"""Routers whose truth is known."""

from __future__ import annotations

import numpy as np

from tripod.analysis.routing.routed import Routed, routed_by

CLASSES = ("arxiv", "books", "code", "news")
NUM_EXPERTS, TOP_K = 8, 2


def routed(
    generator: np.random.Generator,
    *,
    planted: float = 0.0,
    own_taste: float = 0.0,
    documents_per_class: int = 12,
    num_tokens: int = 48,
    classes: tuple[str, ...] = CLASSES,
) -> Routed:
    """Documents whose tokens choose two of eight experts at random.

    Args:
        generator: of all draws.
        planted: the share of the tokens of "code" whose first choice is forced to expert 3.
        own_taste: the share of the tokens of each document that go to an expert of that document, which has nothing to do with its class.
        documents_per_class: as many documents of each class.
        num_tokens: of a document.
        classes: the names; without "code" nothing is planted.
    """
    names = [name for name in classes for _ in range(documents_per_class)]
    taste = generator.integers(0, NUM_EXPERTS, len(names))

    def rule(document: int, token: int, name: str) -> tuple[int, ...]:
        first, second = generator.permutation(NUM_EXPERTS)[:TOP_K].tolist()
        draw = generator.random()
        if name == "code" and draw < planted:
            first = 3
        elif draw < own_taste:
            first = int(taste[document])
        return (first, second if second != first else (first + 1) % NUM_EXPERTS)

    return routed_by(rule, [(name, generator.integers(0, 40, num_tokens).tolist()) for name in names], NUM_EXPERTS)
