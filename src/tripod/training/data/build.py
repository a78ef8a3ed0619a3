"""Building a data set: documents are tokenised by several processes and written in the order in which they were read."""

from __future__ import annotations

import multiprocessing
from array import array
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tripod.errors import ConfigError
from tripod.text.byte_level import END_OF_TEXT
from tripod.text.load_tokenizer import load_tokenizer
from tripod.text.tokenizer import Tokenizer
from tripod.training.data.document_table import DocumentTableWriter
from tripod.training.data.indexed_dataset import token_dtype
from tripod.training.data.indexed_dataset_writer import IndexedDatasetWriter
from tripod.training.data.progress import Progress, no_progress
from tripod.training.data.raw_documents import RawDocument, find_files, read_documents

_BATCH_CHARS = 1 << 20  # text sent to a worker at once; a longer document goes alone
_BATCHES_PER_WORKER = 3  # in flight: enough to keep it busy, and the bound of memory


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildReport:
    """What a build wrote and what it did not: documents read = written + empty."""

    num_documents: int
    num_tokens: int
    empty: tuple[str, ...]  # documents without a token, "source" or "source:line"; not written
    num_with_end_inside: int  # documents whose own text spells the end-of-document token, so that it occurs inside them


def build_dataset(
    inputs: Sequence[Path],
    tokenizer: Path,
    prefix: Path,
    *,
    append_eod: bool,
    workers: int = 1,
    text_field: str = "text",
    progress: Progress = no_progress,
) -> BuildReport:
    """Tokenise documents into `PREFIX.bin`, `PREFIX.idx` and a side table of sources and labels.

    The files are the same bytes for any number of workers. Memory is bounded by a few megabytes of text a worker, or by the longest
    document. Tokenising adds no special tokens but the end of a document.

    Args:
        inputs: jsonl(.zst) files with one document a line, text or Markdown files with one document each, folders of them.
        tokenizer: the tokenizer's folder.
        prefix: of the files to write; folders are made, files of these names replaced, all at the end.
        append_eod: end each document with the tokenizer's end-of-document token.
        workers: processes; 1 tokenises in this one. A script that asks for more must guard its entry by `if __name__ == "__main__"`.
        text_field: the field of a jsonl line that holds the text; all other fields are kept as labels.
        progress: told the stage "tokenise", with documents done.

    Raises:
        ConfigError: nothing to read, an input of an unknown kind, a tokenizer without an end of document where one is asked for, or a
            process that ended before its work.
        ConversionError: a document cannot be read; nothing is written.
        MissingExtraError: a package that an input or the tokenizer needs is not installed.
    """
    if workers < 1:
        raise ConfigError(f"workers={workers}; at least one process must tokenise")
    files = find_files(inputs)
    loaded = load_tokenizer(tokenizer)
    eod = end_of_document(loaded) if append_eod else None
    documents = (document for path, name in files for document in read_documents(path, name, text_field=text_field))
    batches = _batches(documents)
    encoded = _encode_here(batches, loaded) if workers == 1 else _encode_in_processes(batches, tokenizer, workers)
    empty: list[str] = []
    num_with_end_inside = 0
    with IndexedDatasetWriter(prefix, token_dtype(loaded.vocab_size)) as tokens, DocumentTableWriter(prefix) as table:
        for batch, batch_ids in encoded:
            for document, ids in zip(batch, batch_ids, strict=True):
                record = document.record
                if not ids:
                    empty.append(record.source if record.line is None else f"{record.source}:{record.line}")
                    continue
                if eod is not None:
                    num_with_end_inside += eod in ids
                    ids.append(eod)
                tokens.add_document(np.frombuffer(ids, np.int32))
                table.add(record)
            progress("tokenise", tokens.num_documents + len(empty), None)
    return BuildReport(
        num_documents=tokens.num_documents,
        num_tokens=tokens.num_tokens,
        empty=tuple(empty),
        num_with_end_inside=num_with_end_inside,
    )


def end_of_document(tokenizer: Tokenizer) -> int:
    """The id that separates documents: `<|endoftext|>` where the vocabulary has it, else the only end-of-sequence token.

    Raises:
        ConfigError: there is neither.
    """
    ids = tokenizer.encode(END_OF_TEXT, add_special_tokens=False)
    if len(ids) == 1 and ids[0] in tokenizer.special_ids:
        return ids[0]
    if len(tokenizer.eos_ids) == 1:
        return next(iter(tokenizer.eos_ids))
    raise ConfigError(
        f"the tokenizer has no token {END_OF_TEXT} and {len(tokenizer.eos_ids)} end-of-sequence tokens, so the end of a document is not "
        "determined; name one eos_token in tokenizer_config.json, or build without append_eod"
    )


def _batches(documents: Iterator[RawDocument]) -> Iterator[list[RawDocument]]:
    batch: list[RawDocument] = []
    num_chars = 0
    for document in documents:
        if batch and num_chars + len(document.text) > _BATCH_CHARS:
            yield batch
            batch, num_chars = [], 0
        batch.append(document)
        num_chars += len(document.text)
    if batch:
        yield batch


Encoded = tuple[list[RawDocument], "list[array[int]]"]


def _encode(tokenizer: Tokenizer, texts: list[str]) -> list[array[int]]:
    return [array("i", tokenizer.encode(text, add_special_tokens=False)) for text in texts]


def _encode_here(batches: Iterator[list[RawDocument]], tokenizer: Tokenizer) -> Iterator[Encoded]:
    for batch in batches:
        yield batch, _encode(tokenizer, [document.text for document in batch])


def _encode_in_processes(batches: Iterator[list[RawDocument]], folder: Path, workers: int) -> Iterator[Encoded]:
    """In the order of the batches, with a bounded number in flight. Processes are spawned: a fork would copy the caller's threads."""
    in_flight: deque[tuple[list[RawDocument], Future[list[array[int]]]]] = deque()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_open_worker, initargs=(folder,)) as pool:
        try:
            for batch in batches:
                in_flight.append((batch, pool.submit(_encode_in_worker, [document.text for document in batch])))
                if len(in_flight) >= workers * _BATCHES_PER_WORKER:
                    done, future = in_flight.popleft()
                    yield done, future.result()
            while in_flight:
                done, future = in_flight.popleft()
                yield done, future.result()
        except BrokenProcessPool as error:
            raise ConfigError(
                f"one of {workers} tokenising processes ended before its work: out of memory, or started from a script that does not guard "
                'its entry by if __name__ == "__main__"; its own message stands above; workers=1 needs no other process'
            ) from error
        finally:
            for _, future in in_flight:
                future.cancel()


_worker_tokenizer: Tokenizer  # of a worker process, opened once


def _open_worker(folder: Path) -> None:
    global _worker_tokenizer
    _worker_tokenizer = load_tokenizer(folder)


def _encode_in_worker(texts: list[str]) -> list[array[int]]:
    return _encode(_worker_tokenizer, texts)
