"""How good are the answers, and did a change make them worse? Metrics with intervals, compared pair by pair with an earlier report.

    python examples/evaluate_answers.py docs/ cases.jsonl [earlier-report.json]

A line of cases.jsonl is {"question": ..., "answers": [...]}; an empty list of answers is a question that the documents do not answer.
"""

from __future__ import annotations

import sys
from pathlib import Path

import tripod
from tripod.evaluation.answers import evaluate_answers, load_answer_cases
from tripod.evaluation.report import Report


async def evaluate(index: tripod.Index, cases: Path) -> Report:
    return await evaluate_answers(load_answer_cases(cases), lambda question: tripod.ask(question, index))


async def main(folder: str, cases: str, earlier: str | None) -> None:
    async with tripod.Index(":memory:") as index:
        await index.sync(folder)
        report = await evaluate(index, Path(cases))
    print(report)
    report.save(Path("report.json"))
    if earlier is not None:
        print(report.compare(Path(earlier)))


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(f"usage: python {sys.argv[0]} FOLDER CASES [REPORT]")
    tripod.run(main(sys.argv[1], sys.argv[2], sys.argv[3] if len(sys.argv) == 4 else None))
