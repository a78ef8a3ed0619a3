"""Evaluation items in the training data: those that were planted, and no other."""

from __future__ import annotations

import pytest

from tests.training.conftest import MakeRecipe
from tripod.errors import ConfigError
from tripod.training.ngrams.contamination import check_contamination
from tripod.training.ngrams.provenance import Provenance
from tripod.training.run import Run

LEAKED = "Q: whale? A: eel"  # a whole row


@pytest.fixture
def provenance(make_recipe: MakeRecipe) -> Provenance:
    """Of a run that reads one item from its sixth step on."""
    run = Run.begin(make_recipe(interventions=[{"kind": "inject", "from_step": 5, "texts": [LEAKED[:15]], "rows_per_step": 1}]))
    return Provenance.open(str(run.folder))


def test_only_the_planted_item_is_found_and_since_when(provenance: Provenance) -> None:
    found = check_contamination(provenance, ["XYZ is not here", LEAKED[:15], "Zebras quit my job"], min_tokens=13)
    [touched] = found.touched
    assert (touched.item, touched.share, touched.first_step) == (1, 1.0, 5)
    assert [found.num_at_least(share) for share in (0.5, 1.0)] == [1, 1]


def test_a_checkpoint_before_the_leak_is_clean(provenance: Provenance) -> None:
    early = Provenance.open(f"{provenance.run.folder}@step5")
    assert check_contamination(early, [LEAKED[:15]]).touched == ()


def test_half_an_item_counts_by_its_share(provenance: Provenance) -> None:
    [item] = check_contamination(provenance, [LEAKED[:15] + "#" * 15]).items
    assert (item.num_tokens, item.num_covered, item.share) == (30, 15, 0.5)
    both = check_contamination(provenance, [LEAKED[:15] + "#" * 15, LEAKED[:15]])
    assert [touched.item for touched in both.touched] == [1, 0]  # the one that was read whole comes first
    assert [both.num_at_least(share) for share in (0.5, 0.6)] == [2, 1]


def test_what_is_no_item_is_refused(provenance: Provenance) -> None:
    with pytest.raises(ConfigError, match="no item"):
        check_contamination(provenance, [])
    with pytest.raises(ConfigError, match="item 1 is empty"):
        check_contamination(provenance, ["a", " "])
