"""`tripod kb`: look after an index, in a file or in PostgreSQL."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from tripod.documents import StoreStats
    from tripod.protocols import Store

kb = typer.Typer(help="Look after an index: a file, or postgresql://user@host/database#schema.", no_args_is_help=True)

Address = Annotated[str, typer.Argument(metavar="KB.DB|URL", help="An index made by 'tripod index'.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print it as JSON.")]


class Vectors(StrEnum):
    """Formats of vectors."""

    F32 = "f32"
    F16 = "f16"
    INT8 = "int8"


@kb.command()
def stats(address: Address, as_json: AsJson = False) -> None:
    """How much an index holds, and who made it."""
    import tripod
    from tripod.cli.terminal import print_json, stdout

    found = tripod.run(_stats(address))
    if as_json:
        print_json(asdict(found))
        return
    console = stdout()
    search = found.approximate or "every one is looked at"
    for name, value in {
        "sources": f"{found.num_sources} ({found.num_unembedded} without vectors)" if found.num_unembedded else f"{found.num_sources}",
        "passages": f"{found.num_passages}",
        "vectors": f"{found.num_vectors} of {found.dim} dimensions, {found.vectors}; search: {search}" if found.num_vectors else "none",
        "size": f"{found.num_bytes / 1e6:.1f} MB",
        "pipeline": found.pipeline,
        "embedder": found.embedder or "none",
    }.items():
        console.print(f"{name:9} {value}", markup=False)


@kb.command()
def check(address: Address, as_json: AsJson = False) -> None:
    """Look for damage; exit status 1 if there is any."""
    import tripod
    from tripod.cli.terminal import print_json, stdout

    found = tripod.run(_check(address))
    if as_json:
        print_json({"found": found})
    else:
        for what in found or ["nothing is wrong"]:
            stdout().print(what, markup=False)
    if found:
        raise typer.Exit(1)


@kb.command()
def repair(address: Address) -> None:
    """Make anew what can be made of sources and passages: words, totals, the approximate index. Then check again."""
    import tripod
    from tripod.cli.terminal import stdout

    left = tripod.run(_repair(address))
    for what in left or ["repaired; nothing is wrong"]:
        stdout().print(what, markup=False)
    if left:
        raise typer.Exit(1)


@kb.command("export")
def export_command(address: Address, out: Annotated[Path, typer.Argument(metavar="FILE.JSONL.GZ")]) -> None:
    """Write an index into one portable file: gzip of JSON lines."""
    import tripod
    from tripod.cli.terminal import stdout

    number = tripod.run(_export(address, out))
    stdout().print(f"{out}: {number} sources, {out.stat().st_size / 1e6:.1f} MB", markup=False)


@kb.command("import")
def import_command(
    archive: Annotated[Path, typer.Argument(metavar="FILE.JSONL.GZ", help="Made by 'tripod kb export'.")],
    into: Annotated[str, typer.Option("--into", metavar="KB.DB|URL", help="A new index, or one of the same pipeline and embedder.")],
    vectors: Annotated[Vectors | None, typer.Option("--vectors", help="How a new index keeps them; else as the exported one did.")] = None,
) -> None:
    """Put an exported index into a file or a database. A sync afterwards reads again only what changed."""
    import tripod
    from tripod.cli.terminal import stdout

    number = tripod.run(_import(archive, into, vectors))
    stdout().print(f"{_printable(into)}: {number} sources", markup=False)


@asynccontextmanager
async def _opened(address: str) -> AsyncIterator[Store]:
    """An index as it is, whoever made it."""
    from tripod.errors import ConfigError
    from tripod.retrieval.open_store import is_file, open_store

    if is_file(address) and not Path(address).is_file():
        raise ConfigError(f"there is no file {address!r}; give an index made by 'tripod index'")
    store = await open_store(address, pipeline=None, embedder=None)
    try:
        yield store
    finally:
        await store.aclose()


async def _stats(address: str) -> StoreStats:
    from tripod.errors import StoreError

    async with _opened(address) as store:
        found = await store.stats()
    if found is None:
        raise StoreError(f"there is no index at {_printable(address)}")
    return found


async def _check(address: str) -> list[str]:
    async with _opened(address) as store:
        return await store.check()


async def _repair(address: str) -> list[str]:
    async with _opened(address) as store:
        await store.repair()
        return await store.check()


async def _export(address: str, out: Path) -> int:
    from tripod.retrieval.archive import export_archive

    async with _opened(address) as store:
        return await export_archive(store, out)


async def _import(archive: Path, into: str, vectors: Vectors | None) -> int:
    from tripod.retrieval.archive import import_archive, read_header
    from tripod.retrieval.open_store import open_store
    from tripod.retrieval.vector_format import FORMATS

    header = read_header(archive)
    [form] = [form for form in FORMATS if form == (vectors.value if vectors else header.vectors)]
    store = await open_store(into, pipeline=header.pipeline, embedder=header.embedder, vectors=form)
    try:
        return await import_archive(archive, store)
    finally:
        await store.aclose()


def _printable(address: str) -> str:
    from tripod.retrieval.open_store import printable

    return printable(address)
