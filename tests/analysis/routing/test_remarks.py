"""A table of routing in words."""

from __future__ import annotations

from tripod.analysis.routing.remarks import one_text, remarks
from tripod.evaluation.table import Row, Table


def rows(model: str, step: int | None, p: float, *told: tuple[float, float]) -> list[Row]:
    """A checkpoint whose layers have a divergence of frequent tokens, and what ids alone would give."""
    about: Row = {"model": model, "step": step, "group": "task"}
    of_layers: list[Row] = [
        {**about, "layer": layer, "measure": "divergence of frequent tokens", "value": value, "chance": by_tokens}
        for layer, (value, by_tokens) in enumerate(told)
    ]
    return [{**about, "layer": None, "measure": "divergence", "value": 0.5, "p": p}, *of_layers]


def test_the_first_and_the_last_checkpoint_of_each_model_are_judged_with_the_share_of_their_words() -> None:
    table = Table.of(
        [
            *rows("a", 8, 0.01, (0.3, 0.06), (0.1, 0.04)),
            *rows("a", 2, 0.01, (0.3, 0.3)),
            *rows("a", 0, 0.2, (0.3, 0.2)),
            *rows("b", None, 0.05, (float("nan"), float("nan"))),
        ]
    )
    assert remarks(table) == (
        "a, step 0: unspecialised by task (p = 0.2).",
        "a, step 8: specialised by task (p = 0.01); "
        "token ids alone give 25% of the divergence of frequent tokens, context and chance the rest.",
        "b: specialised by task (p = 0.05).",
    )


def test_routers_of_step_0_are_said_to_have_learnt_nothing() -> None:
    [first, last] = remarks(Table.of([*rows("a", 0, 0.01, (0.2, 0.1)), *rows("a", 1, 0.01, (0.2, 0.1))]))
    assert first == last.replace("step 1", "step 0")[:-1] + (
        ". Routers are random at step 0: they tell classes by the words in them, and have learnt nothing."
    )


def test_classes_of_one_text_are_named_and_a_table_without_classes_says_nothing() -> None:
    counts: list[Row] = [{"measure": "texts of a class", "group": name, "value": value} for name, value in (("en", 1.0), ("de", 2.0))]
    assert one_text(Table.of(counts))[0].startswith("The rows of en are cut from one text each")
    assert one_text(Table.of(counts[1:])) == ()
    assert remarks(Table.of([{"model": "a", "step": 0, "layer": 0, "measure": "load", "group": None, "value": 1.0}])) == ()
