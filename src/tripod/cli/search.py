"""`tripod search`: the passages that a query finds."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from tripod.documents import Passage
    from tripod.filters import Filter


Where = Annotated[
    str | None,
    typer.Option("--where", metavar="JSON", help='Only sources whose metadata is so: \'{"format": "pdf"}\', \'{"year": {">=": 2020}}\'.'),
]


class Mode(StrEnum):
    bm25 = "bm25"
    dense = "dense"
    hybrid = "hybrid"


def search(
    index: Annotated[str, typer.Argument(metavar="FOLDER|KB.DB|URL", help="A folder of documents, or an index made by 'tripod index'.")],
    query: Annotated[str, typer.Argument(help="Words or a question.")],
    k: Annotated[int, typer.Option("-k", min=1, help="How many passages.")] = 10,
    mode: Annotated[Mode, typer.Option("--mode", help="Words, vectors, or both.")] = Mode.hybrid,
    where: Where = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a list of {source, start, end, text, score}.")] = False,
) -> None:
    """Search an index. Offsets are half-open character ranges into the source's text."""
    import tripod
    from tripod.cli.terminal import note, print_json, stdout
    from tripod.rag.answer import place

    passages, mode_note = tripod.run(_search(index, query, k, mode, parse_where(where)))
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


async def _search(index: str, query: str, k: int, mode: Mode, where: Filter | None) -> tuple[list[Passage], str | None]:
    from tripod.cli.open_index import open_index

    async with open_index(index) as opened:
        return await opened.search(query, k=k, mode=mode.value, where=where), opened.mode_note


def parse_where(given: str | None) -> Filter | None:
    """The filter that an option holds.

    Raises:
        RequestError: it is no JSON, or no filter.
    """
    from tripod.errors import RequestError
    from tripod.filters import parse

    if given is None:
        return None
    try:
        return parse(json.loads(given))
    except (ValueError, RecursionError) as error:
        example = '{"format": "pdf"}'
        raise RequestError(f"--where={given!r} is no JSON ({error}); give an object such as '{example}'", param="where") from None
