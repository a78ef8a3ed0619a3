"""`tripod provenance`: which batches a checkpoint had a text from."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tripod.training.ngrams.provenance import Provenance
    from tripod.training.ngrams.trace import Trace, TracedSpan

PLACES = 3  # of a stretch that are shown


def provenance(
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What to trace; - reads it from stdin.")],
    run: Annotated[str, typer.Option("--run", metavar="RUN[@stepN]", help="A training run, as one of its checkpoints has seen it.")],
    min_tokens: Annotated[int, typer.Option("--min-tokens", min=1, help="Of a stretch.")] = 4,
    top: Annotated[int, typer.Option("--top", min=0, help="Show so many stretches, the rarest first; 0: all.")] = 8,
    places: Annotated[int, typer.Option("--places", min=1, help="Show so many places of each, the earliest first.")] = PLACES,
    as_json: Annotated[bool, typer.Option("--json", help="Print all of it as JSON.")] = False,
) -> None:
    """Trace a text to the training steps, rows and documents in which its words were read together.

    The first call for a run indexes its training tokens, in the folder of the run; later calls take a fraction of a second.
    """
    from tripod.cli.terminal import note, print_json, stdout

    opened = open_provenance(run)
    traced = opened.trace(sys.stdin.read().removesuffix("\n") if text == "-" else text, min_tokens=min_tokens)
    if as_json:
        print_json(trace_json(traced, opened, places))
        return
    console = stdout()
    console.print(summary(traced, opened), markup=False)
    for number, span in enumerate(traced.spans[: top or None], 1):
        console.print()
        for line in span_lines(span, opened, places, head=f"{number}. "):
            console.print(line, markup=False, style="cyan" if line.startswith("   step") else None)
    if top and len(traced.spans) > top:
        note(f"{len(traced.spans) - top} more; --top 0 shows all")


def open_provenance(address: str) -> Provenance:
    """Opens the index of a run; making it shows how far it is."""
    from rich.status import Status

    from tripod.cli.terminal import stderr
    from tripod.training.ngrams.provenance import Provenance

    with Status("", console=stderr()) as status:

        def progress(stage: str, done: int, total: int | None) -> None:
            status.update(f"{stage} {done:,}" + (f" of {total:,}" if total is not None else ""))

        return Provenance.open(address, progress=progress)


def summary(traced: Trace, opened: Provenance) -> str:
    """One line: how much of the text was read before."""
    return (
        f"{opened.model}: {traced.num_covered} of {len(traced.ids)} tokens stand in {len(traced.spans)} stretches of at least "
        f"{traced.min_tokens} that it has read"
    )


def span_lines(span: TracedSpan, opened: Provenance, places: int = PLACES, *, head: str = "") -> Iterator[str]:
    """A stretch, how often it was read, and the first places."""
    yield f"{head}{_one_line(span.text)!r}"
    times = f"{len(span.seen)} time{'s' if len(span.seen) > 1 else ''}"
    documents = f"{span.seen.num_documents} document{'s' if span.seen.num_documents > 1 else ''}"
    later = f", {span.num_later} more after it" if span.num_later else ""
    yield f"   {span.num_tokens} tokens, {span.information:.0f} bits; read {times} in {documents} before step {opened.step}{later}"
    for number in range(min(places, len(span.seen))):
        yield f"   {opened.title(span.seen[number])}"
    if len(span.seen) > places:
        yield f"   ... last in step {int(span.seen.steps[-1])}"


def trace_json(traced: Trace, opened: Provenance, places: int) -> dict[str, Any]:
    """Tokens count from 0; steps, rows and columns too."""
    return {
        "model": opened.model,
        "num_tokens": len(traced.ids),
        "num_covered": traced.num_covered,
        "spans": [span_json(span, opened, places) for span in traced.spans],
    }


def span_json(span: TracedSpan, opened: Provenance, places: int) -> dict[str, Any]:
    return {
        "start": span.start,
        "stop": span.stop,
        "text": span.text,
        "bits": round(span.information, 2),
        "num_seen": len(span.seen),
        "num_documents": span.seen.num_documents,
        "num_later": span.num_later,
        "steps": sorted(set(span.seen.steps.tolist())),
        "first": [
            {
                "step": one.step,
                "row": one.place.row,
                "column": one.place.column,
                "dataset": one.dataset,
                "document": one.document,
                "offset": one.offset,
                "source": record.source if record is not None else None,
                "line": record.line if record is not None else None,
            }
            for one in (span.seen[number] for number in range(min(places, len(span.seen))))
            for record in [opened.record(one)]
        ],
    }


def _one_line(text: str) -> str:
    return " ".join(text.split("\n"))
