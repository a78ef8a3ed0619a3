"""`tripod ask`: a question to a folder, an answer with its places."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from tripod.rag.answer import Answer


def ask(
    documents: Annotated[
        str, typer.Argument(metavar="FOLDER|KB.DB|URL", help="A folder of documents, or an index made by 'tripod index'.")
    ],
    question: Annotated[str, typer.Argument(help="In words.")],
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Let a model write the answer: a folder, run@stepN, org/name[@revision], or http://host/v1."),
    ] = None,
    k: Annotated[int, typer.Option("-k", help="How many passages to read.")] = 6,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Of the model's answer.")] = 512,
    chat_template: Annotated[
        str | None,
        typer.Option(
            "--chat-template", metavar="plain|FILE", help="For a model without a chat template, or instead of its own: a Jinja file."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")] = False,
) -> None:
    """Ask a folder of documents. The answer cites file, line and section, or says that the documents do not answer.

    Without --model the answer is quoted from the documents. A folder's index is kept in your cache; nothing is written into the folder.
    """
    import tripod
    from tripod.cli.terminal import print_json

    answer = tripod.run(_ask(documents, question, model, k, max_tokens, chat_template))
    if as_json:
        print_json(answer_json(answer))
    else:
        print_answer(answer)


async def _ask(documents: str, question: str, model: str | None, k: int, max_tokens: int, chat_template: str | None) -> Answer:
    import tripod
    from tripod.cli.open_index import open_index

    async with open_index(documents) as index:
        if model is None:
            return await tripod.ask(question, index, k=k)
        async with tripod.Model(model, chat_template=chat_template) as opened:
            return await tripod.ask(question, index, model=opened, k=k, max_tokens=max_tokens)


def print_answer(answer: Answer) -> None:
    """The text and its sources on stdout, what else there is to know on stderr."""
    from tripod.cli.terminal import note, stdout

    console = stdout()
    console.print(answer.text, markup=False)
    lines = source_lines(answer)
    if lines:
        console.print()
        for line in lines:
            console.print(line, style="cyan", markup=False)
    for text in answer.notes:
        note(f"note: {text}")
    if answer.kind == "abstained":
        note(f"note: abstained, confidence {answer.confidence:.2f}")


def source_lines(answer: Answer) -> list[str]:
    """`[2] contextlib.py:612, suppress`, each place once."""
    # A quotation's place is more exact than that of the passage, so it alone is shown where both are cited.
    quoted = {citation.number for citation in answer.citations if citation.is_quotation}
    lines = [
        f"[{citation.number}] {citation.place}" for citation in answer.citations if citation.is_quotation or citation.number not in quoted
    ]
    return list(dict.fromkeys(lines))


def answer_json(answer: Answer) -> dict[str, Any]:
    """Offsets are half-open character ranges, of `start` into the answer's text and of `source_start` into the document."""
    return {
        "question": answer.question,
        "text": answer.text,
        "kind": answer.kind,
        "confidence": round(answer.confidence, 4),
        "model": answer.model,
        "citations": [
            {
                "start": citation.start,
                "end": citation.end,
                "number": citation.number,
                "source": citation.source,
                "source_start": citation.source_start,
                "source_end": citation.source_end,
                "quote": citation.quote,
                "is_quotation": citation.is_quotation,
                "section": citation.section,
                "line": citation.line,
                "page": citation.page,
            }
            for citation in answer.citations
        ],
        "usage": {
            "prompt_tokens": answer.usage.prompt_tokens,
            "completion_tokens": answer.usage.completion_tokens,
            "cached_tokens": answer.usage.cached_tokens,
        },
        "notes": list(answer.notes),
        "trace": [{"name": span.name, "duration_s": round(span.duration_s, 6)} for span in answer.trace],
    }
