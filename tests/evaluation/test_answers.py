"""From a file of questions to a report, over a real index."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.rag.test_confidence import reply
from tripod.chat.scripted import ScriptedModel
from tripod.documents import Document, Passage
from tripod.errors import ConfigError, DatasetError
from tripod.evaluation.answers import AnswerCase, evaluate_answers, load_answer_cases
from tripod.evaluation.answers_judge import faithfulness, preference
from tripod.evaluation.report import Report
from tripod.evaluation.retrieval import RetrievalCase, evaluate_retrieval, load_retrieval_cases
from tripod.messages import Reply
from tripod.prompts import Prompt
from tripod.protocols import ChatModel
from tripod.rag.answer import Answer
from tripod.rag.ask import ask
from tripod.retrieval.index import Index
from tripod.sampling import SamplingParams

DOCUMENTS = [
    Document(source="dome", text="The dome closes when the wind is faster than 18 metres a second."),
    Document(source="motor", text="The motor turns the telescope once a day."),
    Document(source="storage", text="After ten years an exposure is deleted."),
]
CASES = [
    {"id": "dome", "question": "When does the dome close?", "answers": ["faster than 18 metres a second"], "sources": ["dome"]},
    {"id": "storage", "question": "When is an exposure deleted?", "answers": ["ten years"], "sources": ["storage"]},
    {"id": "none", "question": "Who wrote the Iliad?", "answers": []},
]


def with_index(folder: Path, use: Callable[[Index], object]) -> Report:
    async def play() -> Report:
        async with Index(folder / "kb.db", embedder=None) as index:
            await index.add(DOCUMENTS)
            return await use(index)  # type: ignore[misc, no-any-return]

    return asyncio.run(play())


def written(path: Path, rows: object) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n", encoding="utf-8")  # type: ignore[attr-defined]
    return path


def evaluated(folder: Path, model: ChatModel | None = None) -> Report:
    cases = load_answer_cases(written(folder / "cases.jsonl", CASES))
    return with_index(folder, lambda index: evaluate_answers(cases, lambda question: ask(question, index, model=model), at_once=1))


def test_right_answers_and_rightly_none(tmp_path: Path) -> None:
    report = evaluated(tmp_path)
    assert report.cases == ("dome", "storage", "none")
    assert report.values["right"] == [1.0, 1.0, 1.0]
    assert report.values["exact_match"] == [0.0, 0.0, 1.0]
    assert report.values["answered_answerable"] == [1.0, 1.0, None]
    assert report.values["answered_unanswerable"] == [None, None, 0.0]
    for metric in ("right_if_answered", "grounding", "citation_precision", "context_recall"):
        assert report.values[metric] == [1.0, 1.0, None]
    assert report.statistics["abstention_auroc"].mean == 1.0


def test_a_forged_citation_is_refused_and_counted(tmp_path: Path) -> None:
    report = evaluated(tmp_path, ScriptedModel(["In strong wind [9].", "After ten years [1]."]))
    assert report.values["refused"] == [1.0, 0.0, 0.0]
    assert report.values["right"] == [0.0, 1.0, 1.0]
    assert report.values["completion_tokens"] == [0.0, 4.0, 0.0]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"cases\.jsonl:1 is no JSON"),
        ("[]", "is no JSON object"),
        ('{"question": ""}', "question=''"),
        ('{"question": "a", "answers": "b"}', "expected a list of texts"),
        ("", "holds no cases"),
    ],
)
def test_what_is_no_case_is_refused_by_its_line(line: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "cases.jsonl").write_text(line)
    with pytest.raises(DatasetError, match=message):
        load_answer_cases(tmp_path / "cases.jsonl")


def test_a_question_may_hold_what_some_readers_take_for_the_end_of_a_line(tmp_path: Path) -> None:
    (tmp_path / "cases.jsonl").write_text('{"question": "one\u2028two"}\n', encoding="utf-8")
    [case] = load_answer_cases(tmp_path / "cases.jsonl")
    assert case.question == "one\u2028two"


def test_nothing_to_evaluate_is_refused() -> None:
    async def no_answer(question: str) -> Answer:
        raise AssertionError(question)

    with pytest.raises(ConfigError, match="0 cases"):
        asyncio.run(evaluate_answers([], no_answer))


def test_retrieval_is_judged_by_sources(tmp_path: Path) -> None:
    rows = [
        {"query": "dome wind", "relevant": ["dome"]},
        {"question": "telescope motor exposure", "relevant": {"motor": 2, "storage": 1}},
    ]
    cases = load_retrieval_cases(written(tmp_path / "cases.jsonl", rows))
    report = with_index(tmp_path, lambda index: evaluate_retrieval(cases, lambda query: index.search(query, k=5), k=2))
    assert report.cases == ("1", "2")
    assert report.values["ndcg@2"] == [1.0, 1.0]
    assert report.values["map@2"] == [1.0, 1.0]
    none = with_index(tmp_path, lambda index: evaluate_retrieval(cases, lambda query: index.search("moon", k=5), k=2))
    assert none.values["recall@2"] == [0.0, 0.0]
    assert report.compare(none)["recall@2"].interval.mean == 1.0
    for relevant in ("[]", '{"a": 0}', '{"a": "high"}', "null"):
        (tmp_path / "cases.jsonl").write_text(f'{{"query": "a", "relevant": {relevant}}}')
        with pytest.raises(DatasetError, match="at least one has a gain"):
            load_retrieval_cases(tmp_path / "cases.jsonl")


def test_a_source_counts_once_where_its_first_passage_stands() -> None:
    async def search(query: str) -> list[Passage]:
        return [Passage(source=source, start=0, end=1, text="x") for source in ("moon", "moon", "dome", "moon", "dome")]

    case = RetrievalCase(id="1", query="dome", gains={"dome": 1.0})
    report = asyncio.run(evaluate_retrieval([case], search, k=2))
    assert (report.values["mrr@2"], report.values["recall@2"]) == ([0.5], [1.0])


class Judge(ScriptedModel):
    """Says yes to what speaks of wind, and prefers whatever stands first."""

    async def complete(self, prompt: Prompt, sampling: SamplingParams) -> Reply:
        self.prompts.append(prompt)
        if "Answer A" in str(prompt):
            return reply(("A", 1.0))
        return reply(("yes", 0.75), ("no", 0.25)) if "Statement: In wind" in str(prompt) else reply(("no", 1.0))


def test_a_judge_is_asked_about_each_statement(tmp_path: Path) -> None:
    async def play() -> Answer:
        async with Index(tmp_path / "kb.db", embedder=None) as index:
            await index.add(DOCUMENTS)
            return await ask("When does the dome close?", index, model=ScriptedModel(["In wind [1]. At night [1]."]))

    answer = asyncio.run(play())
    judge = Judge([])
    assert asyncio.run(faithfulness(answer, judge)) == pytest.approx((0.75 + 0.0) / 2)
    other = Passage(source="other", start=0, end=5, text="Never")
    asyncio.run(faithfulness(replace(answer, passages=(*answer.passages, other)), judge))
    assert not any("Never" in str(prompt) for prompt in judge.prompts)  # it is shown what a statement cites, not all that was given
    report = evaluated(tmp_path, ScriptedModel(["In wind [1].", "In wind [1]."]))
    assert "faithfulness" not in report.values


def test_a_judge_that_prefers_a_place_prefers_nothing() -> None:
    found = asyncio.run(preference("When?", "In wind.", "At night.", Judge([])))
    assert (found.in_order, found.swapped, found.verdict) == ("first", "second", "tie")
    assert not found.is_consistent
    consistent = asyncio.run(preference("When?", "In wind.", "At night.", ScriptedModel(["A", "B."])))
    assert consistent.verdict == "first"


def test_a_judge_adds_its_metrics_to_the_report(tmp_path: Path) -> None:
    cases = [AnswerCase(id="dome", question="When does the dome close?", answers=("wind",))]
    model = ScriptedModel(["In wind [1]."])
    report = with_index(
        tmp_path, lambda index: evaluate_answers(cases, lambda question: ask(question, index, model=model), judge=Judge([]))
    )
    assert report.values["faithfulness"] == [pytest.approx(0.75)]
    assert report.values["context_relevance"] == [pytest.approx(0.0)]
