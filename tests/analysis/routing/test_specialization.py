"""Planted specialists are found, and what is not planted is not."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon

from tests.analysis.routing.routers import CLASSES, routed
from tripod.analysis.routing.routed import Routed, routed_by
from tripod.analysis.routing.specialization import compare_classes, divergence, doublings, spread, told_by_tokens, top_tokens
from tripod.errors import ConfigError


def test_a_class_whose_tokens_are_forced_to_one_expert_is_found_with_that_expert() -> None:
    generator = np.random.default_rng(1)
    test = compare_classes(routed(generator, planted=0.3), generator, num_permutations=200)
    assert test.is_specialised
    assert (test.specialists[0].name, test.specialists[0].expert, test.specialists[0].layer) == ("code", 3, 0)
    # Half of the choices are first ones: 0.3 of them are forced, the others and the second choices are even.
    assert test.specialists[0].share == pytest.approx((0.3 + 0.7 / 8) / 2 + 1 / 16, abs=0.04)
    assert test.specialists[0].elsewhere == pytest.approx(1 / 8, abs=0.02)
    assert [one.name for one in test.specialists if one.expert == 3] == ["code"]


def test_the_same_documents_without_the_plant_are_unspecialised() -> None:
    generator = np.random.default_rng(0)
    test = compare_classes(routed(generator), generator, num_permutations=200)
    assert not test.is_specialised
    assert test.specialists == ()
    assert test.divergence[0] == pytest.approx(test.by_chance[0], rel=0.5)


@pytest.mark.parametrize("own_taste", [0.0, 0.5], ids=["random routers", "documents that differ, but not by class"])
def test_routers_without_specialists_are_called_specialised_no_more_often_than_the_level_says(own_taste: float) -> None:
    """At a level of 0.05 more than 8 of 60 come by chance once in 1,000; `make campaign NAME=routing` does it with 1,000."""
    generator = np.random.default_rng(5)
    tests = (
        compare_classes(routed(generator, own_taste=own_taste, documents_per_class=6, num_tokens=16), generator, num_permutations=60)
        for _ in range(60)
    )
    found = [(test.is_specialised, bool(test.specialists)) for test in tests]
    assert sum(is_specialised for is_specialised, _ in found) <= 8
    assert sum(has_specialists for _, has_specialists in found) <= 8


def test_the_interval_holds_the_divergence_and_leaves_chance_out_where_there_is_a_specialist() -> None:
    generator = np.random.default_rng(2)
    test = compare_classes(routed(generator, planted=0.5), generator, num_permutations=200)
    assert test.by_chance[0] < test.low[0] <= test.divergence[0] <= test.high[0]


def test_one_class_cannot_be_compared() -> None:
    generator = np.random.default_rng(0)
    with pytest.raises(ConfigError, match="give two classes at least, of two documents at least"):
        compare_classes(routed(generator, classes=("news",)), generator)


def test_the_divergence_of_two_groups_is_that_of_scipy() -> None:
    counts = np.array([[5, 1, 0, 14], [2, 8, 9, 1]])
    assert divergence(counts) == pytest.approx(jensenshannon(*(row / row.sum() for row in counts), base=2) ** 2)


@pytest.mark.parametrize(
    ("counts", "bits"),
    [([[1, 1], [3, 3]], 0.0), ([[4, 0], [0, 1]], 1.0), ([[9, 0, 0, 0], [0, 2, 2, 0], [0, 0, 0, 5]], math.log2(3))],
    ids=["alike", "no expert in common", "three groups, no expert in common"],
)
def test_the_divergence_goes_from_nothing_to_the_bits_of_a_group(counts: list[list[int]], bits: float) -> None:
    assert divergence(np.array(counts)) == pytest.approx(bits)


def test_a_share_that_is_twice_the_mean_and_one_that_is_half_of_it_are_one_doubling() -> None:
    # Shares of expert 0: 0.4 and 0.8 / 7 ..., so that the mean is known: (0.4 + 0.1) / 2 = 0.25.
    found = doublings(np.array([[400_000, 600_000], [100_000, 900_000]]))
    assert found[:, 0] == pytest.approx([math.log2(0.4 / 0.25), math.log2(0.25 / 0.1)], abs=1e-4)


def by_token(num_experts: int) -> Routed:
    generator = np.random.default_rng(3)
    documents = [(CLASSES[at % 2], generator.integers(0, 12, 64).tolist()) for at in range(64)]
    return routed_by(lambda _, token, __: (token % num_experts,), documents, num_experts)


def test_a_router_that_reads_the_token_alone_is_spread_by_token_and_not_by_position() -> None:
    by = by_token(4)
    generator = np.random.default_rng(0)
    tokens = spread(by.token_ids, by.experts[0], 4, generator, min_tokens=50)
    positions = spread(by.positions, by.experts[0], 4, generator, min_tokens=50)
    assert tokens is not None
    assert positions is not None
    assert tokens.num_groups == 12
    assert tokens.mean == pytest.approx(math.sqrt(3) / 4)  # of (1, 0, 0, 0)
    assert positions.mean == pytest.approx(positions.by_chance, rel=0.1)
    assert spread(by.token_ids, by.experts[0], 4, generator, min_tokens=10_000) is None


def test_what_the_words_of_a_class_explain_is_told_from_what_they_do_not() -> None:
    generator = np.random.default_rng(4)
    words = {"a": (0, 10), "b": (5, 15)}  # overlap by half
    documents = [(name, generator.integers(*words[name], 200).tolist()) for name in ("a", "b") for _ in range(8)]
    by_words = routed_by(lambda _, token, __: (token % 5 + 5 * (token >= 10),), documents, 10)
    assert told_by_tokens(by_words, 0, min_tokens=20) == pytest.approx((divergence_of(by_words),) * 2)
    same_words = [(name, generator.integers(0, 10, 200).tolist()) for name in ("a", "b") for _ in range(8)]
    by_class = routed_by(lambda _, __, name: (int(name == "b"),), same_words, 2)
    found, by_tokens = told_by_tokens(by_class, 0, min_tokens=20)
    assert found == pytest.approx(1.0)
    assert by_tokens == pytest.approx(0.0, abs=0.01)


def divergence_of(one: Routed) -> float:
    """By a loop over tokens."""
    counts = np.zeros((2, one.num_experts))
    for token, document in enumerate(one.documents):
        counts[one.class_names.index(one.classes[document]), one.experts[0, token, 0]] += 1
    return float(jensenshannon(*(row / row.sum() for row in counts), base=2)) ** 2


def test_the_tokens_of_an_expert_come_in_the_order_of_their_number() -> None:
    tokens = np.array([7, 7, 7, 2, 2, 9, 9, 9, 9])
    experts = np.array([[0, 1], [0, 1], [1, 0], [1, 2], [0, 1], [2, 0], [1, 2], [1, 2], [1, 2]])
    assert top_tokens(tokens, experts, 0, 2) == [(7, 3), (2, 1)]
