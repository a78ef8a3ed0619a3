"""`tripod eval answers` and `tripod eval retrieval`: one report with intervals, as text, JSON and HTML, and against a baseline."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tripod.cli.search import Mode

if TYPE_CHECKING:
    from tripod.evaluation.report import Report

Documents = Annotated[str, typer.Argument(metavar="FOLDER|KB.DB|URL", help="A folder of documents, or an index made by 'tripod index'.")]
Out = Annotated[Path | None, typer.Option("--out", metavar="REPORT.JSON", help="Keep the report; a later run can take it as its baseline.")]
Html = Annotated[Path | None, typer.Option("--html", metavar="REPORT.HTML", help="Write a page with plots.")]
Baseline = Annotated[
    Path | None,
    typer.Option(
        "--baseline", metavar="REPORT.JSON", help="Compare with an earlier report, case by case. Ends with 1 if a metric is worse."
    ),
]
AtOnce = Annotated[int, typer.Option("--at-once", min=1, help="Questions under way.")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Only the first so many cases.")]


def answers(
    documents: Documents,
    cases: Annotated[Path, typer.Argument(metavar="CASES.JSONL", help='{"question": ..., "answers": [...], "sources": [...]} a line.')],
    model: Annotated[str | None, typer.Option("--model", "-m", help="Writes the answers; without it they are extractive.")] = None,
    judge: Annotated[str | None, typer.Option("--judge", help="A model that judges faithfulness and context by yes and no.")] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="How many passages to read.")] = 6,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Of an answer that a model writes.")] = 512,
    chat_template: Annotated[str | None, typer.Option("--chat-template", metavar="plain|FILE", help="For a model without one.")] = None,
    limit: Limit = None,
    at_once: AtOnce = 4,
    out: Out = None,
    html: Html = None,
    baseline: Baseline = None,
) -> None:
    """Ask every question of a file, and judge answers, citations and abstentions.

    A case without answers and sources is one that the documents do not answer.
    """
    import tripod
    from tripod.cli.open_index import open_index
    from tripod.evaluation.answers import evaluate_answers, load_answer_cases
    from tripod.retrieval.open_store import printable

    loaded = load_answer_cases(cases)[:limit]

    async def run() -> Report:
        from contextlib import AsyncExitStack

        async with AsyncExitStack() as opened:
            index = await opened.enter_async_context(open_index(documents))
            writer = await opened.enter_async_context(tripod.Model(model, chat_template=chat_template)) if model else None
            critic = await opened.enter_async_context(tripod.Model(judge)) if judge else None
            settings = {"documents": printable(documents), "cases": str(cases), "model": model or "", "judge": judge or "", "k": k}
            return await evaluate_answers(
                loaded,
                lambda question: tripod.ask(question, index, model=writer, k=k, max_tokens=max_tokens),
                judge=critic,
                at_once=at_once,
                settings=settings,
            )

    _give(tripod.run(run()), out, html, baseline)


def retrieval(
    documents: Documents,
    cases: Annotated[Path, typer.Argument(metavar="CASES.JSONL", help='{"query": ..., "relevant": [sources] or {source: gain}} a line.')],
    k: Annotated[int, typer.Option("-k", min=1, help="How far the metrics look.")] = 10,
    mode: Annotated[Mode, typer.Option("--mode", help="Words, vectors, or both.")] = Mode.hybrid,
    limit: Limit = None,
    at_once: AtOnce = 4,
    out: Out = None,
    html: Html = None,
    baseline: Baseline = None,
) -> None:
    """Search for every query of a file, and judge where the relevant sources stand (nDCG, recall, MRR, MAP by trec_eval)."""
    import tripod
    from tripod.cli.open_index import open_index
    from tripod.cli.terminal import note
    from tripod.evaluation.retrieval import evaluate_retrieval, load_retrieval_cases
    from tripod.retrieval.open_store import printable

    loaded = load_retrieval_cases(cases)[:limit]

    async def run() -> Report:
        async with open_index(documents) as index:
            if index.mode_note:
                note(f"note: {index.mode_note}")
            return await evaluate_retrieval(
                loaded,
                lambda query: index.search(query, k=_PASSAGES_A_SOURCE * k, mode=mode.value),
                k=k,
                at_once=at_once,
                settings={"documents": printable(documents), "cases": str(cases), "mode": mode.value, "k": k},
            )

    _give(tripod.run(run()), out, html, baseline)


_PASSAGES_A_SOURCE = 5  # that are looked through, so that k sources are among them


def _give(report: Report, out: Path | None, html: Path | None, baseline: Path | None) -> None:
    from tripod.cli.terminal import note, stdout

    console = stdout()
    comparison = report.compare(baseline) if baseline is not None else None
    console.print(str(report), markup=False, highlight=False)
    if comparison is not None:
        console.print(f"against {baseline}, paired:\n{comparison}", markup=False, highlight=False)
    if out is not None:
        report.save(out)
    if html is not None:
        from tripod.evaluation.report_html import write_html

        write_html(report, html, comparison)
    if comparison is not None and comparison.worse:
        note(f"worse than the baseline: {', '.join(comparison.worse)}")
        raise typer.Exit(1)
