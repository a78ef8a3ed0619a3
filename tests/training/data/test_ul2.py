"""UL2 rows: what stands in them, what is trained of them, and that they are a function of seed and row."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from tests.training.conftest import MakeRecipe
from tripod.errors import ConfigError
from tripod.training.data.order import DataOrder
from tripod.training.data.ul2 import OPENMOE, Ul2Rows
from tripod.training.run import open_recipe_order

EOD = 256
T = 63  # targets of a row


def orders(make_recipe: MakeRecipe, **ul2: Any) -> tuple[Ul2Rows, DataOrder, DataOrder]:
    """Rows under UL2, their order, and the order without; 40 ids behind the tokenizer's 259 are left for sentinels."""
    sections: dict[str, Any] = {"model": {"vocab_size": 299}, "batch": {"seq_length": T}, "num_steps": 100}
    order = open_recipe_order(make_recipe(**sections, ul2=ul2))
    assert isinstance(order.rows, Ul2Rows)
    return order.rows, order, open_recipe_order(make_recipe(**sections))


def read(row: list[int], is_trained: list[bool]) -> tuple[str, list[int], list[int]]:
    """The mode, the inputs and the targets of a row, taken apart by what is trained."""
    begin = 1 + is_trained.index(True)
    end = 1 + len(is_trained) - is_trained[::-1].index(True)
    assert all(is_trained[begin - 1 : end - 1])
    assert all(token == EOD for token in row[end - 1 :])  # the end of the targets, and what fills the row
    return bytes(row[:6]).decode(), row[6:begin], row[begin : end - 1]


def restored(inputs: list[int], targets: list[int]) -> list[int]:
    """Put the noise of the targets in the place of the sentinels of the inputs, as a reader of the format would."""
    noise: dict[int, list[int]] = {}
    for token in targets:
        if token >= 259:
            sentinel = token
            noise[sentinel] = []
        else:
            noise[sentinel].append(token)
    return [part for token in inputs for part in (noise[token] if token >= 259 else [token])]


def test_inputs_and_targets_together_are_the_tokens_of_the_row(make_recipe: MakeRecipe) -> None:
    rows, _, control = orders(make_recipe)
    modes: Counter[str] = Counter()
    for number in range(60):
        source, row = control.rows.row(number).tolist(), rows.row(number).tolist()
        assert len(row) == T + 1
        mode, inputs, targets = read(row, rows.is_trained(number).tolist())
        modes[mode] += 1
        whole = inputs + targets if mode == "[S2S] " else restored(inputs, targets)
        assert whole == source[: len(whole)]
        if mode == "[S2S] ":
            assert (len(inputs), len(targets)) == (28, 29)  # all that 64 tokens leave beside the prefix and the end
        else:
            sentinels = [token for token in inputs if token >= 259]
            assert sentinels == list(range(298, 298 - len(sentinels), -1)) == [token for token in targets if token >= 259]
            share = (len(targets) - len(sentinels)) / len(whole)
            assert share == pytest.approx({"[NLU] ": 0.15, "[NLG] ": 0.5}[mode], abs=1 / len(whole))
            assert 57 - (len(whole) + 2 * len(sentinels)) <= 2  # nothing more would have fitted
    assert set(modes) == {"[S2S] ", "[NLU] ", "[NLG] "}


def test_objectives_come_at_their_rates(make_recipe: MakeRecipe) -> None:
    rows, _, _ = orders(make_recipe)
    found = Counter(next(iter(rows.change(number).counts)) for number in range(400))
    expected = {one.name: 400 * one.rate for one in OPENMOE}
    assert found.keys() == expected.keys()
    chi_square = sum((found[name] - count) ** 2 / count for name, count in expected.items())
    assert chi_square < 15.1  # 1 % of fair draws are beyond it, with 5 degrees of freedom; the seed is fixed


def test_a_row_is_read_back_alone_and_another_seed_is_another_order(make_recipe: MakeRecipe) -> None:
    rows, order, _ = orders(make_recipe)
    batch = order.batch_at(7)
    again = open_recipe_order(make_recipe(model={"vocab_size": 299}, batch={"seq_length": T}, num_steps=100, ul2={}))
    assert np.array_equal(again.rows.row(30), batch[2])
    assert again.fingerprint == order.fingerprint
    other = make_recipe(model={"vocab_size": 299}, batch={"seq_length": T}, num_steps=100, ul2={}, seeds={"order": 2})
    assert open_recipe_order(other).fingerprint != order.fingerprint
    assert rows.fingerprint != rows.inner.fingerprint


def test_every_token_is_found_where_it_stands(make_recipe: MakeRecipe) -> None:
    rows, _, control = orders(make_recipe)
    for number in range(12):
        row, spans = rows.row(number), rows.spans(number)
        assert [span.column for span in spans] == np.cumsum([0, *(span.num_tokens for span in spans)])[:-1].tolist()
        for span in (span for span in spans if span.document is not None):
            tokens = rows.inner.store.tokens(span.document, span.start, span.stop)  # type: ignore[attr-defined]
            assert np.array_equal(row[span.column : span.column + span.num_tokens], tokens)
            for offset in range(span.start, span.stop):
                places = rows.places(span.document, offset)
                assert (number, span.column + offset - span.start) in [(place.row, place.column) for place in places]
                assert len(places) <= len(control.rows.places(span.document, offset))


def test_behind_its_last_step_comes_plain_next_token_prediction(make_recipe: MakeRecipe) -> None:
    rows, order, control = orders(make_recipe, to_step=3)
    assert not np.array_equal(order.batch_at(2), control.batch_at(2))
    assert np.array_equal(order.batch_at(3), control.batch_at(3))
    assert rows.is_trained(12).all()
    assert not rows.is_trained(11).all()


def test_an_embedding_without_room_for_sentinels_is_refused(make_recipe: MakeRecipe) -> None:
    with pytest.raises(ConfigError, match="uses all 259 rows of the embedding"):
        open_recipe_order(make_recipe(ul2={}, batch={"seq_length": T}))
    only_prefix_lm = [{"rate": 1.0, "prefix": "[S2S] "}]
    open_recipe_order(make_recipe(ul2={"denoisers": only_prefix_lm}, batch={"seq_length": T}))  # which needs none
    with pytest.raises(ConfigError, match="give both, or neither"):
        make_recipe(ul2={"denoisers": [{"rate": 1.0, "prefix": "", "density": 0.5}]})
