"""`tripod search`: the passages that a query finds."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from tripod.documents import Passage


class Mode(StrEnum):
    bm25 = "bm25"
    dense = "dense"
    hybrid = "hybrid"


def search(
    index: Annotated[str, typer.Argument(metavar="KB.DB|URL", help="An index made by 'tripod index', or a folder.")],
    query: Annotated[str, typer.Argument(help="Words or a question.")],
    k: Annotated[int, typer.Option("-k", min=1, help="How many passages.")] = 10,
    mode: Annotated[Mode, typer.Option("--mode", help="Words, vectors, or both.")] = Mode.hybrid,
    as_json: Annotated[bool, typer.Option("--json", help="Print a list of {source, start, end, text, score}.")] = False,
) -> None:
    """Search an index. Offsets are half-open character ranges into the source's text."""
    import tripod
    from tripod.cli.terminal import note, print_json, stdout
    from tripod.rag.answer import place

    passages, mode_note = tripod.run(_search(index, query, k, mode))
    if mode_note:
        note(f"note: {mode_note}")
    if as_json:
        print_json(
            [
                {"source": passage.source, "start": passage.start, "end": passage.end, "text": passage.text, "score": passage.score}
                for passage in passages
            ]
        )
        return
    console = stdout()
    for number, passage in enumerate(passages, start=1):
        where = place(passage.source, passage.section, line=passage.line, page=passage.page)
        console.print(
            f"{number}. {where}  ({passage.score:.4f})" if passage.score is not None else f"{number}. {where}", style="cyan", markup=False
        )
        console.print(passage.text.strip(), markup=False)
        console.print()
    if not passages:
        note("nothing was found")


async def _search(index: str, query: str, k: int, mode: Mode) -> tuple[list[Passage], str | None]:
    from tripod.cli.open_index import open_index

    async with open_index(index) as opened:
        return await opened.search(query, k=k, mode=mode.value), opened.mode_note
