"""Near duplicates: what is found is exact, and nearly all of it is found."""

from __future__ import annotations

import random
import time
from itertools import combinations
from pathlib import Path

import pytest

from tripod.errors import ConfigError
from tripod.retrieval.near_duplicates import NearDuplicate, groups, near_duplicates


def by_hand(first: str, second: str) -> float:
    """Jaccard of three-word runs, written out."""
    one, two = ({tuple(words[i : i + 3]) for i in range(len(words) - 2)} for words in (first.lower().split(), second.lower().split()))
    return len(one & two) / len(one | two)


def test_a_similarity_by_hand() -> None:
    # a b c, b c d, c d e / a b c, b c d, c d f: two of four runs are in both.
    assert near_duplicates({"x": "A b c d, e!", "y": "a b c d f", "z": "other words here"}, threshold=0.5) == [NearDuplicate("x", "y", 0.5)]
    assert near_duplicates({"x": "a b c d e", "y": "a b c d f"}, threshold=0.51) == []
    assert near_duplicates({"x": "one", "y": "One!", "empty": "", "blank": " - "}) == [NearDuplicate("x", "y", 1.0)]


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8, 0.95])
def test_nearly_all_pairs_that_a_look_at_all_pairs_finds_are_found(threshold: float) -> None:
    generator = random.Random(7)
    vocabulary = [f"w{i}" for i in range(400)]
    texts: dict[str, str] = {}
    for family in range(12):
        base = generator.choices(vocabulary, k=200)
        for copy in range(10):
            words = [word if generator.random() > 0.004 * copy else generator.choice(vocabulary) for word in base]
            texts[f"{family}-{copy}"] = " ".join(words)
    expected = {pair: share for pair in combinations(sorted(texts), 2) if (share := by_hand(texts[pair[0]], texts[pair[1]])) >= threshold}
    found = {(pair.first, pair.second): pair.similarity for pair in near_duplicates(texts, threshold=threshold)}
    assert len(expected) >= 12
    assert found == {pair: pytest.approx(expected[pair]) for pair in found}
    assert len(found) >= 0.98 * len(expected)


def test_groups_are_what_chains_of_pairs_hold_together() -> None:
    pairs = [NearDuplicate("c", "d", 1.0), NearDuplicate("a", "b", 0.9), NearDuplicate("b", "c", 0.8), NearDuplicate("x", "y", 0.8)]
    assert groups(pairs) == [["a", "b", "c", "d"], ["x", "y"]]
    assert groups([]) == []


@pytest.mark.parametrize("threshold", [0.0, 1.1, -1.0])
def test_a_threshold_that_is_none_is_refused(threshold: float) -> None:
    with pytest.raises(ConfigError, match="no similarity"):
        near_duplicates({}, threshold=threshold)


def test_real_documents_and_their_copies(shared_data: Path) -> None:
    texts = {path.name: path.read_text(encoding="utf-8") for path in sorted((shared_data / "docs-rst-peps").glob("*.rst"))}
    copies = {
        f"copy of {name}": text.replace("Python", "Anaconda", 1) + "\nLast words." for name, text in texts.items() if len(text) > 2000
    }
    started_s = time.process_time()
    found = near_duplicates(texts | copies, threshold=0.9)
    assert time.process_time() - started_s < 20
    assert {f"copy of {name}" for name in texts} & copies.keys() <= {pair.first for pair in found}
    assert sum(not pair.first.startswith("copy of ") for pair in found) <= 5  # some of these documents are each other's templates
