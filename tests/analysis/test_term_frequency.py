"""Counting terms in training rows, asking sums of checkpoints, and setting the one against the other."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

import tripod
from tests.training.conftest import MakeRecipe
from tripod.analysis.arithmetic_prompts import questions
from tripod.analysis.checkpoints import find_checkpoints
from tripod.analysis.study import run_study
from tripod.analysis.term_counts import FOLDER, count_pairs, term_counts
from tripod.analysis.term_frequency import TermFrequency, performance_gap
from tripod.errors import ConfigError, ContextLengthError
from tripod.training.loop import train
from tripod.training.run import Run


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("7 plus 3", {"7": 1, "3": 1, "3-7": 1}),
        ("7 is less than 9", {"7": 1, "9": 1, "7-9": 1}),
        ("7 is much less than 9", {}),  # four words between
        ("7 9", {}),  # none between
        ("7 times 9 is 63", {"7": 1, "9": 2, "63": 1, "7-9": 1, "9-63": 1}),
        ("7, plus 9", {}),  # not between spaces
        ("123456 plus 7", {}),  # six digits
        ("007 plus 7", {"7": 2, "7-7": 1}),
        ("a7 plus 7 b", {}),
    ],
)
def test_numbers_are_counted_where_one_to_three_words_stand_between(text: str, expected: dict[str, int]) -> None:
    assert count_pairs(text) == expected


def _by_words(text: str) -> Counter[str]:
    """The rule again, over a list of words."""
    words = text.split()
    found: Counter[str] = Counter()
    for place, word in enumerate(words):
        if re.fullmatch(r"\d{1,5}", word):
            later = [other for other in words[place + 2 : place + 5] if re.fullmatch(r"\d{1,5}", other)]
            if later:
                pair = sorted((int(word), int(later[0])))
                found.update([str(pair[0]), str(pair[1]), f"{pair[0]}-{pair[1]}"])
    return found


def test_counts_of_a_checkpoint_are_those_of_the_rows_it_has_read(make_recipe: MakeRecipe) -> None:
    run = Run.begin(make_recipe(batch={"rows": 4, "seq_length": 48}))
    order = run.order()
    expected: Counter[str] = Counter()
    by_step = []
    for step in range(12):
        for row in order.batch_at(step):
            for document in bytes(token if token < 256 else 255 for token in row[:-1].tolist()).split(b"\xff"):
                expected.update(_by_words(document.decode()))
        by_step.append(dict(expected))
    assert sum(expected.values()) > 100
    stages: list[tuple[int, int | None]] = []
    for step in (3, 12, 12, 7):  # the second goes on from the first, the third is kept, the last goes on from the first again
        counts = term_counts(run, step, progress=lambda _, done, total: stages.append((done, total)))
        assert counts == by_step[step - 1]
    assert [total for _, total in stages] == [12, 36, 16]
    assert len(list((run.folder / FOLDER).glob("*.json"))) == 3
    assert term_counts(run, 0) == {}


def test_questions_are_spelled_as_published() -> None:
    [first, *others] = questions("multiplication", shots=0, num_first=100, num_second=50)
    assert (first.prompt, first.answer) == ("Q:What is 0 times 1? A:", 0)
    assert len(others) == 4999
    assert others[-1].prompt == "Q:What is 99 times 50? A:"
    assert others[-1].answer == 4950
    with_shots = list(questions("addition", shots=2, num_first=3, num_second=2, seed=1))
    assert len(with_shots) == 6
    for question in with_shots:
        *examples, asked = question.prompt.split("\n\n")
        assert asked == f"Q:What is {question.first} plus {question.second}? A:"
        assert len(examples) == 2
        for example in examples:
            first_operand, second_operand, total = map(int, re.findall(r"\d+", example))
            assert first_operand != question.first
            assert first_operand + second_operand == total
    assert [one.prompt for one in with_shots] == [one.prompt for one in questions("addition", shots=2, num_first=3, num_second=2, seed=1)]


def test_an_answer_is_the_first_run_of_digits() -> None:
    question = next(questions("addition", shots=0, num_first=8))
    assert all(question.is_right(reply) for reply in (" 1", "It is 1.", "1\n2"))
    assert not any(question.is_right(reply) for reply in ("1234567", "12", "one", "21 or 1"))
    with pytest.raises(ConfigError, match="known are addition, multiplication"):
        next(questions("division", shots=0))
    with pytest.raises(ConfigError, match="another first operand"):
        next(questions("addition", shots=1, num_first=1))


def test_the_gap_is_that_between_the_ends() -> None:
    seen = [5.0, 1.0, 9.0, 3.0, 7.0, 2.0]
    accuracies = [0.5, 0.0, 1.0, 0.2, 0.6, 0.1]
    assert performance_gap(seen, accuracies, extremes=2) == pytest.approx(100 * ((1.0 + 0.6) / 2 - (0.0 + 0.1) / 2))
    assert performance_gap(seen, accuracies, extremes=4) is None
    assert performance_gap(seen, accuracies, extremes=0) is None


def test_operands_that_were_read_as_often_make_no_gap() -> None:
    """Small operands come first and are easier, so before anything was read their order would look like an effect of frequency."""
    accuracies = [1.0, 0.9, 0.5, 0.3, 0.1, 0.0]
    assert performance_gap([0.0] * 6, accuracies, extremes=2) == 0.0
    # 4 and 5 were read oftenest. Of the others, read as often, any two may be the rarest: on average they are right in 0.675.
    assert performance_gap([1, 1, 1, 1, 2, 3], accuracies, extremes=2) == pytest.approx(100 * (0.05 - 0.675))


def test_what_cannot_be_asked_is_refused_before_terms_are_counted() -> None:
    with pytest.raises(ConfigError, match="known are addition, multiplication"):
        TermFrequency(operations=("additon",))
    with pytest.raises(ConfigError, match="shots=-1"):
        TermFrequency(shots=(0, -1))
    with pytest.raises(ConfigError, match=r"shots=\(\); give at least one of each"):
        TermFrequency(shots=())


def test_a_prompt_that_does_not_fit_is_said_in_words(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    run = train(make_recipe(num_steps=1)).run  # a context of 64 bytes
    study = TermFrequency(operations=("addition",), shots=(4,), num_first=2, num_second=1)
    with pytest.raises(ContextLengthError):
        tripod.run(run_study(study, find_checkpoints([str(run.folder)], steps=[1]), tmp_path))


def test_the_study_asks_counts_and_draws(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    """On a model that has learnt nothing of it, so that what is checked is the count of right answers, by hand from its own words."""
    run = train(make_recipe(model={"max_positions": 96}, batch={"rows": 4, "seq_length": 48})).run
    study = TermFrequency(operations=("addition",), shots=(0, 1), num_first=4, num_second=3)
    found = tripod.run(run_study(study, find_checkpoints([str(run.folder)], steps=[5, 12]), tmp_path))
    accuracies = found.table.where(statistic="accuracy")
    assert len(accuracies) == 2 * 2 * 4
    assert set(accuracies.numbers("count")) == {3.0}
    for row in accuracies:
        assert row["seen"] == term_counts(run, int(row["step"] or 0)).get(str(row["first"]), 0)
    means = found.table.where(statistic="mean accuracy")
    assert len(means) == 4
    for row in means:
        of = accuracies.where(step=row["step"], shots=row["shots"])
        assert row["value"] == pytest.approx(sum(of.numbers("value")) / 4)
    assert (tmp_path / "plot.png").is_file()
