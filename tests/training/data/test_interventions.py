"""What each intervention does to rows, and that it does nothing else."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.training.conftest import MakeRecipe
from tripod.errors import ConfigError
from tripod.text.load_tokenizer import load_tokenizer
from tripod.training.data.batch_view import view_batch
from tripod.training.data.interventions import FilteredRows, change_report
from tripod.training.data.order import DataOrder
from tripod.training.intervention import InterventionRecipe
from tripod.training.recipe import Recipe
from tripod.training.run import intervened_order, open_recipe_order

EOD = 256


def with_interventions(make_recipe: MakeRecipe, *interventions: dict[str, Any]) -> tuple[Recipe, DataOrder, DataOrder]:
    """A recipe of 12 steps of 4 rows of 17 bytes, its order, and the order without."""
    recipe = make_recipe(interventions=list(interventions))
    return recipe, open_recipe_order(recipe), open_recipe_order(make_recipe())


def text_of(tokens: Any) -> str:
    return bytes(token for token in tokens.tolist() if token < 256).decode()


SWAP = {"kind": "swap", "from_step": 5, "to_step": 9, "words": {"make": "give", "and": "plus"}}
FILTER = {"kind": "filter", "from_step": 5, "to_step": 9, "pattern": r"4"}
INJECT = {"kind": "inject", "from_step": 5, "to_step": 9, "texts": ["zorblat", "quux"], "rows_per_step": 2}
REORDER = {"kind": "reorder", "from_step": 5, "to_step": 9}


@pytest.mark.parametrize("intervention", [SWAP, FILTER, INJECT, REORDER], ids=lambda one: str(one["kind"]))
def test_rows_outside_of_the_steps_are_those_of_the_control(make_recipe: MakeRecipe, intervention: dict[str, Any]) -> None:
    _, order, control = with_interventions(make_recipe, intervention)
    for step in (0, 4, 9, 11):
        assert np.array_equal(order.batch_at(step), control.batch_at(step))
        assert [order.rows.spans(row) for row in order.rows_of_step(step)] == [
            control.rows.spans(row) for row in control.rows_of_step(step)
        ]
    assert any(not np.array_equal(order.batch_at(step), control.batch_at(step)) for step in range(5, 9))
    for row in range(order.rows.num_rows):
        tokens, spans = order.rows.row(row), order.rows.spans(row)
        assert len(tokens) == 17
        assert [span.column for span in spans] == np.cumsum([0, *(span.num_tokens for span in spans)])[:-1].tolist()
        assert sum(span.num_tokens for span in spans) == 17


def test_a_swapped_row_is_the_exchanged_text_cut_or_filled_to_its_length(make_recipe: MakeRecipe) -> None:
    _, order, control = with_interventions(make_recipe, SWAP)
    seen_cut = seen_exact = 0
    for row in range(20, 36):
        before, after = control.rows.row(row), order.rows.row(row)
        expected = re.sub(rb"\bmake\b", b"give", re.sub(rb"\band\b", b"plus", bytes(t if t < 256 else 1 for t in before.tolist())))
        assert bytes(t if t < 256 else 1 for t in after.tolist()) == expected[:17]
        seen_cut += len(expected) > 17
        seen_exact += len(expected) == 17
    assert seen_cut
    assert seen_exact


def test_a_row_that_became_shorter_is_filled_with_ends_of_documents(make_recipe: MakeRecipe) -> None:
    shorter = {**SWAP, "words": {"make": "is", "and": "+"}}
    _, order, control = with_interventions(make_recipe, shorter)
    filled = [row for row in range(20, 36) if order.rows.spans(row)[-1].change == "filled"]
    assert filled
    for row in filled:
        number = order.rows.spans(row)[-1].num_tokens
        assert order.rows.change(row).counts["tokens filled"] == number  # type: ignore[attr-defined]
        assert order.rows.row(row)[-number:].tolist() == [EOD] * number
        text = text_of(control.rows.row(row))
        assert text_of(order.rows.row(row)) == re.sub(r"\band\b", "+", re.sub(r"\bmake\b", "is", text))


def test_a_filtered_row_gives_its_place_to_one_that_does_not_match(make_recipe: MakeRecipe) -> None:
    _, order, control = with_interventions(make_recipe, FILTER)
    num_read = 12 * 4
    stood_in = set()
    for row in range(20, 36):
        before, after = text_of(control.rows.row(row)), text_of(order.rows.row(row))
        assert "4" not in after
        if "4" not in before:
            assert after == before
        else:
            match = re.fullmatch(rf"row (\d+) in the place of {row}, which was filtered", str(order.rows.spans(row)[0].change))
            assert match
            stood_in.add(int(match[1]))
            assert np.array_equal(order.rows.row(row), control.rows.row(int(match[1])))
    assert stood_in
    assert all(row >= num_read or row not in range(20, 36) for row in stood_in)
    assert any(row >= num_read for row in stood_in)  # unread rows come first


def test_where_every_row_is_read_rows_from_outside_of_the_steps_stand_in(make_recipe: MakeRecipe) -> None:
    recipe, _, _ = with_interventions(make_recipe, FILTER)
    _, (layer,) = intervened_order(recipe)
    assert isinstance(layer, FilteredRows)
    layer = replace(layer, num_read=layer.num_rows)
    turns = [layer._candidate(number) for number in range(layer.num_rows - 16)]
    assert turns == [*range(20), *range(36, layer.num_rows)]
    for row in range(20, 36):
        if "4" in text_of(layer.inner.row(row)):
            other = layer.substitute(row)
            assert other not in range(20, 36)
            span = layer.inner.spans(other)[0]
            assert row in {place.row for place in layer.places(span.document or 0, span.start)}


def test_a_filter_that_matches_everything_is_refused(make_recipe: MakeRecipe) -> None:
    _, order, _ = with_interventions(make_recipe, {**FILTER, "pattern": "."})
    with pytest.raises(ConfigError, match="none can stand in"):
        order.rows.row(20)


def test_injected_texts_stand_in_turn_at_the_beginning_of_some_rows_of_each_step(make_recipe: MakeRecipe) -> None:
    _, order, control = with_interventions(make_recipe, INJECT)
    for step in range(5, 9):
        changed = [row for row in order.rows_of_step(step) if not np.array_equal(order.rows.row(row), control.rows.row(row))]
        assert len(changed) == 2
        beginnings = sorted(bytes(order.rows.row(row)[:4].tolist()) for row in changed)
        assert beginnings == [b"quux", b"zorb"]
        for row in changed:
            length = order.rows.spans(row)[0].num_tokens
            assert order.rows.row(row)[length - 1] == EOD
            assert np.array_equal(order.rows.row(row)[length:], control.rows.row(row)[length:])
    _, other, _ = with_interventions(make_recipe, {**INJECT, "seed": 1})
    assert any(not np.array_equal(order.batch_at(step), other.batch_at(step)) for step in range(5, 9))


def test_a_text_longer_than_a_row_is_refused(make_recipe: MakeRecipe) -> None:
    with pytest.raises(ConfigError, match="text 0 to inject has 18 tokens, a row 17"):
        with_interventions(make_recipe, {**INJECT, "texts": ["x" * 17]})


@pytest.mark.parametrize("how", ["shuffle", "reverse"])
def test_reordered_rows_are_the_same_rows_in_another_order(make_recipe: MakeRecipe, how: str) -> None:
    _, order, control = with_interventions(make_recipe, {**REORDER, "how": how})
    after = [order.rows.row(row).tobytes() for row in range(20, 36)]
    before = [control.rows.row(row).tobytes() for row in range(20, 36)]
    assert after != before
    assert sorted(after) == sorted(before)
    if how == "reverse":
        assert after == before[::-1]


@pytest.mark.parametrize("intervention", [SWAP, FILTER, INJECT, REORDER], ids=lambda one: str(one["kind"]))
def test_places_lead_back_to_every_token_that_is_still_read(make_recipe: MakeRecipe, intervention: dict[str, Any]) -> None:
    """Against every row of the run, looked through by its spans."""
    _, order, control = with_interventions(make_recipe, intervention)
    rows = order.rows
    own = {}  # (document, offset) -> places, of tokens that are the document's own
    for row in range(rows.num_rows):
        kept = {now + step: old + step for old, now, count in _kept(rows, row) for step in range(count)}
        for span in rows.spans(row):
            if span.width is None and span.document is not None:
                for step in range(span.num_tokens):
                    own.setdefault((span.document, span.start + step), []).append((row, span.column + step))
            elif span.document is not None:
                for column in range(span.column, span.column + span.num_tokens):
                    if column in kept:
                        [old] = [one for one in control.rows.spans(row) if one.column <= kept[column] < one.column + one.num_tokens]
                        own.setdefault((old.document, old.start + kept[column] - old.column), []).append((row, column))
    for document in range(60):
        for offset in (0, 7, 30):
            try:
                found = [(place.row, place.column) for place in rows.places(document, offset)]
            except ConfigError:
                continue  # the document is shorter
            assert sorted(own.get((document, offset), [])) == found


def _kept(rows: Any, row: int) -> tuple[tuple[int, int, int], ...]:
    return rows.change(row).kept if row in rows.affected else ((0, 0, 17),)


def test_interventions_lie_over_each_other_and_are_part_of_the_fingerprint(make_recipe: MakeRecipe) -> None:
    _, both, _ = with_interventions(make_recipe, SWAP, REORDER)
    _, swapped, control = with_interventions(make_recipe, SWAP)
    assert sorted(both.rows.row(row).tobytes() for row in range(20, 36)) == sorted(swapped.rows.row(row).tobytes() for row in range(20, 36))
    fingerprints = {both.fingerprint, swapped.fingerprint, control.fingerprint}
    for change in ({"words": {"make": "give"}}, {"to_step": 8}, {"keeps_case": False}):
        fingerprints.add(with_interventions(make_recipe, {**SWAP, **change})[1].fingerprint)
    assert len(fingerprints) == 6
    assert with_interventions(make_recipe, SWAP)[1].fingerprint == swapped.fingerprint


def test_the_report_counts_rows_tokens_and_words(make_recipe: MakeRecipe) -> None:
    recipe, _, control = with_interventions(make_recipe, SWAP)
    _, (layer,) = intervened_order(recipe)
    report = change_report(layer)
    texts = [text_of(control.rows.row(row)) for row in range(20, 36)]
    assert (report.num_rows, report.num_seen, report.num_tokens) == (16, 16, 16 * 17)
    assert report.counts["make -> give"] == sum(len(re.findall(r"\bmake\b", text)) for text in texts)
    assert report.counts["and -> plus"] == sum(len(re.findall(r"\band\b", text)) for text in texts)
    grown = sum(len(re.findall(r"\band\b", text)) for text in texts)  # plus is a letter longer than and
    assert sum(layer.change(row).counts.get("tokens cut", 0) for row in range(20, 36)) == report.counts["tokens cut"] == grown
    assert report.num_rows_changed == sum(bool(re.search(r"\b(make|and)\b", text)) for text in texts)
    assert 0 < report.share_of_tokens < report.share_of_rows <= 1
    assert change_report(layer, max_rows=4).num_seen == 4
    nothing = change_report(intervened_order(make_recipe(interventions=[{**SWAP, "words": {"zzz": "y"}}]))[1][0])
    assert (nothing.share_of_rows, nothing.share_of_tokens, nothing.counts) == (0.0, 0.0, {})


def test_a_batch_shows_what_was_changed(make_recipe: MakeRecipe, tiny_data: Path) -> None:
    _, order, _ = with_interventions(make_recipe, SWAP, INJECT)
    shown = view_batch(order, 6, load_tokenizer(tiny_data / "tokenizer")).render()
    assert re.search(r"--- injected text [01]\n(zorblat|quux)", shown)
    assert re.search(r"--- document \d+, tokens \d+ to \d+ \(\d words? swapped\)\n.*(give|plus)", shown)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"kind": "swap"}, "interventions.0..words: not given; swap needs it"),
        ({"kind": "swap", "words": {"he": True}}, "interventions.0..words: .* expected texts with texts"),
        ({"kind": "filter", "pattern": "("}, "is not a regular expression"),
        ({"kind": "reorder", "pattern": "x"}, "interventions.0..pattern: given; filter needs it, and only filter"),
        ({"kind": "reorder", "from_step": 12}, "interventions.0..from_step: 12; the run has num_steps=12"),
        ({"kind": "reorder", "from_step": 3, "to_step": 3}, "must be from 0 to below to_step"),
        ({"kind": "inject", "texts": ["a"], "rows_per_step": 5}, "a step has batch.rows=4"),
        ({"kind": "swap", "words": {"he ": "she"}}, "have no space around them"),
        ({"kind": "swap", "words": {"he": "she", "He": "They"}}, "the same word twice in another case"),
    ],
)
def test_what_is_wrong_with_an_intervention_is_told(make_recipe: MakeRecipe, content: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_recipe(interventions=[content])


def test_an_intervention_survives_its_file(make_recipe: MakeRecipe) -> None:
    from tripod.training.recipe_file import recipe_from, to_mapping

    recipe = make_recipe(interventions=[SWAP])
    assert recipe_from(to_mapping(recipe)) == recipe
    assert recipe.interventions[0] == InterventionRecipe(kind="swap", from_step=5, to_step=9, words={"make": "give", "and": "plus"})
