"""Interventions as data: what a recipe changes in its rows, from a step on."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from tripod.training.data.interventions import ChangedRows
    from tripod.training.data.order import Rows

_OF_KIND = {"filter": ("pattern",), "swap": ("words",), "inject": ("texts",), "reorder": ()}


@dataclass(frozen=True, slots=True, kw_only=True)
class InterventionRecipe:
    """One change of the rows that are trained; see `tripod.training.data.interventions`.

    Steps are counted from 0, as the data's: what changes step s on is first felt in the checkpoint of step s + 1.
    """

    kind: Literal["filter", "swap", "inject", "reorder"]
    from_step: int = 0  # in a file for `tripod train --branch`, the step of the branch
    to_step: int | None = None  # the first step that is left alone again; None: none of the run
    words: Mapping[str, str] | None = None  # swap: {he: she, him: her}
    keeps_case: bool = True  # swap: He becomes She
    pattern: str | None = None  # filter: a regular expression, as Python's `re` reads it
    texts: tuple[str, ...] = ()  # inject, in turn
    rows_per_step: int = 1  # inject
    how: Literal["shuffle", "reverse"] = "shuffle"  # reorder
    seed: int = 0  # inject: which rows; reorder: which order

    def problems(self, path: str) -> Iterator[tuple[str, str]]:
        if self.from_step < 0 or (self.to_step is not None and self.to_step <= self.from_step):
            yield f"{path}.from_step", f"{self.from_step}, to_step={self.to_step}; must be from 0 to below to_step"
        for kind, names in _OF_KIND.items():
            for name in names:
                if bool(getattr(self, name)) != (kind == self.kind):
                    yield f"{path}.{name}", f"{'not given' if kind == self.kind else 'given'}; {kind} needs it, and only {kind}"
        if self.pattern is not None:
            try:
                re.compile(self.pattern)
            except re.error as error:
                yield f"{path}.pattern", f"{self.pattern!r} is not a regular expression: {error}"
        if self.words is not None and any(not old.strip() or old != old.strip() or not new for old, new in self.words.items()):
            yield f"{path}.words", f"{dict(self.words)}; words are not empty and have no space around them"
        if self.words is not None and self.keeps_case and len({old.lower() for old in self.words}) < len(self.words):
            yield f"{path}.words", "the same word twice in another case; give keeps_case: false"
        if self.rows_per_step < 1:
            yield f"{path}.rows_per_step", f"{self.rows_per_step}; must be at least 1"


def intervene(
    rows: Rows, interventions: Sequence[InterventionRecipe], *, batch_size: int, num_steps: int, tokenizer: Path
) -> tuple[Rows, tuple[ChangedRows, ...]]:
    """Lay interventions over rows, in the order in which they are declared.

    Returns:
        The changed rows, and the layers, each over those before it.

    Raises:
        ConfigError: one cannot be carried out: texts longer than a row, more rows than a step has, a tokenizer without an end of document.
    """
    layers: list[ChangedRows] = []
    for intervention in interventions:
        layer = _layer(rows, intervention, batch_size, num_steps, tokenizer)
        layers.append(layer)
        rows = layer
    return rows, tuple(layers)


def _layer(rows: Rows, given: InterventionRecipe, batch_size: int, num_steps: int, tokenizer: Path) -> ChangedRows:
    from tripod.text.load_tokenizer import load_tokenizer
    from tripod.training.data.build import end_of_document
    from tripod.training.data.interventions import FilteredRows, InjectedRows, ReorderedRows, SwappedRows, injected_ids, shuffled
    from tripod.training.data.word_swap import WordSwap

    affected = range(given.from_step * batch_size, min(num_steps, given.to_step or num_steps) * batch_size)
    facts: dict[str, Any] = {"kind": given.kind}
    if given.kind == "reorder":
        facts |= {"how": given.how, "seed": given.seed}
        permutation = shuffled(len(affected), given.seed) if given.how == "shuffle" else _reversed(len(affected))
        return ReorderedRows(rows, affected, facts, permutation)
    opened = load_tokenizer(tokenizer)
    facts["tokenizer"] = _hash_of_vocabulary(tokenizer)
    match given.kind:
        case "swap":
            assert given.words is not None
            facts |= {"words": dict(given.words), "keeps_case": given.keeps_case}
            return SwappedRows(rows, affected, facts, WordSwap(given.words, opened, given.keeps_case), end_of_document(opened))
        case "filter":
            assert given.pattern is not None
            facts |= {"pattern": given.pattern, "num_read": num_steps * batch_size}
            return FilteredRows(rows, affected, facts, re.compile(given.pattern), opened, num_steps * batch_size)
        case "inject":
            facts |= {"texts": list(given.texts), "rows_per_step": given.rows_per_step, "seed": given.seed, "batch_size": batch_size}
            ids = injected_ids(given.texts, opened, rows.seq_length)
            return InjectedRows(rows, affected, facts, ids, given.rows_per_step, batch_size, given.seed)


def _reversed(num_rows: int) -> Any:
    import numpy as np

    return np.arange(num_rows - 1, -1, -1, dtype=np.int64)


def _hash_of_vocabulary(folder: Path) -> str:
    """Of the files that say which text a token is."""
    digest = hashlib.sha256()
    names = ("tokenizer.json", "tokenizer.model", "spiece.model")
    for path in [folder] if folder.is_file() else [folder / name for name in names]:
        if path.is_file():
            content = path.read_bytes()
            digest.update(json.dumps([path.name, len(content)]).encode() + content)
    return digest.hexdigest()
