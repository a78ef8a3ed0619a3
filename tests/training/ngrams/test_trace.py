"""Tracing a text: the stretches that were read, all of them, and none that was not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.training.conftest import MakeRecipe
from tripod.errors import ConfigError
from tripod.text.load_tokenizer import load_tokenizer
from tripod.training.ngrams.index import NGramIndex
from tripod.training.ngrams.trace import trace
from tripod.training.run import Run


@pytest.fixture
def run(make_recipe: MakeRecipe) -> Run:
    return Run.begin(make_recipe())


def _occurs(rows: list[list[int]], ids: list[int]) -> bool:
    return any(row[start : start + len(ids)] == ids for row in rows for start in range(len(row) - len(ids) + 1))


@pytest.mark.parametrize("step", [2, 12])
def test_the_spans_are_the_maximal_stretches_that_were_read(run: Run, make_recipe: MakeRecipe, step: int) -> None:
    order, tokenizer = run.order(), load_tokenizer(Path(make_recipe().data.tokenizer))
    rows = [row.tolist() for done in range(step) for row in order.batch_at(done)]
    generator = np.random.default_rng(step)
    text = [token for _ in range(4) for token in order.rows.row(int(generator.integers(48))).tolist()[: int(generator.integers(5, 17))]]
    expected = {
        (start, stop)
        for start in range(len(text))
        for stop in range(start + 4, len(text) + 1)
        if _occurs(rows, text[start:stop])
        and not (start > 0 and _occurs(rows, text[start - 1 : stop]))
        and not (stop < len(text) and _occurs(rows, text[start : stop + 1]))
    }
    traced = trace(NGramIndex.of(run), text, tokenizer, step=step)
    assert {(span.start, span.stop) for span in traced.spans} == expected
    assert all(len(span.seen) >= 1 and max(span.seen.steps) < step for span in traced.spans)
    assert traced.num_covered == len({place for start, stop in expected for place in range(start, stop)})
    assert [span.information for span in traced.spans] == sorted((span.information for span in traced.spans), reverse=True)


def test_a_text_that_was_never_read_has_no_span(run: Run, make_recipe: MakeRecipe) -> None:
    traced = trace(NGramIndex.of(run), "QXZ?!QXZ", load_tokenizer(Path(make_recipe().data.tokenizer)))
    assert traced.spans == ()
    assert traced.longest is None
    assert traced.num_covered == 0


def test_counts_are_split_at_the_checkpoint(run: Run, make_recipe: MakeRecipe) -> None:
    tokenizer, index = load_tokenizer(Path(make_recipe().data.tokenizer)), NGramIndex.of(run)
    everywhere = index.find(list(b" make "))
    [span] = trace(index, list(b" make "), tokenizer, step=6).spans
    assert span.text == " make "
    assert (len(span.seen), span.num_later) == (len(everywhere.before(6)), len(everywhere) - len(everywhere.before(6)))
    assert span.num_later > 0


def test_a_first_word_is_found_in_both_of_its_spellings(run: Run, make_recipe: MakeRecipe) -> None:
    tokenizer, index = load_tokenizer(Path(make_recipe().data.tokenizer)), NGramIndex.of(run)
    found = {span.text: len(span.seen) for span in trace(index, "make", tokenizer).spans}
    assert found == {spelling: len(index.find(list(spelling.encode()))) for spelling in ("make", " make")}


def test_a_text_that_is_shorter_than_a_stretch_counts_as_a_whole(run: Run, make_recipe: MakeRecipe) -> None:
    tokenizer, index = load_tokenizer(Path(make_recipe().data.tokenizer)), NGramIndex.of(run)
    [span] = trace(index, list(b"mak"), tokenizer, min_tokens=4).spans
    assert len(span.seen) == len(index.find(list(b"mak"))) > 0
    assert trace(index, list(b"maq"), tokenizer, min_tokens=4).spans == ()


def test_an_empty_text_is_refused(run: Run, make_recipe: MakeRecipe) -> None:
    with pytest.raises(ConfigError, match="an empty text"):
        trace(NGramIndex.of(run), "", load_tokenizer(Path(make_recipe().data.tokenizer)))
