"""`tripod ask`: a question to a folder, an answer with its places."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from tripod.cli.search import Where, parse_where

_SPANS = 2  # stretches of a sentence that are shown, the rarest first

if TYPE_CHECKING:
    from tripod.filters import Filter
    from tripod.rag.answer import Answer
    from tripod.rag.provenance import SentenceOrigin
    from tripod.training.ngrams.provenance import Provenance


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
    where: Where = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Of the model's answer.")] = 512,
    chat_template: Annotated[
        str | None,
        typer.Option(
            "--chat-template", metavar="plain|FILE", help="For a model without a chat template, or instead of its own: a Jinja file."
        ),
    ] = None,
    with_provenance: Annotated[
        bool,
        typer.Option("--provenance", help="Follow each sentence to the training steps in which --model RUN@stepN had read its words."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")] = False,
) -> None:
    """Ask a folder of documents. The answer cites file, line and section, or says that the documents do not answer.

    Without --model the answer is quoted from the documents. A folder's index is kept in your cache; nothing is written into the folder.
    """
    import tripod
    from tripod.cli.terminal import print_json

    provenance = _provenance(model) if with_provenance else None
    answer = tripod.run(_ask(documents, question, model, k, parse_where(where), max_tokens, chat_template, provenance))
    if as_json:
        print_json(answer_json(answer, provenance))
    else:
        print_answer(answer)
        if provenance is not None:
            print_origins(answer, provenance)


def _provenance(model: str | None) -> Provenance:
    from tripod.cli.provenance import open_provenance
    from tripod.errors import ConfigError

    if model is None:
        raise ConfigError("--provenance follows an answer to what its model was trained on; name the model: --model RUN@stepN")
    return open_provenance(model)


async def _ask(
    documents: str,
    question: str,
    model: str | None,
    k: int,
    where: Filter | None,
    max_tokens: int,
    chat_template: str | None,
    provenance: Provenance | None,
) -> Answer:
    import tripod
    from tripod.cli.open_index import open_index

    async with open_index(documents) as index:
        if model is None:
            return await tripod.ask(question, index, k=k, where=where)
        async with tripod.Model(model, chat_template=chat_template) as opened:
            return await tripod.ask(question, index, model=opened, k=k, where=where, max_tokens=max_tokens, provenance=provenance)


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


def print_origins(answer: Answer, provenance: Provenance) -> None:
    """For each sentence: its passage, the engine's steps, the checkpoint, and the training steps of its rarest words."""
    from tripod.cli.terminal import stdout

    console = stdout()
    for origin in answer.origins:
        console.print()
        for line in origin_lines(answer, origin, provenance):
            console.print(line, markup=False, style="cyan" if line.startswith(("  passage", "  engine", "  model", "  training")) else None)


def origin_lines(answer: Answer, origin: SentenceOrigin, provenance: Provenance) -> list[str]:
    """The chain of one sentence, a line each."""
    from tripod.cli.provenance import span_lines

    sentence = " ".join(answer.text[origin.start : origin.end].split())
    lines = [f"{sentence!r}"]
    lines += [f"  passage   [{one.number}] {one.place}" for one in origin.citations] or ["  passage   none is cited"]
    lines = list(dict.fromkeys(lines))
    steps = f"steps {_ranges(origin.step_ids)}, {len(origin.token_ids)} tokens" if origin.step_ids else "steps not known: not written here"
    lines += [f"  engine    {steps}", f"  model     {origin.model}"]
    if not origin.trace.spans:
        return [*lines, f"  training  none: no {origin.trace.min_tokens} tokens of it were read together before step {origin.trace.step}"]
    for span in origin.trace.spans[:_SPANS]:
        first, *others = span_lines(span, provenance)
        lines += [f"  training  {first}", *(f"         {line}" for line in others)]
    return lines


def _ranges(numbers: tuple[int, ...]) -> str:
    """3, 4, 5, 9 -> "3-5, 9"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def source_lines(answer: Answer) -> list[str]:
    """`[2] contextlib.py:612, suppress`, each place once."""
    # A quotation's place is more exact than that of the passage, so it alone is shown where both are cited.
    quoted = {citation.number for citation in answer.citations if citation.is_quotation}
    lines = [
        f"[{citation.number}] {citation.place}" for citation in answer.citations if citation.is_quotation or citation.number not in quoted
    ]
    return list(dict.fromkeys(lines))


def answer_json(answer: Answer, provenance: Provenance | None = None) -> dict[str, Any]:
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
        **({} if provenance is None else {"origins": [_origin_json(answer, origin, provenance) for origin in answer.origins]}),
    }


def _origin_json(answer: Answer, origin: SentenceOrigin, provenance: Provenance) -> dict[str, Any]:
    from tripod.cli.provenance import PLACES, trace_json

    return {
        "start": origin.start,
        "end": origin.end,
        "text": answer.text[origin.start : origin.end],
        "passages": [{"number": one.number, "source": one.source, "line": one.line, "page": one.page} for one in origin.citations],
        "engine_steps": list(origin.step_ids),
        "training": trace_json(origin.trace, provenance, PLACES),
    }
