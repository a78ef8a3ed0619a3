"""Act 1 of the demo: ask the documentation that every Python carries."""

from __future__ import annotations

import platform
import sysconfig
import time
from pathlib import Path
from typing import TYPE_CHECKING

import tripod
from tripod.cli.ask import source_lines
from tripod.cli.open_index import cached_index_path, open_cached_index
from tripod.cli.progress import sync_with_progress

if TYPE_CHECKING:
    from rich.console import Console

    from tripod.rag.answer import Answer, Citation

QUESTIONS = (
    "How does a context manager suppress an exception?",
    "When are default parameter values evaluated?",
    "What happens if maxsize of lru_cache is None?",
)
UNANSWERABLE = "What is the capital of France?"
# Not documentation of the standard library: what was installed, tests, and tools that only happen to live there.
EXCLUDE = ("site-packages", "dist-packages", "test", "tests", "idle_test", "idlelib", "lib2to3", "turtledemo", "__pycache__")
_TOPICS = "pydoc_data/topics.py"  # the language reference


def ask_python(console: Console) -> list[str]:
    """Plays the act; returns the claims that did not hold."""
    console.rule(f"Act 1: ask the Python you have ({platform.python_version()})", style="bold")
    return tripod.run(_play(console))


async def _play(console: Console) -> list[str]:
    from tripod.retrieval.converters.python_source import PythonSource

    folder = Path(sysconfig.get_paths()["stdlib"])
    path = cached_index_path(folder)
    path = path.with_name(f"docstrings-{path.name}")  # beside that of `tripod ask FOLDER`, which reads comments too
    console.print("Its language reference and the docstrings of its standard library, indexed from:", style="dim")
    console.print(f"  {folder}", markup=False, soft_wrap=True)
    answers: list[Answer] = []
    async with open_cached_index(path, converters=[PythonSource(has_comments=False)]) as index:
        started_s = time.monotonic()
        report = await sync_with_progress(index, folder, exclude=EXCLUDE)
        elapsed_s = time.monotonic() - started_s
        work = f"{report.added} added, {report.changed} changed, {report.removed} removed, {report.unchanged} unchanged"
        console.print(f"  {report.seen} files: {work}, {len(report.failed)} unreadable, in {elapsed_s:.1f} s", markup=False)
        console.print(f"  {index.mode_note or 'search is by words and by meaning'}", markup=False)
        console.print()
        console.print(
            "No language model was used for these answers: they are quoted, word for word, and each says from where.", style="bold"
        )
        for question in (*QUESTIONS, UNANSWERABLE):
            started_s = time.monotonic()
            answer = await tripod.ask(question, index)
            answers.append(answer)
            _print_answer(console, answer, time.monotonic() - started_s)
    failures = _check(answers, folder)
    quotations = [citation for answer in answers for citation in answer.citations]
    held = sum(_stands_there(citation, folder) for citation in quotations)
    answered = sum(answer.kind == "extractive" for answer in answers[:-1])
    console.print()
    for claim, count, of in (
        ("answered", answered, len(QUESTIONS)),
        ("quotations found in the files where they are said to be", held, len(quotations)),
        ("abstained from what is not there", int(answers[-1].kind == "abstained"), 1),
    ):
        console.print(f"{claim}: {count}/{of}", style="bold green" if count == of else "bold red")
    console.print("With a language model that writes the answer, and has its citations checked:", style="dim")
    console.print(f'  tripod ask {path} "{QUESTIONS[0]}" --model FOLDER-OR-URL', markup=False, soft_wrap=True)
    return failures


def _print_answer(console: Console, answer: Answer, elapsed_s: float) -> None:
    from rich.padding import Padding
    from rich.text import Text

    console.print()
    console.print(f"? {answer.question}", style="bold", markup=False)
    for line in answer.text.splitlines():
        console.print(Padding(Text(line, style="dim" if answer.kind == "abstained" else ""), (0, 0, 0, 2), expand=False))
    for line in source_lines(answer):
        console.print(Padding(Text(line, style="cyan"), (0, 0, 0, 2), expand=False))
    verdict = "abstained" if answer.kind == "abstained" else "quoted"
    console.print(f"  {verdict}, confidence {answer.confidence:.2f}, {elapsed_s * 1000:.0f} ms", style="dim")


def _check(answers: list[Answer], folder: Path) -> list[str]:
    failures = [
        f"{answer.question!r} is answered by the documentation and was abstained from" for answer in answers[:-1] if not answer.citations
    ]
    failures += [
        f"{citation.quote!r} does not stand at {citation.place}"
        for answer in answers
        for citation in answer.citations
        if not _stands_there(citation, folder)
    ]
    if answers[-1].kind != "abstained":
        failures.append(f"{answers[-1].question!r} is not answered by the documentation and was not abstained from")
    return failures


def _stands_there(citation: Citation, folder: Path) -> bool:
    """Looks into the file itself, past the index. The reference is one dictionary, of which Python makes texts for us."""
    if citation.source == _TOPICS:
        from pydoc_data.topics import topics

        return any(citation.quote in text for text in topics.values())
    text = (folder / citation.source).read_text(encoding="utf-8")
    return (
        text[citation.source_start : citation.source_end] == citation.quote
        and citation.line == text.count("\n", 0, citation.source_start) + 1
    )
