"""Which training rows does a checkpoint know by heart, and does it matter how often and when it read them?

A row is memorised if the greedy continuation of its first `prompt` tokens repeats the next `length`; its score is the share of those
that are repeated in their places (Biderman et al. 2023, arXiv:2304.01373, section 3.2).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from tripod.analysis.checkpoints import Checkpoint
from tripod.analysis.memorization_plot import draw_memorization
from tripod.analysis.memorized_rows import bulk_config, continuations
from tripod.analysis.poisson import BIN, bin_counts, poisson_test, quantiles, uniformity
from tripod.analysis.shares import wilson
from tripod.analysis.study import CONCLUDED, Measured
from tripod.errors import ConfigError
from tripod.evaluation.table import Row, Table
from tripod.training.data.progress import Progress

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tripod.training.run import Run


@dataclass(frozen=True, kw_only=True)
class Memorization:
    """Continues training rows with each checkpoint. Only rows that it has read count, unless `unseen` is set."""

    name: ClassVar[str] = "memorization"
    measured_as: ClassVar[str] = "memorization"
    version: ClassVar[int] = 1
    prompt: int = 32  # tokens
    length: int = 32  # tokens
    first_row: int = 0
    num_rows: int = 10_000  # in the order of training, from the first on; 0: all
    unseen: bool = False  # rows as well that the checkpoint has not read: what it continues without having seen it
    bin: int = field(default=BIN, metadata=CONCLUDED)  # rows of a bin of the Poisson test

    def __post_init__(self) -> None:
        if self.prompt < 1 or self.length < 1 or self.first_row < 0 or self.num_rows < 0 or self.bin < 1:
            raise ConfigError(
                f"prompt={self.prompt}, length={self.length}, first_row={self.first_row}, num_rows={self.num_rows}, bin={self.bin}; "
                "the first two and the last are at least 1, the others not negative"
            )

    def depends_on(self, checkpoint: Checkpoint) -> Mapping[str, str]:
        return {"order": _run(checkpoint).order().content_fingerprint, "step": str(checkpoint.step)}

    async def measure(self, checkpoint: Checkpoint, progress: Progress) -> Table:
        """One row a training row: how many tokens were repeated, and how often the checkpoint had read these tokens together."""
        from tripod.engine.engine import Engine
        from tripod.training.ngrams.index import NGramIndex

        run = _run(checkpoint)
        numbers = self.rows_of(checkpoint)
        if not len(numbers):
            return Table.of([])
        order = run.order()
        taken = self.prompt + self.length
        if order.rows.seq_length + 1 < taken:
            raise ConfigError(f"rows of {run.folder} have {order.rows.seq_length + 1} tokens; prompt and length together ask for {taken}")
        rows = np.stack([order.rows.row(number)[:taken].astype(np.int64) for number in numbers])
        times = NGramIndex.of(run, progress=progress).counts(rows.tolist(), step=checkpoint.step)
        config = bulk_config(taken)
        async with Engine.load(str(checkpoint.folder), device=checkpoint.device, config=config) as engine:
            said = await continuations(engine, rows[:, : self.prompt], self.length, progress=progress)
        return Table.of(
            {"row": row, "matched": matched, "times": read}
            for row, matched, read in zip(numbers, (said == rows[:, self.prompt :]).sum(1).tolist(), times.tolist(), strict=True)
        )

    def rows_of(self, checkpoint: Checkpoint) -> range:
        """The rows that are continued."""
        run = _run(checkpoint)
        recipe = run.recipe
        assert checkpoint.step is not None
        end = recipe.batch.rows * (recipe.num_steps if self.unseen else checkpoint.step)
        last = end if self.num_rows == 0 else min(end, self.first_row + self.num_rows)
        return range(self.first_row, max(self.first_row, last))

    def conclude(self, measured: Measured) -> Table:
        """One value a row, named by `statistic`; `x` is what it depends on, `low` and `high` its 95 % interval, `count` of how many."""
        return Table.of({**checkpoint.about(), **row} for checkpoint, table in measured for row in self._statistics(checkpoint, table))

    def _statistics(self, checkpoint: Checkpoint, table: Table) -> Iterator[Row]:
        if not len(table):
            return
        ordered = table.sorted_by("row")
        matched = np.array(ordered.numbers("matched"), np.int64)
        times = np.array(ordered.numbers("times"), np.int64)
        exact = matched == self.length
        yield _share("memorized", None, exact)
        score = matched / self.length
        error = 1.96 * float(score.std()) / max(1, len(score)) ** 0.5
        yield _value("score", None, float(score.mean()), len(score), float(score.mean()) - error, float(score.mean()) + error)
        for number, count in enumerate(np.bincount(matched, minlength=self.length + 1).tolist()):
            yield _value("rows with x tokens right", number, count / len(matched), count)
        for lowest, members in by_powers(times):
            yield _share("memorized of rows read x times", lowest, exact[members])
        counts = bin_counts(exact, self.bin)
        test = poisson_test(counts)
        if test is not None:
            yield _value("dispersion of bins", None, test.dispersion, test.num_bins)
            yield _value("memorized rows a bin", None, test.rate, test.num_bins)
            yield _value("p that bins are as clustered", None, test.p_clustered, test.num_bins)
            yield _value("p that bins are as regular", None, test.p_regular, test.num_bins)
            for expected, observed in zip(*quantiles(counts), strict=True):
                yield _value("bin count beside Poisson's", float(expected), float(observed), test.num_bins)
        spread = uniformity(exact)
        if spread is not None:
            yield _value("p that memorized rows are spread evenly", None, spread, int(exact.sum()))
            if len(exact) > 2 and exact.any() and not exact.all():
                yield _value("correlation of score with order", None, float(np.corrcoef(np.arange(len(score)), score)[0, 1]), len(score))

    def draw(self, table: Table, figure: Figure) -> None:
        draw_memorization(table, figure)


def by_powers(times: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.bool_]]]:
    """Cases by their number of times: 0, 1, 2 to 3, 4 to 7, ...; the lowest number of each class that has any, and which they are."""
    classes = np.where(times > 0, np.floor(np.log2(np.maximum(times, 1))).astype(np.int64), -1)
    for one in np.unique(classes).tolist():
        yield (0 if one < 0 else 2**one), classes == one


def _run(checkpoint: Checkpoint) -> Run:
    if checkpoint.run is None or checkpoint.step is None:
        raise ConfigError(f"{checkpoint.folder} is not a checkpoint of a training run that lies here, so its training rows are not known")
    return checkpoint.run


def _share(statistic: str, x: float | None, flags: NDArray[np.bool_] | Sequence[bool]) -> Row:
    share, low, high = wilson(int(np.sum(flags)), len(flags))
    return _value(statistic, x, share, len(flags), low, high)


def _value(statistic: str, x: float | None, value: float, count: int, low: float | None = None, high: float | None = None) -> Row:
    return {"statistic": statistic, "x": x, "value": value, "low": low, "high": high, "count": count}
