"""The n-gram index against a walk through every row of every step."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.training.conftest import MakeRecipe
from tripod.errors import ConfigError, DatasetError
from tripod.training.data.order import DataOrder, Place
from tripod.training.ngrams.build import build_index
from tripod.training.ngrams.index import NGramIndex
from tripod.training.run import Run


def _walk(order: DataOrder, num_steps: int, ids: list[int]) -> list[tuple[int, Place]]:
    """Where the ids stand, by looking everywhere."""
    found = []
    for row in range(num_steps * order.batch_size):
        tokens = order.rows.row(row).tolist()
        found += [
            (row // order.batch_size, Place(row, column)) for column in range(len(tokens)) if tokens[column : column + len(ids)] == ids
        ]
    return found


@pytest.fixture
def run(make_recipe: MakeRecipe) -> Run:
    return Run.begin(make_recipe())


def test_a_sequence_is_found_at_each_of_its_places_and_nowhere_else(run: Run) -> None:
    index, order = NGramIndex.of(run), run.order()
    generator = np.random.default_rng(0)
    for _ in range(40):
        row = order.rows.row(int(generator.integers(48))).tolist()
        start, length = int(generator.integers(17)), int(generator.integers(1, 9))
        ids = row[start : start + length]
        assert [(one.step, one.place) for one in index.find(ids)] == _walk(order, 12, ids)
    assert len(index.find([1, 1, 1])) == 0
    assert len(index.find([70_000])) == 0


def test_nothing_is_found_across_the_border_of_two_rows(run: Run) -> None:
    index, order = NGramIndex.of(run), run.order()
    across = [*order.rows.row(0).tolist()[-6:], *order.rows.row(1).tolist()[:6]]
    assert len(index.find(across)) == len(_walk(order, 12, across)) == 0


def test_segments_change_nothing(run: Run, tmp_path: Path) -> None:
    order = run.order()
    build_index(order, 12, tmp_path / "whole")
    facts = build_index(order, 12, tmp_path / "cut", segment_bytes=5 * 2 * 18)
    whole, cut = NGramIndex.open(tmp_path / "whole"), NGramIndex.open(tmp_path / "cut")
    assert len(facts.segment_rows) == 10
    text = [*order.rows.row(30).tolist(), *order.rows.row(3).tolist()]
    for step in (0, 1, 5, 12):
        assert cut.longest(text, step=step).tolist() == whole.longest(text, step=step).tolist()
    for start in range(len(text) - 4):
        assert list(cut.find(text[start : start + 4])) == list(whole.find(text[start : start + 4]))


@pytest.mark.parametrize("segment_bytes", [1 << 20, 5 * 2 * 18])
def test_many_sequences_are_counted_as_one_by_one_before_each_step(run: Run, tmp_path: Path, segment_bytes: int) -> None:
    """Those at the beginning of rows, so that some stand at the very place behind what a checkpoint has seen."""
    order = run.order()
    build_index(order, 12, tmp_path / "index", segment_bytes=segment_bytes)
    index = NGramIndex.open(tmp_path / "index")
    sequences = [order.rows.row(row).tolist()[: 1 + row % 5] for row in range(48)]
    for step in (0, 1, 5, 11, 12):
        assert index.counts(sequences, step=step).tolist() == [len(_walk(order, step, ids)) for ids in sequences]


@pytest.mark.parametrize("at_least", [1, 5])
def test_the_longest_match_of_a_checkpoint_counts_only_what_it_has_seen(run: Run, at_least: int) -> None:
    index, order = NGramIndex.of(run), run.order()
    text = [*order.rows.row(41).tolist(), *order.rows.row(2).tolist()[3:]]
    for step in (0, 1, 3, 10, 12):
        for start, length in enumerate(index.longest(text, step=step, at_least=at_least).tolist()):
            longer = [stop for stop in range(start + at_least, len(text) + 1) if _walk(order, step, text[start:stop])]
            assert length == max((stop - start for stop in longer), default=0)


def test_a_sighting_names_the_token_of_the_document_that_the_order_knows(run: Run) -> None:
    index, order = NGramIndex.of(run), run.order()
    ids = list(b" make")
    sightings = index.find(ids)
    for one in sightings:
        assert one.document is not None
        assert one.offset is not None
        assert (one.step, one.place) in order.steps_of(one.document, one.offset)
        assert order.batch_at(one.step)[one.place.row % 4, one.place.column : one.place.column + len(ids)].tolist() == ids
    assert sightings.num_documents == len({one.document for one in sightings}) > 1
    assert sightings.steps.tolist() == [one.step for one in sightings]


def test_before_a_step_are_those_of_the_steps_below(run: Run) -> None:
    sightings = NGramIndex.of(run).find([ord(" "), ord("m")])
    assert len(sightings) > 10
    for step in range(13):
        assert [one.step for one in sightings.before(step)] == [one.step for one in sightings if one.step < step]
    with pytest.raises(ConfigError, match="step 13 was asked for; the run has the checkpoints of steps 0 to 12"):
        sightings.before(13)


def test_what_an_intervention_put_into_the_rows_is_found_there(make_recipe: MakeRecipe) -> None:
    injected = {"kind": "inject", "from_step": 5, "texts": ["a whale!"], "rows_per_step": 1}
    run = Run.begin(make_recipe(interventions=[injected]))
    index = NGramIndex.of(run)
    sightings = index.find(list(b"a whale!"))
    assert sightings.steps.tolist() == list(range(5, 12))
    assert {(one.document, one.offset, one.place.column) for one in sightings} == {(None, None, 0)}
    assert [(one.step, one.place) for one in sightings] == _walk(run.order(), 12, list(b"a whale!"))


def test_a_word_that_was_swapped_has_its_document_and_no_offset(make_recipe: MakeRecipe) -> None:
    run = Run.begin(make_recipe(interventions=[{"kind": "swap", "words": {"make": "yield"}}]))
    sightings = NGramIndex.of(run).find(list(b"yield"))
    assert len(sightings) > 0
    assert all(one.document is not None and one.offset is None for one in sightings)


def test_documents_of_two_data_sets_are_two_where_their_numbers_are_one(make_recipe: MakeRecipe, tiny_data: Path, tmp_path: Path) -> None:
    for file in tiny_data.glob("train*"):
        shutil.copy(file, tmp_path)
    run = Run.begin(make_recipe(data={"prefixes": [str(tiny_data / "train"), str(tmp_path / "train")], "weights": [1, 1]}))
    sightings = NGramIndex.of(run).find(list(b" make"))
    documents = {(one.dataset, one.document) for one in sightings}
    assert sightings.num_documents == len(documents) > len({document for _, document in documents})


def test_information_is_that_of_independent_tokens(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tripod.training.ngrams.build._PROGRESS_ROWS", 7)  # of 48: counts come in parts
    index, order = NGramIndex.of(run), run.order()
    rows = np.concatenate([order.batch_at(step).ravel() for step in range(12)])
    shares = [np.count_nonzero(rows == token) / len(rows) for token in b"make"]
    assert index.information(list(b"make")) == pytest.approx(-np.log2(shares).sum())
    assert index.information([258, 1]) == float("inf")


def test_an_index_is_made_once_and_again_for_another_order(run: Run, make_recipe: MakeRecipe) -> None:
    stages: list[str] = []
    NGramIndex.of(run)
    NGramIndex.of(run, progress=lambda stage, done, total: stages.append(stage))
    assert stages == []
    other = Run.begin(make_recipe(("seeds.order=3",)))
    NGramIndex.of(other, progress=lambda stage, done, total: stages.append(stage))
    assert {"read rows", "sort suffixes"} <= set(stages)


def test_an_index_is_made_again_for_other_documents_of_the_same_sizes(run: Run, tiny_data: Path, tmp_path: Path) -> None:
    """Their order is the same, so its fingerprint does not tell them apart."""
    for file in tiny_data.glob("train*"):
        shutil.copy(file, tmp_path)
    data = replace(run.recipe.data, prefixes=(str(tmp_path / "train"),))
    copy = Run(run.folder, replace(run.recipe, data=data))
    ids = list(b" make")
    before = len(NGramIndex.of(copy).find(ids))
    assert before == len(NGramIndex.of(run).find(ids)) > 0
    np.fromfile(tmp_path / "train.bin", "<u2")[::-1].tofile(tmp_path / "train.bin")
    assert copy.order().fingerprint == run.order().fingerprint
    assert len(NGramIndex.of(copy).find(ids)) == 0
    assert len(NGramIndex.of(copy).find(ids[::-1])) > 0


def test_a_damaged_index_is_named(run: Run, tmp_path: Path) -> None:
    build_index(run.order(), 12, tmp_path / "index")
    (tmp_path / "index" / "suffixes-0.npy").unlink()
    with pytest.raises(DatasetError, match=r"is damaged .*; remove it"):
        NGramIndex.open(tmp_path / "index")
    (tmp_path / "index" / "facts.json").write_text("{}")
    with pytest.raises(DatasetError, match="has another format than 2"):
        NGramIndex.open(tmp_path / "index")


def test_what_cannot_be_indexed_is_refused(run: Run, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="num_steps=4000"):
        build_index(run.order(), 4000, tmp_path / "index")
    with pytest.raises(ConfigError, match="a segment holds at least a row"):
        build_index(run.order(), 12, tmp_path / "index", segment_bytes=8)
    assert not list(tmp_path.glob("*index*"))
    with pytest.raises(DatasetError, match="holds no n-gram index"):
        NGramIndex.open(tmp_path)
    index = NGramIndex.of(run)
    with pytest.raises(ConfigError, match="an empty sequence"):
        index.find([])
    with pytest.raises(ConfigError, match="token id -1"):
        index.find([5, -1])
