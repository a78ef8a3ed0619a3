"""Documents before tokenisation: lines of jsonl(.zst) files, and text or Markdown files of a folder, in a fixed order."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tripod.errors import ConfigError, ConversionError, MissingExtraError
from tripod.training.data.document_table import DocumentRecord

TEXT_SUFFIXES = (".txt", ".text", ".md", ".markdown", ".rst")
JSONL_SUFFIXES = (".jsonl", ".jsonl.zst", ".ndjson")


@dataclass(frozen=True, slots=True)
class RawDocument:
    """A text and where it came from."""

    text: str
    record: DocumentRecord


def find_files(inputs: Sequence[Path]) -> list[tuple[Path, str]]:
    """The files to read, in order, each with the name by which its documents are known.

    Inputs are taken in the given order; a folder stands for the text, Markdown and jsonl files below it, sorted by their relative
    path with "/" between parts, so every machine finds one order. Files and folders whose name begins with a dot are left out.

    Raises:
        ConfigError: no input, an input that is absent, of a kind that cannot be read, or a folder without any such file.
    """
    if not inputs:
        raise ConfigError("no input was given; name jsonl files, text files or folders")
    kinds = ", ".join((*TEXT_SUFFIXES, *JSONL_SUFFIXES))
    files: list[tuple[Path, str]] = []
    for given in inputs:
        if given.is_file():
            if not given.name.endswith((*TEXT_SUFFIXES, *JSONL_SUFFIXES)):
                raise ConfigError(f"{given} is of a kind that cannot be read; expected one of {kinds}")
            files.append((given, given.name))
        elif given.is_dir():
            below = {path.relative_to(given).as_posix(): path for path in given.rglob("*") if path.is_file()}
            names = sorted(
                name
                for name in below
                if name.endswith((*TEXT_SUFFIXES, *JSONL_SUFFIXES)) and not any(part.startswith(".") for part in name.split("/"))
            )
            if not names:
                raise ConfigError(f"the folder {given} holds no file to read; expected {kinds}")
            files += [(below[name], name) for name in names]
        else:
            raise ConfigError(f"{given} is not there; name a jsonl file, a text file or a folder")
    return files


def read_documents(path: Path, name: str, *, text_field: str = "text") -> Iterator[RawDocument]:
    """The documents of one file: one a line of jsonl, else the file itself.

    Raises:
        ConversionError: the file is not UTF-8, or a line is not an object with a text; the message names file and line.
        MissingExtraError: a `.zst` file is given and `zstandard` is not installed.
    """
    if not name.endswith(JSONL_SUFFIXES):
        try:
            yield RawDocument(path.read_bytes().decode("utf-8"), DocumentRecord(source=name))
        except UnicodeDecodeError as error:
            raise ConversionError(f"{path} is not UTF-8: {error}; convert it or leave it out") from error
        return
    with _open_lines(path) as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                fields = json.loads(line)
            except ValueError as error:  # also of bytes that are not UTF-8
                raise ConversionError(f"{path}, line {number}: not JSON ({error}); repair or remove the line") from error
            if not isinstance(fields, dict) or not isinstance(fields.get(text_field), str):
                raise ConversionError(f"{path}, line {number}: expected an object with a string {text_field!r}; repair or remove the line")
            text = fields.pop(text_field)
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise ConversionError(f"{path}, line {number}: half of a surrogate pair in its text ({error}); repair the line") from error
            yield RawDocument(text, DocumentRecord(source=name, line=number, labels=fields))


@contextmanager
def _open_lines(path: Path) -> Iterator[IO[bytes]]:
    """Lines end at line feeds only: a JSON string may hold any other separator."""
    if path.suffix != ".zst":
        with path.open("rb") as stream:
            yield stream
        return
    try:
        import zstandard
    except ModuleNotFoundError as error:
        raise MissingExtraError("zstandard", "training", f"reading {path.name}") from error
    with path.open("rb") as packed, zstandard.ZstdDecompressor().stream_reader(packed, read_across_frames=True) as plain:
        yield io.BufferedReader(plain)
