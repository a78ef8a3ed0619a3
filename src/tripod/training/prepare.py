"""A tokenizer and a data set out of texts, for recipes that name their source."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from tripod.durable_files import atomic_file
from tripod.errors import ConfigError
from tripod.text.bpe import train_tokenizer
from tripod.training.data.build import build_dataset
from tripod.training.data.indexed_dataset import index_path, token_path
from tripod.training.data.progress import Progress, no_progress
from tripod.training.data.raw_documents import find_files, read_documents
from tripod.training.recipe import DataRecipe


def is_prepared(data: DataRecipe) -> bool:
    """Whether tokenizer and data set of a recipe with a source are there, made from that source.

    Raises:
        ConfigError: they were made from another source.
    """
    assert data.source is not None
    prefix, tokenizer = Path(data.prefixes[0]), Path(data.tokenizer)
    if not all(path.is_file() for path in (_note(prefix), index_path(prefix), token_path(prefix), tokenizer / "tokenizer.json")):
        return False
    made_from = json.loads(_note(prefix).read_text(encoding="utf-8"))
    if made_from != _source(data):
        raise ConfigError(
            f"the data set {prefix} was made from {made_from}, the recipe says {_source(data)}; remove it, or name another in data.prefixes"
        )
    return True


def prepare_data(data: DataRecipe, inputs: Sequence[Path], *, workers: int = 1, progress: Progress = no_progress) -> None:
    """Train the tokenizer on all texts, then tokenise them, each document ended by its end token.

    Args:
        data: of a recipe that names its source.
        inputs: what the source's inputs stand for.
        workers: processes that tokenise; see `build_dataset`.
        progress: told the stages "read texts" and "tokenise".

    Raises:
        ConfigError, ConversionError: see `build_dataset` and `train_tokenizer`.
    """
    assert data.source is not None
    prefix, tokenizer = Path(data.prefixes[0]), Path(data.tokenizer)
    _note(prefix).unlink(missing_ok=True)  # until the new files are there
    files = find_files(inputs)

    def texts() -> Iterator[str]:
        done = 0
        for path, name in files:
            for document in read_documents(path, name):
                yield document.text
                done += 1
            progress("read texts", done, None)

    train_tokenizer(texts(), tokenizer, vocab_size=data.source.vocab_size)
    build_dataset(inputs, tokenizer, prefix, append_eod=True, workers=workers, progress=progress)
    with atomic_file(_note(prefix)) as stream:
        stream.write(json.dumps(_source(data)).encode())


def _note(prefix: Path) -> Path:
    return prefix.with_name(prefix.name + ".source.json")


def _source(data: DataRecipe) -> object:
    assert data.source is not None
    return json.loads(json.dumps(asdict(data.source)))
