"""UL2 for a causal model (Tay et al. 2023, arXiv:2205.05131; OpenMoE, arXiv:2402.01739): rows as inputs that announce what is wanted of
them, and targets.

    prefix-LM         [S2S] first half | second half END
    span corruption   [NLU] Thank you <0> me to your <1> week | <0> for inviting <1> party last END

Only what stands behind the bar is trained. It is a layer over rows, and a pure function of them: a row's objective and its noise depend on
the seed and on the row's number alone. As many tokens of the row are used as fit; ends of documents fill what is left, untrained.
"""

# n tokens of a row that are used, s noise spans

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tripod.errors import ConfigError
from tripod.text.tokenizer import Tokenizer
from tripod.training.data.build import end_of_document
from tripod.training.data.interventions import ChangedRows, RowChange, stream
from tripod.training.data.order import Rows, Span

_MAX_SENTINELS = 300  # as many as umT5's vocabulary has
_MIN_ROOM = 8  # tokens behind a prefix, less of which makes no objective


@dataclass(frozen=True, slots=True, kw_only=True)
class Denoiser:
    """One objective of the mixture: span corruption with `density` and `mean_span`, or prefix-LM without them."""

    rate: float  # share of the rows, relative to those of the others
    prefix: str
    density: float | None = None  # share of the tokens that are noise
    mean_span: float | None = None  # tokens of a span of noise

    @property
    def name(self) -> str:
        return "prefix-LM" if self.density is None else f"spans of {self.mean_span:g} at {self.density:g}"


OPENMOE = (
    Denoiser(rate=0.5, prefix="[S2S] "),
    Denoiser(rate=0.1, prefix="[NLU] ", density=0.15, mean_span=3.0),
    Denoiser(rate=0.1, prefix="[NLU] ", density=0.15, mean_span=8.0),
    Denoiser(rate=0.1, prefix="[NLG] ", density=0.5, mean_span=3.0),
    Denoiser(rate=0.1, prefix="[NLG] ", density=0.5, mean_span=8.0),
    Denoiser(rate=0.1, prefix="[NLG] ", density=0.5, mean_span=64.0),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ul2Recipe:
    """Which rows are trained by UL2, and how; OpenMoE's mixture unless told otherwise."""

    to_step: int | None = None  # the first step of plain next-token prediction; None: none of the run
    denoisers: tuple[Denoiser, ...] = OPENMOE

    def problems(self, path: str) -> Iterator[tuple[str, str]]:
        if self.to_step is not None and self.to_step < 1:
            yield f"{path}.to_step", f"{self.to_step}; must be at least 1"
        if not self.denoisers:
            yield f"{path}.denoisers", "none; name at least one objective, or leave ul2 out"
        for number, one in enumerate(self.denoisers):
            where = f"{path}.denoisers[{number}]"
            if not one.rate > 0:
                yield f"{where}.rate", f"{one.rate}; must be positive"
            if (one.density is None) != (one.mean_span is None):
                yield f"{where}.density", f"{one.density} with mean_span={one.mean_span}; give both, or neither for prefix-LM"
            elif one.density is not None and one.mean_span is not None and not (0 < one.density < 1 and one.mean_span >= 1):
                yield f"{where}.density", f"{one.density} in spans of {one.mean_span}; a share between 0 and 1, in spans of at least 1"


@dataclass(frozen=True, slots=True)
class _Piece:
    """What stands in a row from left to right: tokens of the row itself, from a column on, or others."""

    size: int
    source: int | None = None  # the column before
    ids: tuple[int, ...] = ()  # of others
    what: str = ""


@dataclass(slots=True, eq=False)
class Ul2Rows(ChangedRows):
    """Rows as the mixture's objectives have them."""

    denoisers: Sequence[Denoiser]
    prefixes: Sequence[tuple[int, ...]]  # of each objective
    sentinels: Sequence[int]
    eod: int
    seed: int
    _borders: NDArray[np.float64] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._borders = np.cumsum([one.rate for one in self.denoisers])

    def change(self, row: int) -> RowChange:
        before = ChangedRows.change(self, row)
        denoiser, pieces, _ = self._plan(row)
        tokens: NDArray[Any] = np.concatenate(
            [np.array(one.ids, np.int32) if one.source is None else before.tokens[one.source : one.source + one.size] for one in pieces]
        ).astype(np.int32)
        spans: list[Span] = []
        kept = []
        for column, piece in zip(accumulate((one.size for one in pieces), initial=0), pieces, strict=False):
            if piece.source is None:
                spans.append(Span(None, 0, piece.size, column, change=piece.what))
            else:
                kept.append((piece.source, column, piece.size))
                spans += _moved(before.spans, piece.source, column, piece.size)
        return RowChange(tokens, tuple(spans), tuple(kept), {denoiser.name: 1})

    def is_trained(self, row: int) -> NDArray[np.bool_]:
        """[seq_length]: which targets of a row count."""
        if row not in self.affected:
            return np.ones(self.seq_length, np.bool_)
        _, pieces, num_inputs = self._plan(row)
        begins = sum(one.size for one in pieces[:num_inputs])
        ends = self.seq_length + 1 - sum(one.size for one in pieces if one.what == "filled")
        columns = np.arange(1, self.seq_length + 1)
        return (columns >= begins) & (columns < ends)

    def _plan(self, row: int) -> tuple[Denoiser, list[_Piece], int]:
        """The objective of a row, its pieces, and how many of those are inputs."""
        generator = stream(f"ul2 {self.seed} {row}")
        number = int(np.searchsorted(self._borders, generator.random_sample() * self._borders[-1], side="right"))
        denoiser, prefix = self.denoisers[number], self.prefixes[number]
        room = self.seq_length + 1 - len(prefix) - 1  # behind the prefix, and before the end
        inputs = [_Piece(len(prefix), ids=prefix, what=f"prefix of {denoiser.name}")] if prefix else []
        targets: list[_Piece] = []
        if denoiser.density is None or denoiser.mean_span is None:
            inputs.append(_Piece(room // 2, source=0))
            targets.append(_Piece(room - room // 2, source=room // 2))
            used = room
        else:
            size, num_spans = _fitting(room, denoiser.density, denoiser.mean_span, len(self.sentinels))
            num_noise = _num_noise(size, denoiser.density, num_spans)
            quiet, noise = _segments(size - num_noise, num_spans, generator), _segments(num_noise, num_spans, generator)
            column = 0
            for sentinel, kept, gone in zip(self.sentinels, quiet, noise, strict=False):
                mark = _Piece(1, ids=(sentinel,), what="sentinel")
                inputs += [_Piece(kept, source=column), mark]
                targets += [mark, _Piece(gone, source=column + kept)]
                column += kept + gone
            used = size + 2 * num_spans
        end = _Piece(1, ids=(self.eod,), what="end of targets")
        left = room - used
        filled = [_Piece(left, ids=(self.eod,) * left, what="filled")] if left else []
        return denoiser, [*inputs, *targets, end, *filled], len(inputs)


def ul2_rows(rows: Rows, recipe: Ul2Recipe, *, num_rows: int, seed: int, tokenizer: Tokenizer, vocab_size: int) -> Ul2Rows:
    """Lay the mixture over the first rows of a run.

    Sentinels are the tokenizer's `<extra_id_0>`, `<extra_id_1>`, ... or, where it has none, the last rows of the embedding, counted from
    its end as T5 does.

    Args:
        rows: of the run.
        recipe: of the mixture.
        num_rows: rows in its steps.
        seed: of objectives and noise.
        tokenizer: of the data.
        vocab_size: rows of the model's embedding.

    Raises:
        ConfigError: no id is left for a sentinel, the tokenizer has no end of document, or a prefix is too long for a row.
    """
    prefixes = tuple(tuple(tokenizer.encode(one.prefix, add_special_tokens=False)) for one in recipe.denoisers)
    longest = max(map(len, prefixes))
    if rows.seq_length < longest + _MIN_ROOM:
        raise ConfigError(f"a prefix of ul2 has {longest} tokens, a row {rows.seq_length} targets; take longer rows or shorter prefixes")
    sentinels = sentinel_ids(tokenizer, vocab_size) if any(one.density is not None for one in recipe.denoisers) else ()
    facts = {
        "kind": "ul2",
        "seed": seed,
        "denoisers": [asdict(one) for one in recipe.denoisers],
        "prefixes": prefixes,
        "sentinels": sentinels,
    }
    return Ul2Rows(rows, range(num_rows), facts, recipe.denoisers, prefixes, sentinels, end_of_document(tokenizer), seed)


def trained_targets(rows: Rows, numbers: Sequence[int]) -> NDArray[np.bool_] | None:
    """[rows, seq_length]: which targets of some rows count; None: all, because the rows are not those of a mixture."""
    return np.stack([rows.is_trained(row) for row in numbers]) if isinstance(rows, Ul2Rows) else None


def sentinel_ids(tokenizer: Tokenizer, vocab_size: int) -> tuple[int, ...]:
    """Ids that stand for spans of noise, the first span's first.

    Raises:
        ConfigError: the tokenizer has no sentinels, and uses every row of the embedding.
    """
    ids = []
    for number in range(_MAX_SENTINELS):
        encoded = tokenizer.encode(f"<extra_id_{number}>", add_special_tokens=False)
        if len(encoded) != 1 or encoded[0] not in tokenizer.special_ids:
            break
        ids += encoded
    ids = ids or list(range(vocab_size - 1, max(tokenizer.vocab_size, vocab_size - _MAX_SENTINELS) - 1, -1))
    if not ids:
        raise ConfigError(
            f"span corruption needs ids for its sentinels; the tokenizer has no <extra_id_0> and uses all {vocab_size} rows of the "
            "embedding: make model.vocab_size larger, by one for each span in a row"
        )
    return tuple(ids)


def _num_noise(size: int, density: float, num_spans: int) -> int:
    """Every span has a token of noise, and one before it that is none."""
    return min(max(round(size * density), num_spans), size - num_spans)


def _fitting(room: int, density: float, mean_span: float, num_sentinels: int) -> tuple[int, int]:
    """The most tokens of a row that fit, with two sentinels for each span of noise, and the number of spans."""
    size = room
    while True:
        num_spans = min(max(1, round(round(size * density) / mean_span)), num_sentinels, size // 2)
        if size + 2 * num_spans <= room:
            return size, num_spans
        size -= 1


def _segments(total: int, count: int, generator: np.random.RandomState) -> list[int]:
    """`count` positive sizes that add up, all ways of it equally likely: T5's random spans (Raffel et al. 2020, arXiv:1910.10683)."""
    borders = np.sort(generator.permutation(total - 1)[: count - 1]) + 1
    return np.diff([0, *borders.tolist(), total]).tolist()  # type: ignore[no-any-return]


def _moved(spans: Sequence[Span], source: int, column: int, size: int) -> list[Span]:
    """What of some spans stands in columns [source, source + size), as it stands from `column` on."""
    found = []
    for span in spans:
        begin, end = max(span.column, source), min(span.column + span.num_tokens, source + size)
        if begin < end:
            moved = replace(span, column=begin - source + column)
            if span.width is None:
                found.append(replace(moved, start=span.start + begin - span.column, stop=span.start + end - span.column))
            else:
                found.append(replace(moved, width=end - begin))
    return found
