"""Answers on SQuAD 2.0: right ones, citations, and abstaining from what the documents do not answer, with intervals.

    python -m benchmarks.answers [--data FOLDER] [--questions 60] [--model-questions 200] [--docs docs/answers.md]

FOLDER holds squad-dev/dev-v2.0.half.json, and stories260K for the answers of a model. The titles are split in two halves by their order,
each an index of its own paragraphs. Of every title so many answerable and so many unanswerable questions are asked. On the first half a
calibration of the confidence is fitted, and the threshold chosen with which most come out right; the second half is reported.

- extractive: sentences of the passages, quoted, with the confidence and threshold that are built in;
- extractive, calibrated: the same answers, with the confidence fitted here;
- stories260K: a model of 260 thousand weights that knows children's stories, held to the passages by a grammar. It is here to show what
  holds whatever the model is: its citations. Its prompt is cut to what it can read.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.abstention import Remembering
from benchmarks.setting import RESULTS, keep, setting
from benchmarks.shared_data import DATA
from tripod.chat.local import LocalChatModel
from tripod.documents import Document, Passage
from tripod.engine.engine import Engine, EngineConfig
from tripod.evaluation import answers_metrics as metrics
from tripod.evaluation.answers import AnswerCase, evaluate_answers
from tripod.evaluation.report import Report
from tripod.models.llama2c import load_llama2c
from tripod.prompts import Part, Prompt
from tripod.protocols import ChatModel
from tripod.rag.answer import Answer
from tripod.rag.ask import ask
from tripod.rag.confidence import Calibration, fit, signals, threshold_for_risk
from tripod.rag.writing import Writing, Written, write
from tripod.retrieval.index import Index
from tripod.retrieval.local_embedder import find_default_embedder
from tripod.text.load_tokenizer import load_tokenizer
from tripod.trace import Delta

STORIES = "stories260K"
SHOWN = ("f1", "right", "right_if_answered", "answered_answerable", "answered_unanswerable", "citation_precision", "grounding", "refused")
STATISTICS = ("abstention_auroc", "area_under_risk_coverage", "calibration_error")
MAX_RISK = 0.5
_SHOWN_CHARACTERS = 300  # of a passage that fit stories260K's 512 tokens beside an answer


def cases_of(articles: Sequence[dict[str, Any]], count: int) -> list[AnswerCase]:
    """From every title so many answerable and unanswerable questions, from all over it."""
    found = []
    for article in articles:
        rows = [
            (question, f"{article['title']}/{place}")
            for place, paragraph in enumerate(article["paragraphs"])
            for question in paragraph["qas"]
        ]
        for is_impossible in (False, True):
            of_kind = [(question, source) for question, source in rows if question["is_impossible"] == is_impossible]
            for place in range(min(count, len(of_kind))):
                question, source = of_kind[place * len(of_kind) // min(count, len(of_kind))]
                golds = () if is_impossible else tuple(dict.fromkeys(answer["text"] for answer in question["answers"]))
                found.append(
                    AnswerCase(id=question["id"], question=question["question"], answers=golds, sources=() if is_impossible else (source,))
                )
    return found


@asynccontextmanager
async def opened(articles: Sequence[dict[str, Any]], embedder: Remembering) -> AsyncGenerator[Index, None]:
    with tempfile.TemporaryDirectory(prefix="tripod-answers-") as scratch:
        async with Index(Path(scratch) / "kb.db", embedder=embedder) as index:
            await index.add(
                Document(source=f"{article['title']}/{place}", text=paragraph["context"])
                for article in articles
                for place, paragraph in enumerate(article["paragraphs"])
            )
            yield index


@dataclass(slots=True)
class Remembered:
    """Every question asked once, without a threshold; how sure to be is decided afterwards."""

    index: Index
    answers: dict[str, Answer]

    async def __call__(self, question: str) -> Answer:
        if question not in self.answers:
            self.answers[question] = await ask(question, self.index, min_confidence=0.0)
        return self.answers[question]

    def known(self, question: str) -> Mapping[str, float]:
        extract = next(span for span in self.answers[question].trace if span.name == "extract")
        return signals(extract.attributes["evidence"])


def calibrated(cases: Sequence[AnswerCase], remembered: Remembered) -> tuple[Calibration, float | None]:
    """Fitted on these cases: how likely an answer is right. Its threshold is the one with which most cases come out right."""
    right = [is_right(case, remembered.answers[case.question]) for case in cases]
    calibration = fit([remembered.known(case.question) for case in cases], right)
    confidences = np.array([calibration.confidence(remembered.known(case.question)) for case in cases])
    given = np.array(right, dtype=float)
    withheld = np.array([float(not case.is_answerable) for case in cases])
    thresholds = np.unique(np.concatenate([[0.0], confidences, [1.0]]))
    scores = [float(np.where(confidences >= threshold, given, withheld).mean()) for threshold in thresholds]
    best = replace(calibration, threshold=float(thresholds[int(np.argmax(scores))]))
    return best, threshold_for_risk(confidences.tolist(), right, max_risk=MAX_RISK)


def is_right(case: AnswerCase, answer: Answer) -> bool:
    return case.is_answerable and metrics.contains(metrics.said(answer), case.answers) == 1.0


def decided(answer: Answer, confidence: float, threshold: float) -> Answer:
    """The answer, or none where the confidence is below the threshold."""
    if answer.kind == "abstained" or confidence < threshold:
        return replace(answer, text="", kind="abstained", citations=(), confidence=confidence)
    return replace(answer, confidence=confidence)


async def of_a_model(cases: Sequence[AnswerCase], index: Index, folder: Path, name: str) -> Report:
    """Answers that stories260K writes, whatever the confidence."""
    async with Engine(
        load_llama2c(folder / f"{STORIES}.bin"), load_tokenizer(folder), EngineConfig(max_num_requests=16), name=STORIES
    ) as engine:
        model = LocalChatModel(engine, chat_template="plain")
        writing = Writing(max_tokens=160, max_statements=2)

        async def answer(question: str) -> Answer:
            return await ask(question, index, model=model, k=1, writing=writing, synthesis=_briefly)

        return await evaluate_answers(cases, answer, name=name, at_once=16)


async def _briefly(
    question: str, given: Mapping[int, Passage], model: ChatModel, writing: Writing
) -> AsyncGenerator[Delta | Written, None]:
    """One passage, cut, and the question: what a context of 512 tokens holds."""
    text = next(iter(given.values())).text[:_SHOWN_CHARACTERS]

    def prompt(*, form: str) -> Prompt:
        return Prompt((Part(text, kind="passage"), Part(question[:100], kind="question")))

    async with aclosing(write(question, given, model, writing, prompt=prompt)) as events:
        async for event in events:
            yield event


async def run(data: Path, count: int, model_count: int) -> tuple[dict[str, Report], dict[str, Any]]:
    """Reports on the second half by method, and what was fitted on the first."""
    articles = json.loads((data / "squad-dev" / "dev-v2.0.half.json").read_text(encoding="utf-8"))["data"]
    articles.sort(key=lambda article: article["title"])
    tuning, held_out = articles[0::2], articles[1::2]
    found, why_not = find_default_embedder()
    if found is None:
        raise SystemExit(f"not measured: {why_not}")
    embedder = Remembering(found)
    async with opened(tuning, embedder) as index:
        remembered = Remembered(index, {})
        cases = cases_of(tuning, count)
        for case in cases:
            await remembered(case.question)
        calibration, for_risk = calibrated(cases, remembered)
    fitted = {
        "cases": len(cases),
        "weights": dict(calibration.weights),
        "bias": calibration.bias,
        "threshold": calibration.threshold,
        f"threshold for at most {MAX_RISK:.0%} wrong": for_risk,
    }
    reports: dict[str, Report] = {}
    async with opened(held_out, embedder) as index:
        remembered = Remembered(index, {})
        cases = cases_of(held_out, count)

        async def sure(question: str) -> Answer:
            answer = await remembered(question)
            return decided(answer, answer.confidence, 0.5)

        async def surer(question: str) -> Answer:
            answer = await remembered(question)
            return decided(answer, calibration.confidence(remembered.known(question)), calibration.threshold)

        async def boldly(question: str) -> Answer:
            answer = await remembered(question)
            return decided(answer, calibration.confidence(remembered.known(question)), 0.0)

        reports["extractive, never abstaining"] = await evaluate_answers(cases, boldly, name="extractive, never abstaining", at_once=1)
        reports["extractive"] = await evaluate_answers(cases, sure, name="extractive", at_once=1)
        reports["extractive, calibrated"] = await evaluate_answers(cases, surer, name="extractive, calibrated", at_once=1)
        if (data / STORIES).is_dir():
            few = cases[:: max(1, len(cases) // model_count)]
            reports[STORIES] = await of_a_model(few, index, data / STORIES, STORIES)
    return reports, fitted


def markdown(reports: Mapping[str, Report], fitted: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """The document: every number in it is of one run."""
    lines = [
        "# Answers, measured",
        "",
        "SQuAD 2.0 (24 of 48 articles of its dev set), the half of the titles on which nothing was fitted; mean [95 % bootstrap interval].",
        f"`{found['command']}`, commit {found['commit']}, {found['processor']}.",
        "",
        f"| metric | {' | '.join(reports)} |",
        f"|---|{'---|' * len(reports)}",
        f"| questions | {' | '.join(str(len(report.cases)) for report in reports.values())} |",
    ]
    lines += [f"| {metric} | {' | '.join(str(report.interval(metric) or '') for report in reports.values())} |" for metric in SHOWN]
    lines += [
        f"| {statistic} | {' | '.join(str(report.statistics.get(statistic, '')) for report in reports.values())} |"
        for statistic in STATISTICS
    ]
    weights = ", ".join(f"{name} {weight:.2f}" for name, weight in fitted["weights"].items())
    for_risk = fitted[f"threshold for at most {MAX_RISK:.0%} wrong"]
    promise = f" No threshold could promise at most {MAX_RISK:.0%} wrong answers."
    if for_risk is not None:
        promise = f" From {for_risk:.3f} on, at most {MAX_RISK:.0%} of the answers are wrong (with 95 % confidence)."
    lines += [
        "",
        "How to read it:",
        "",
        "- `f1` and `right` count every question; one that no paragraph answers is right if the answer abstains. `f1` compares",
        "  whole sentences with short golds, so it is low by its nature; `right` asks whether a gold stands in the answer.",
        "- `citation_precision` is the share of citations that point to the paragraph for which the question was written.",
        "- `abstention_auroc` is how often an answerable question is given a higher confidence than one that was written to look",
        "  answerable. Such questions repeat the words of their paragraph, which words and sentence vectors cannot tell from an",
        "  answer. Off-topic questions, for which the built-in threshold is made: `python -m benchmarks.abstention`.",
        f"- The calibration was fitted on {fitted['cases']} questions about the other titles: {weights}, bias",
        f"  {fitted['bias']:.2f}; most come out right with the threshold {fitted['threshold']:.3f}.{promise}",
        f"- {STORIES} knows children's stories only, and its prompt is cut to 512 tokens. What it shows is that the citations of a",
        "  model without sense hold: `refused` is the share of answers with a citation or quotation that did not.",
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the collections (default: %(default)s)")
    parser.add_argument("--questions", type=int, default=60, help="of each kind and title")
    parser.add_argument("--model-questions", type=int, default=200)
    parser.add_argument("--docs", type=Path, help="write the table as a document")
    arguments = parser.parse_args()
    found = setting("benchmarks.answers", ("torch", "numpy"))
    reports, fitted = asyncio.run(run(arguments.data, arguments.questions, arguments.model_questions))
    raw = {
        "setting": found,
        "fitted": fitted,
        "reports": {
            name: {
                "questions": len(report.cases),
                "means": {metric: _plain(report.interval(metric)) for metric in report.values},
                "statistics": {statistic: _plain(interval) for statistic, interval in report.statistics.items()},
            }
            for name, report in reports.items()
        },
    }
    print(f"raw: {keep('answers', raw).relative_to(RESULTS.parent)}")
    text = markdown(reports, fitted, found)
    print(text)
    if arguments.docs:
        arguments.docs.write_text(text, encoding="utf-8")
    return 0


def _plain(interval: Any) -> list[float] | None:
    return None if interval is None else [round(value, 4) for value in (interval.mean, interval.low, interval.high)]


if __name__ == "__main__":
    raise SystemExit(main())
