"""Routed tokens: what every analysis of routing reads. Plain arrays, and a table in which they are kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tripod.errors import ConfigError
from tripod.evaluation.table import Row, Table

if TYPE_CHECKING:
    from tripod.training.routing_record import RoutingRecord

Ids = NDArray[np.int64]
_WEIGHT_DIGITS = 4  # that are kept


@dataclass(frozen=True, slots=True, eq=False)
class Routed:
    """Tokens of documents, and the experts to which the routers of a model's sparse layers send them. N tokens, L layers, k choices."""

    token_ids: Ids  # [N]
    positions: Ids  # [N], of the token in its document, from 0
    documents: Ids  # [N], numbers from 0
    classes: tuple[str, ...]  # of each document: its domain, language or task
    layers: tuple[int, ...]  # [L], the numbers of the sparse layers in the model
    experts: Ids  # [L, N, k], first choice first
    weights: NDArray[np.float32]  # [L, N, k], by which the experts' answers are multiplied
    num_experts: int

    def __post_init__(self) -> None:
        num_tokens = len(self.token_ids)
        shape = (len(self.layers), num_tokens, self.experts.shape[-1])
        if {len(self.positions), len(self.documents)} != {num_tokens} or self.experts.shape != shape or self.weights.shape != shape:
            raise ConfigError(
                f"{num_tokens} tokens in {len(self.layers)} layers, but experts are {self.experts.shape} and weights {self.weights.shape}; "
                f"give [layers, tokens, choices], and a position and a document for each token"
            )

    @property
    def top_k(self) -> int:
        return int(self.experts.shape[-1])

    @property
    def class_names(self) -> tuple[str, ...]:
        """In the order of their first documents."""
        return tuple(dict.fromkeys(self.classes))

    @property
    def class_of_document(self) -> Ids:
        """[documents], numbers of `class_names`."""
        names = self.class_names
        return np.array([names.index(one) for one in self.classes], np.int64)

    @staticmethod
    def of_record(record: RoutingRecord, classes: Sequence[str]) -> Routed:
        """What was observed of rows that are documents: classes [rows]; the record numbers rows from 0.

        Raises:
            ConfigError: of a model whose experts choose tokens: a token has no choices of its own then.
        """
        if not record.is_kept.all():
            raise ConfigError("the experts of this model choose their tokens; the analyses read what tokens choose")
        return Routed(
            token_ids=record.token_ids.astype(np.int64),
            positions=record.positions.astype(np.int64),
            documents=record.rows.astype(np.int64),
            classes=tuple(classes),
            layers=record.layers,
            experts=record.experts.astype(np.int64),
            weights=record.weights.astype(np.float32),
            num_experts=record.num_experts,
        )

    def table(self) -> Table:
        """A document a row."""
        rows: list[Row] = []
        for document, name in enumerate(self.classes):
            chosen = np.flatnonzero(self.documents == document)
            row: dict[str, str | int] = {"document": document, "class": name, "num_experts": self.num_experts, "top_k": self.top_k}
            row["tokens"] = _spelled(self.token_ids[chosen])
            for at, layer in enumerate(self.layers):
                row[f"experts {layer}"] = _spelled(self.experts[at, chosen])
                row[f"weights {layer}"] = _spelled(np.rint(self.weights[at, chosen] * 10**_WEIGHT_DIGITS).astype(np.int64))
            rows.append(row)
        return Table.of(rows)

    @staticmethod
    def of(table: Table) -> Routed:
        """What `table` wrote, with weights to four digits."""
        first = table.rows[0]
        top_k, num_experts = int(str(first["top_k"])), int(str(first["num_experts"]))
        layers = tuple(int(name.removeprefix("experts ")) for name in table.columns if name.startswith("experts "))
        tokens = [_read(row["tokens"]) for row in table]

        def of_layers(kind: str) -> Ids:
            return np.stack([np.concatenate([_read(row[f"{kind} {layer}"]) for row in table]).reshape(-1, top_k) for layer in layers])

        return Routed(
            token_ids=np.concatenate(tokens),
            positions=np.concatenate([np.arange(len(one)) for one in tokens]),
            documents=np.repeat(np.arange(len(tokens)), [len(one) for one in tokens]),
            classes=tuple(str(row["class"]) for row in table),
            layers=layers,
            experts=of_layers("experts"),
            weights=(of_layers("weights") / 10**_WEIGHT_DIGITS).astype(np.float32),
            num_experts=num_experts,
        )


def tally(groups: Ids, experts: Ids, num_groups: int, num_experts: int) -> Ids:
    """How often the tokens of each group chose each expert: groups [N], experts [N, k] -> [num_groups, num_experts]."""
    pairs = (groups[:, None] * num_experts + experts).ravel()
    return np.bincount(pairs, minlength=num_groups * num_experts).reshape(num_groups, num_experts)


def routed_by(rule: Callable[[int, int, str], tuple[int, ...]], documents: list[tuple[str, list[int]]], num_experts: int) -> Routed:
    """Tokens routed by a rule instead of a model, (document, token id, class) -> experts: one layer whose truth is known."""
    experts = np.array([rule(at, token, name) for at, (name, tokens) in enumerate(documents) for token in tokens], np.int64)[None]
    lengths = [len(tokens) for _, tokens in documents]
    return Routed(
        token_ids=np.concatenate([np.array(tokens, np.int64) for _, tokens in documents]),
        positions=np.concatenate([np.arange(length) for length in lengths]),
        documents=np.repeat(np.arange(len(documents)), lengths),
        classes=tuple(name for name, _ in documents),
        layers=(0,),
        experts=experts,
        weights=np.full(experts.shape, 1 / experts.shape[-1], np.float32),
        num_experts=num_experts,
    )


def _spelled(numbers: Ids) -> str:
    return " ".join(map(str, numbers.ravel().tolist()))


def _read(cell: object) -> Ids:
    return np.array(str(cell).split(), np.int64)
