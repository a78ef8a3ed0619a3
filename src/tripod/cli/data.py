"""`tripod data` and `tripod tokenizer`: training data, made and looked at."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tripod.text.tokenizer import Tokenizer
    from tripod.training.data.batch_view import BatchView

data = typer.Typer(help="Build, join, check and read training data.", no_args_is_help=True)
tokenizer = typer.Typer(help="Train tokenizers.", no_args_is_help=True)

Inputs = Annotated[list[Path], typer.Argument(metavar="INPUT...", help="jsonl(.zst), text or Markdown files, or folders of them.")]


@tokenizer.callback()
def tokenizer_commands() -> None:
    """Train tokenizers."""


@tokenizer.command("train")
def train_command(
    inputs: Inputs,
    vocab_size: Annotated[int, typer.Option("--vocab-size", min=257, help="Tokens in all.")],
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Gets tokenizer.json and tokenizer_config.json.")],
) -> None:
    """Learn a byte-level BPE tokenizer; any text comes back from it exactly."""
    from tripod.cli.terminal import note, stdout
    from tripod.text.bpe import train_tokenizer
    from tripod.training.data.raw_documents import find_files, read_documents

    def texts() -> Iterator[str]:
        for path, name in find_files(inputs):
            for document in read_documents(path, name):
                yield document.text

    trained = train_tokenizer(texts(), out, vocab_size=vocab_size)
    stdout().print(f"{out}: {trained.vocab_size} tokens", markup=False)
    if trained.vocab_size < vocab_size:
        note(f"the texts give no more; {vocab_size} were asked for")


@data.command()
def build(
    inputs: Inputs,
    tokenizer: Annotated[Path, typer.Option("--tokenizer", metavar="FOLDER")],
    out: Annotated[Path, typer.Option("--out", metavar="PREFIX", help="Writes PREFIX.bin, PREFIX.idx and a table of sources.")],
    append_eod: Annotated[bool, typer.Option("--append-eod", help="End each document with the end-of-document token.")] = False,
    workers: Annotated[int, typer.Option("--workers", min=1)] = 1,
) -> None:
    """Tokenise documents into Megatron's format; the same bytes for any number of workers."""
    from rich.status import Status

    from tripod.cli.terminal import note, stderr, stdout
    from tripod.training.data.build import build_dataset

    with Status("", console=stderr()) as status:
        report = build_dataset(
            inputs,
            tokenizer,
            out,
            append_eod=append_eod,
            workers=workers,
            progress=lambda stage, done, total: status.update(f"{stage} {done:,} documents"),
        )
    stdout().print(f"{out}: {report.num_documents:,} documents, {report.num_tokens:,} tokens", markup=False)
    for name in report.empty:
        note(f"left out, without any token: {name}")
    if report.num_with_end_inside:
        note(f"{report.num_with_end_inside} documents spell the end-of-document token in their text")


@data.command()
def inspect(prefix: Annotated[Path, typer.Argument(help="The data set, without .bin and .idx.")]) -> None:
    """Read a data set from end to end and check what its format promises. Ends with 1 if something is wrong."""
    from dataclasses import asdict

    from tripod.cli.terminal import note, stdout
    from tripod.training.data.indexed_dataset import inspect as inspect_dataset

    report = asdict(inspect_dataset(prefix))
    problems = report.pop("problems")
    for name, value in report.items():
        stdout().print(f"{name.removeprefix('num_'):<14} {value:,}" if isinstance(value, int) else f"{name:<14} {value}", markup=False)
    for problem in problems:
        note(f"problem: {problem}")
    if problems:
        raise typer.Exit(1)


@data.command()
def merge(
    prefixes: Annotated[list[Path], typer.Argument(metavar="PREFIX...")],
    out: Annotated[Path, typer.Option("--out", metavar="PREFIX")],
) -> None:
    """Join data sets in the given order, with their document indexes and tables."""
    from tripod.cli.terminal import stdout
    from tripod.training.data.indexed_dataset import IndexedDataset
    from tripod.training.data.indexed_dataset_writer import merge as merge_datasets

    merge_datasets(prefixes, out)
    merged = IndexedDataset.open(out)
    stdout().print(f"{out}: {merged.num_documents:,} documents, {merged.num_tokens:,} tokens", markup=False)


@data.command()
def shard(
    file: Path,
    shard_bytes: Annotated[int | None, typer.Option("--bytes", min=1, help="Of a shard; by default as Pythia's files.")] = None,
) -> None:
    """Cut a file into shards NAME-00000-of-00020, beside it."""
    from tripod.cli.terminal import stdout
    from tripod.training.data.shards import PYTHIA_SHARD_BYTES
    from tripod.training.data.shards import shard as cut

    for path in cut(file, shard_bytes=shard_bytes or PYTHIA_SHARD_BYTES):
        stdout().print(str(path), markup=False)


@data.command()
def unshard(
    first: Annotated[Path, typer.Argument(help="Any shard of the set.")], out: Annotated[Path, typer.Option("--out", metavar="FILE")]
) -> None:
    """Join shards again."""
    from tripod.training.data.shards import unshard as join

    join(first, out)


@data.command()
def verify(
    hashes: Annotated[Path, typer.Argument(metavar="LIST", help="Lines 'NAME SHA256' or 'SHA256  NAME'.")],
    folder: Annotated[Path | None, typer.Option("--folder", help="Where the files lie; by default beside the list.")] = None,
) -> None:
    """Compare files with a list of their hashes. Ends with 1 if one differs or is missing."""
    from tripod.cli.terminal import note, stdout
    from tripod.training.data.shards import verify_hashes

    report = verify_hashes(hashes, folder or hashes.parent)
    for kind, names in (("differs", report.differing), ("missing", report.missing)):
        for name in names:
            note(f"{kind}: {name}")
    counts = f"{len(report.matching)} match, {len(report.differing)} differ, {len(report.missing)} missing"
    stdout().print(counts, markup=False)
    if not report.is_sound:
        raise typer.Exit(1)


@data.command()
def batch(
    source: Annotated[str, typer.Argument(metavar="RUN|URL", help="A training run, or the .idx of pre-shuffled rows on a web server.")],
    step: Annotated[int, typer.Argument(help="From 0: checkpoint stepN has seen the steps below N.")],
    first_row: Annotated[int, typer.Option("--first-row", min=0, help="Of the step.")] = 0,
    num_rows: Annotated[int, typer.Option("--rows", min=1)] = 4,
    max_chars: Annotated[int, typer.Option("--max-chars", help="Of each document's part; 0: all.")] = 400,
    tokens_url: Annotated[
        str | None, typer.Option("--tokens", metavar="URL", help="With a URL: its .bin, or the first shard of it.")
    ] = None,
    tokenizer: Annotated[Path | None, typer.Option("--tokenizer", metavar="FOLDER", help="With a URL.")] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="With a URL: rows of a step.")] = 1024,
) -> None:
    """Show what a step trains on, as text with the borders of its documents."""
    from tripod.cli.terminal import note

    part = slice(first_row, first_row + num_rows)
    if source.startswith(("http://", "https://")):
        view, num_rows_of_step = _remote_batch(source, tokens_url, tokenizer, step, batch_size, part), batch_size
    else:
        view, num_rows_of_step = _batch_of_run(Path(source), step, part)
    print(view.render(max_chars=max_chars or None), end="")
    if len(view.rows) < num_rows_of_step:
        note(f"{len(view.rows)} of {num_rows_of_step} rows of the step; --first-row and --rows show others")


def _batch_of_run(folder: Path, step: int, part: slice) -> tuple[BatchView, int]:
    from tripod.errors import ConfigError
    from tripod.text.load_tokenizer import load_tokenizer
    from tripod.training.data.batch_view import view_batch
    from tripod.training.data.document_table import DocumentTable, table_paths
    from tripod.training.run import Run

    run = Run.open(folder)
    if not 0 <= step < run.recipe.num_steps:  # the order may go on behind the end of the run
        raise ConfigError(f"step {step} was asked for; {folder} trains steps 0 to {run.recipe.num_steps - 1}")
    order, data = run.order(), run.recipe.data
    prefixes = [Path(prefix) for prefix in data.prefixes]
    has_tables = all(path.is_file() for prefix in prefixes for path in table_paths(prefix))
    tables = [DocumentTable.open(prefix) for prefix in prefixes] if has_tables else []
    opened = load_tokenizer(Path(data.tokenizer))
    return view_batch(order, step, opened, part=part, tables=tables, eod=_end(opened)), order.batch_size


def _remote_batch(index_url: str, tokens_url: str | None, tokenizer: Path | None, step: int, batch_size: int, part: slice) -> BatchView:
    import httpx

    from tripod.errors import ConfigError
    from tripod.text.load_tokenizer import load_tokenizer
    from tripod.training.data.batch_view import view_batch
    from tripod.training.data.order import DataOrder
    from tripod.training.data.remote import open_remote_rows

    if tokens_url is None or tokenizer is None:
        raise ConfigError("rows on a web server need --tokens URL and --tokenizer FOLDER")
    opened = load_tokenizer(tokenizer)
    with httpx.Client(timeout=60) as client:
        order = DataOrder(open_remote_rows(index_url, tokens_url, client), batch_size)
        return view_batch(order, step, opened, part=part, eod=_end(opened))


def _end(opened: Tokenizer) -> int | None:
    from tripod.errors import ConfigError
    from tripod.training.data.build import end_of_document

    try:
        return end_of_document(opened)
    except ConfigError:
        return None  # then rows that do not know their documents are shown whole
