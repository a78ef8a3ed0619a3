"""The texts whose routing is looked at: rows of tokens, each of a class, which is the domain, language or task of its text."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tripod.errors import ConfigError
from tripod.text.tokenizer import Tokenizer

_CHARACTERS = 16  # of a token at most, on average: more of a long text is not read


@dataclass(frozen=True, slots=True, eq=False)
class LabelledRows:
    token_ids: NDArray[np.int64]  # [rows, tokens]
    classes: tuple[str, ...]  # [rows]
    num_texts: Mapping[str, int]  # of each class: from how many its rows are cut; empty where that is not known


def text_files(paths: Sequence[str]) -> list[Path]:
    """The files that are named, those of a pattern such as FOLDER/*.txt, and those in the folders that are named.

    Raises:
        ConfigError: there is none.
    """
    files: list[Path] = []
    for path in (Path(one).expanduser() for one in paths):
        is_pattern = "*" in path.name
        files += sorted(path.parent.glob(path.name)) if is_pattern else sorted(path.iterdir()) if path.is_dir() else [path]
    files = [file for file in files if file.suffix in (".txt", ".md", ".jsonl")]
    if not files or not all(file.is_file() for file in files):
        raise ConfigError(f"texts={','.join(paths)} names no text; give .txt or .md files, one for each class, or .jsonl files")
    return files


def texts_hash(files: Sequence[Path]) -> str:
    """Names what is read: the files' content and, because they name classes, their names."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"\0{file.name}\0".encode() + file.read_bytes())
    return digest.hexdigest()


def labelled_rows(files: Sequence[Path], field: str, tokenizer: Tokenizer, *, num_rows: int, row_tokens: int) -> LabelledRows:
    """Cut the texts of each class into rows of one length, the first token that which begins a text, if the tokenizer has one.

    Args:
        files: a .txt or .md file is a text of the class that its name says up to the first dot; a line of a .jsonl file is a text of the
            class in `field`.
        field: "domain", "language", "task" or whatever the lines have.
        tokenizer: of the model.
        num_rows: of each class at most.
        row_tokens: of a row.

    Raises:
        ConfigError: a line has no such field, or a class has not two rows of text.
    """
    wanted = num_rows * row_tokens * _CHARACTERS
    texts: dict[str, list[str]] = {}
    for file in files:
        if file.suffix == ".jsonl":
            for line in file.read_text(encoding="utf-8").splitlines():
                one = json.loads(line)
                if field not in one or "text" not in one:
                    raise ConfigError(f"{file}: a line has the fields {', '.join(one)}; expected text and {field} (the setting `by`)")
                texts.setdefault(str(one[field]), []).append(one["text"])
        else:
            with file.open(encoding="utf-8", errors="replace") as stream:
                texts.setdefault(file.name.partition(".")[0], []).append(stream.read(wanted))
    first = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    length = row_tokens - len(first)
    rows: list[list[int]] = []
    classes: list[str] = []
    num_texts: dict[str, int] = {}
    for name, of_class in texts.items():
        encoded = [ids for text in of_class if (ids := tokenizer.encode(text, add_special_tokens=False))]
        ids = list(chain.from_iterable(encoded))
        found = [first + ids[start : start + length] for start in range(0, len(ids) - length + 1, length)][:num_rows]
        if len(found) < 2:
            raise ConfigError(
                f"the texts of {name} have {len(ids)} tokens; expected two rows of {row_tokens} at least: give more, or shorter rows"
            )
        rows += found
        classes += [name] * len(found)
        num_texts[name] = sum(begin < len(found) * length for begin in accumulate(map(len, encoded[:-1]), initial=0))
    return LabelledRows(np.array(rows, np.int64), tuple(classes), num_texts)
