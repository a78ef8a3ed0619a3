"""What the table of a routing study says in words: whether a model is specialised, and what to mind before believing it."""

from __future__ import annotations

from tripod.analysis.routing.specialization import LEVEL
from tripod.evaluation.table import Row, Table

_NUM_NAMED = 8  # classes: a line of the picture


def remarks(table: Table) -> tuple[str, ...]:
    """Of the first and the last checkpoint of each model whether they are specialised by class; then of what p does not know."""
    tests = table.where(lambda row: row["measure"] == "divergence" and row["layer"] is None)
    found: list[str] = []
    for (model,), of_model in tests.by("model").items():
        rows = of_model.sorted_by("step").rows
        told = table.where(model=model, measure="divergence of frequent tokens")
        found += [_verdict(row, told.where(step=row["step"])) for row in (rows if len(rows) < 2 else (rows[0], rows[-1]))]
    return (*found, *one_text(table))


def one_text(table: Table) -> tuple[str, ...]:
    """Whether rows of a class are of one document, which the permutation of rows takes for many; nothing where none is."""
    names = list(dict.fromkeys(str(row["group"]) for row in table.where(measure="texts of a class", value=1)))
    if not names:
        return ()
    named = ", ".join(names[:_NUM_NAMED]) + (f" and {len(names) - _NUM_NAMED} more classes" if len(names) > _NUM_NAMED else "")
    return (f"The rows of {named} are cut from one text each and resemble each other: p is too small. Give many documents.",)


def _verdict(test: Row, told: Table) -> str:
    step, p = test["step"], float(test["p"] or 0.0)
    about = f"{test['model']}{'' if step is None else f', step {step}'}"
    if p > LEVEL:
        return f"{about}: unspecialised by {test['group']} (p = {p:.2g})."
    said = f"{about}: specialised by {test['group']} (p = {p:.2g})"
    value, by_tokens = (sum(told.numbers(name)) for name in ("value", "chance"))
    if value > 0:  # else, or where it is not a number, no token id is frequent
        said += f"; token ids alone give {by_tokens / value:.0%} of the divergence of frequent tokens, context and chance the rest"
    if step == 0:
        said += ". Routers are random at step 0: they tell classes by the words in them, and have learnt nothing"
    return f"{said}."
