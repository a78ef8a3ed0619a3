"""Answers to questions with known answers: a data set as JSONL, one report with intervals."""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import numpy as np
from numpy.typing import NDArray

from tripod.errors import CitationError, ConfigError, DatasetError
from tripod.evaluation import answers_metrics as metrics
from tripod.evaluation.answers_abstention import area_under_risk_coverage, auroc, calibration_error, risk_coverage
from tripod.evaluation.answers_judge import context_relevance, faithfulness
from tripod.evaluation.intervals import bootstrap_of
from tripod.evaluation.report import SEED, Report
from tripod.protocols import ChatModel
from tripod.rag.answer import Answer

LOWER_IS_BETTER = frozenset({"seconds", "prompt_tokens", "completion_tokens", "refused"})
_NUM_RESAMPLES = 300  # of the statistics that are computed anew on each


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerCase:
    """A question, with what is a right answer to it.

    Args:
        id: once in a data set.
        question: as it is asked.
        answers: any of which is right; none where the documents do not answer.
        sources: of the documents that answer; where none is named, a passage is relevant that holds an answer.
    """

    id: str
    question: str
    answers: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()

    @property
    def is_answerable(self) -> bool:
        return bool(self.answers or self.sources)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a case: an answer, or the refusal of one whose citations did not hold."""

    case: AnswerCase
    answer: Answer
    seconds: float
    refusal: str = ""


def load_answer_cases(path: Path) -> list[AnswerCase]:
    """Read JSONL: an object a line with `question`, and where known `id`, `answers` (a list, empty where none is right) and `sources`.

    Raises:
        DatasetError: a line is none, with its number.
    """
    return [
        AnswerCase(
            id=str(row.get("id", number)),
            question=_text(row, "question", path, number),
            answers=_texts(row, "answers", path, number),
            sources=_texts(row, "sources", path, number),
        )
        for number, row in jsonl(path)
    ]


async def evaluate_answers(
    cases: Sequence[AnswerCase],
    answer: Callable[[str], Awaitable[Answer]],
    *,
    name: str = "answers",
    judge: ChatModel | None = None,
    at_once: int = 4,
    settings: Mapping[str, Any] | None = None,
) -> Report:
    """Ask every question, and compare what comes with what is right.

    Args:
        cases: questions with answers.
        answer: such as `lambda question: tripod.ask(question, index)`.
        name: of the report.
        judge: a model that tells probabilities; with one, faithfulness and the relevance of the context are judged too.
        at_once: questions under way.
        settings: kept in the report.

    Raises:
        ConfigError: no cases, or `at_once` below 1.
    """
    if not cases or at_once < 1:
        raise ConfigError(f"{len(cases)} cases, {at_once} at once, is nothing to evaluate; give at least one of each")
    outcomes: dict[int, Outcome] = {}
    judged: dict[int, tuple[float | None, float | None]] = {}
    limiter = anyio.CapacityLimiter(at_once)

    async def one(place: int, case: AnswerCase) -> None:
        async with limiter:
            outcomes[place] = await _outcome(case, answer)
            if judge is not None:
                given = outcomes[place].answer
                judged[place] = await faithfulness(given, judge), await context_relevance(case.question, given.passages, judge)

    async with anyio.create_task_group() as tasks:
        for place, case in enumerate(cases):
            tasks.start_soon(one, place, case)
    report = report_of([outcomes[place] for place in range(len(cases))], name=name, settings=settings)
    if judge is None:
        return report
    values = {
        **report.values,
        "faithfulness": [judged[place][0] for place in range(len(cases))],
        "context_relevance": [judged[place][1] for place in range(len(cases))],
    }
    return Report(
        name=name,
        cases=report.cases,
        values=values,
        lower_is_better=report.lower_is_better,
        statistics=report.statistics,
        curves=report.curves,
        settings=report.settings,
    )


def report_of(outcomes: Sequence[Outcome], *, name: str = "answers", settings: Mapping[str, Any] | None = None) -> Report:
    """The report of answers that were given.

    Exact match, F1 and `right` (an answer is contained, or rightly there is none) are of all cases; what is asked about answers, such as
    their grounding, of those that were answered; what is asked about the context, of those that can be answered.
    """
    answerable = [outcome.case.is_answerable for outcome in outcomes]
    has_golds = [bool(outcome.case.answers) or not outcome.case.is_answerable for outcome in outcomes]
    texts = [metrics.said(outcome.answer) for outcome in outcomes]
    answered = [outcome.answer.kind != "abstained" for outcome in outcomes]
    right = [
        metrics.contains(text, one.case.answers) if known else None for text, one, known in zip(texts, outcomes, has_golds, strict=True)
    ]
    values: dict[str, list[float | None]] = {
        "exact_match": [metrics.exact_match(t, o.case.answers) if g else None for t, o, g in zip(texts, outcomes, has_golds, strict=True)],
        "f1": [metrics.f1(t, o.case.answers) if g else None for t, o, g in zip(texts, outcomes, has_golds, strict=True)],
        "right": right,
        "right_if_answered": [value if given else None for value, given in zip(right, answered, strict=True)],
        "rouge_l": [
            max(metrics.rouge_l(text, gold) for gold in o.case.answers) if o.case.answers else None
            for text, o in zip(texts, outcomes, strict=True)
        ],
        "answered_answerable": [float(given) if can else None for given, can in zip(answered, answerable, strict=True)],
        "answered_unanswerable": [None if can else float(given) for given, can in zip(answered, answerable, strict=True)],
        "grounding": [metrics.grounding(o.answer) if given else None for o, given in zip(outcomes, answered, strict=True)],
        "citation_precision": [_if(o, metrics.citation_precision) for o in outcomes],
        "citation_recall": [_if(o, metrics.citation_recall) if given else None for o, given in zip(outcomes, answered, strict=True)],
        "context_precision": [metrics.context_precision(o.answer.passages, *_golds(o)) if o.case.is_answerable else None for o in outcomes],
        "context_recall": [metrics.context_recall(o.answer.passages, *_golds(o)) if o.case.is_answerable else None for o in outcomes],
        "refused": [float(bool(o.refusal)) for o in outcomes],
        "prompt_tokens": [float(o.answer.usage.prompt_tokens) for o in outcomes],
        "completion_tokens": [float(o.answer.usage.completion_tokens) for o in outcomes],
        "seconds": [o.seconds for o in outcomes],
    }
    confidences = np.array([outcome.answer.confidence for outcome in outcomes])
    can = np.array(answerable)
    is_right = np.array([bool(value) for value in right])
    statistics = {}
    if can.any() and not can.all():
        statistics["abstention_auroc"] = bootstrap_of(
            lambda rows: auroc(confidences[rows].tolist(), can[rows].tolist()),
            len(can),
            np.random.default_rng(SEED),
            num_resamples=_NUM_RESAMPLES,
        )
    # Of the answers that would be given if none were withheld: only those that were can be judged.
    given = np.flatnonzero(np.array(answered))
    curves: dict[str, tuple[str, str, Sequence[float], Sequence[float]]] = {}
    if len(given):
        would_be_right = is_right & can

        def risk(rows: NDArray[np.int64]) -> float:
            return area_under_risk_coverage(confidences[given[rows]].tolist(), would_be_right[given[rows]].tolist())

        def gap(rows: NDArray[np.int64]) -> float:
            return calibration_error(confidences[given[rows]].tolist(), would_be_right[given[rows]].tolist())

        for label, statistic in (("area_under_risk_coverage", risk), ("calibration_error", gap)):
            statistics[label] = bootstrap_of(statistic, len(given), np.random.default_rng(SEED), num_resamples=_NUM_RESAMPLES)
        coverage, risks = risk_coverage(confidences[given].tolist(), would_be_right[given].tolist())
        curves["risk and coverage of the answers given"] = (
            "share answered, surest first",
            "share wrong",
            coverage.tolist(),
            risks.tolist(),
        )
    return Report(
        name=name,
        cases=tuple(outcome.case.id for outcome in outcomes),
        values=values,
        lower_is_better=LOWER_IS_BETTER | {"answered_unanswerable"},
        statistics=statistics,
        curves=curves,
        settings=settings or {},
    )


async def _outcome(case: AnswerCase, answer: Callable[[str], Awaitable[Answer]]) -> Outcome:
    began_s = time.perf_counter()
    try:
        given = await answer(case.question)
    except CitationError as error:  # what does not hold is not shown to anyone: the case counts as not answered
        refused = Answer(question=case.question, text="", kind="abstained")
        return Outcome(case, refused, time.perf_counter() - began_s, str(error))
    return Outcome(case, given, time.perf_counter() - began_s)


def _golds(outcome: Outcome) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return outcome.case.answers, outcome.case.sources


def _if(outcome: Outcome, metric: Callable[..., float | None]) -> float | None:
    return metric(outcome.answer, *_golds(outcome)) if outcome.case.is_answerable else None


def jsonl(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """The objects of a file of JSON lines with their line numbers, from 1.

    Raises:
        DatasetError: the file cannot be read, a line is no object, or there is none.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path} cannot be read: {error}") from None
    rows: list[tuple[int, dict[str, Any]]] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DatasetError(f"{path}:{number} is no JSON: {error}") from None
        if not isinstance(row, dict):
            raise DatasetError(f"{path}:{number} is no JSON object: {line[:80]!r}")
        rows.append((number, row))
    if not rows:
        raise DatasetError(f"{path} holds no cases; write one JSON object a line")
    return rows


def _text(row: Mapping[str, Any], key: str, path: Path, number: int) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        raise DatasetError(f"{path}:{number} has {key}={value!r}; expected a text")
    return value


def _texts(row: Mapping[str, Any], key: str, path: Path, number: int) -> tuple[str, ...]:
    value = row.get(key, [])
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise DatasetError(f"{path}:{number} has {key}={value!r}; expected a list of texts")
    return tuple(value)
