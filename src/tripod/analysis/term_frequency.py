"""Does a model work better with numbers that it has read more often? Accuracy of arithmetic against counts in the training rows.

As in Biderman et al. 2023, arXiv:2304.01373, section 3.3, after Razeghi et al. 2022, arXiv:2202.07206.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from tripod.analysis.arithmetic_prompts import MAX_TOKENS, Question, questions
from tripod.analysis.checkpoints import Checkpoint
from tripod.analysis.memorized_rows import REQUESTS, TOKENS, WORKERS_PER_PLACE
from tripod.analysis.picture import plain, spelled_size
from tripod.analysis.shares import wilson
from tripod.analysis.study import Measured
from tripod.analysis.term_counts import term_counts
from tripod.errors import ConfigError
from tripod.evaluation.table import Row, Table
from tripod.evaluation.tasks.asking import for_each
from tripod.sampling import SamplingParams
from tripod.training.data.progress import Progress

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from tripod.engine.engine import Engine

EXTREMES = 10  # operands at each end, whose accuracies make the performance gap
_BINS = 20  # of counts, logarithmic


@dataclass(frozen=True, kw_only=True)
class TermFrequency:
    """Asks sums and products of each checkpoint, and counts their operands in what it has read."""

    name: ClassVar[str] = "term-frequency"
    version: ClassVar[int] = 1
    operations: tuple[str, ...] = ("addition", "multiplication")
    shots: tuple[int, ...] = (0, 4, 16)  # examples before the question
    num_first: int = 100  # first operands, from 0: those whose counts are compared
    num_second: int = 50  # second operands, from 1
    seed: int = 0  # of the examples

    def __post_init__(self) -> None:
        if not self.operations or not self.shots:
            raise ConfigError(f"operations={self.operations}, shots={self.shots}; give at least one of each")
        for operation in self.operations:
            for shots in self.shots:  # refuses what cannot be asked, before terms are counted
                next(questions(operation, shots=shots, num_first=self.num_first, num_second=self.num_second))

    def depends_on(self, checkpoint: Checkpoint) -> Mapping[str, str]:
        if checkpoint.run is None or checkpoint.step is None:
            raise ConfigError(f"{checkpoint.folder} is not a checkpoint of a training run that lies here, so its terms cannot be counted")
        return {"order": checkpoint.run.order().content_fingerprint, "step": str(checkpoint.step)}

    async def measure(self, checkpoint: Checkpoint, progress: Progress) -> Table:
        """One row an operation, number of shots and first operand: items right of how many, and the operand's count."""
        from tripod.engine.engine import Engine
        from tripod.engine.engine_config import EngineConfig

        assert checkpoint.run is not None
        assert checkpoint.step is not None
        counts = term_counts(checkpoint.run, checkpoint.step, progress=progress)
        items = [
            (shots, question)
            for operation in self.operations
            for shots in self.shots
            for question in questions(operation, shots=shots, num_first=self.num_first, num_second=self.num_second, seed=self.seed)
        ]
        config = EngineConfig(max_num_requests=REQUESTS, max_batch_tokens=TOKENS, chunk_beside_decodes=None)
        async with Engine.load(str(checkpoint.folder), device=checkpoint.device, config=config) as engine:
            right = await _answer(engine, [question for _, question in items], progress)
        groups: dict[tuple[str, int, int], list[bool]] = defaultdict(list)
        for (shots, question), is_right in zip(items, right, strict=True):
            groups[question.operation, shots, question.first].append(is_right)
        return Table.of(
            {
                "operation": operation,
                "shots": shots,
                "first": first,
                "seen": counts.get(str(first), 0),
                "right": sum(of),
                "items": len(of),
            }
            for (operation, shots, first), of in groups.items()
        )

    def conclude(self, measured: Measured) -> Table:
        """`accuracy` of each operand with its count, and of each operation and number of shots `mean accuracy` and `performance gap`."""
        return Table.of({**checkpoint.about(), **row} for checkpoint, table in measured for row in _statistics(table))

    def draw(self, table: Table, figure: Figure) -> None:
        """For the largest number of shots: a panel for each model and operation, a line for each checkpoint."""
        shown = table.where(statistic="accuracy", shots=max(table.numbers("shots")))
        models = shown.by("model", "size")
        operations = list(dict.fromkeys(shown.column("operation")))
        figure.set_size_inches(5 * len(operations), 3.4 * len(models) + 0.4)
        panels = figure.subplots(len(models), len(operations), squeeze=False, sharey="row")
        for down, ((name, size), of_model) in enumerate(models.items()):
            for across, operation in enumerate(operations):
                axes = panels[down, across]
                _draw_lines(axes, of_model.where(operation=operation))
                shots = int(max(table.numbers("shots")))
                plain(axes, f"{name}, {spelled_size(float(size or 0))}: {operation}, {shots} shots")
            panels[down, 0].set_ylabel("accuracy, %")
        panels[-1, -1].legend(frameon=False, fontsize=8, title="step", title_fontsize=8)


def performance_gap(seen: Sequence[float], accuracies: Sequence[float], *, extremes: int = EXTREMES) -> float | None:
    """Mean accuracy of the most frequent operands less that of the least frequent, in points of a hundred; None for too few.

    Operands that were seen as often as each other share their accuracy, so that no order among them makes a gap.
    """
    if extremes < 1 or len(seen) < 2 * extremes:
        return None
    alike: dict[float, list[float]] = defaultdict(list)
    for count, accuracy in zip(seen, accuracies, strict=True):
        alike[count].append(accuracy)
    ordered = [float(np.mean(alike[count])) for count in sorted(seen)]
    return 100 * (float(np.mean(ordered[-extremes:])) - float(np.mean(ordered[:extremes])))


async def _answer(engine: Engine, asked: Sequence[Question], progress: Progress) -> list[bool]:
    """Whether each question is answered rightly."""
    sampling = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS, stop=("\n",))
    right = [False] * len(asked)

    async def one(number: int) -> None:
        right[number] = asked[number].is_right((await engine.generate(asked[number].prompt, sampling)).text)

    at_once = WORKERS_PER_PLACE * engine.config.max_num_requests
    await for_each(range(len(asked)), one, at_once=at_once, progress=progress, stage="questions")
    return right


def _statistics(table: Table) -> Iterator[Row]:
    for row in table:
        share, low, high = wilson(int(row["right"] or 0), int(row["items"] or 0))
        about = {"operation": row["operation"], "shots": row["shots"], "first": row["first"], "seen": row["seen"]}
        yield {**about, "statistic": "accuracy", "value": share, "low": low, "high": high, "count": row["items"]}
    for (operation, shots), rows in table.by("operation", "shots").items():
        about = {"operation": operation, "shots": shots, "first": None, "seen": None}
        right, items = int(sum(rows.numbers("right"))), int(sum(rows.numbers("items")))
        share, low, high = wilson(right, items)
        yield {**about, "statistic": "mean accuracy", "value": share, "low": low, "high": high, "count": items}
        accuracies = [good / of for good, of in zip(rows.numbers("right"), rows.numbers("items"), strict=True)]
        gap = performance_gap(rows.numbers("seen"), accuracies, extremes=min(EXTREMES, len(accuracies) // 2))
        yield {**about, "statistic": "performance gap", "value": gap, "low": None, "high": None, "count": items}


def _draw_lines(axes: Axes, rows: Table) -> None:
    from matplotlib import colormaps

    rows = rows.where(lambda row: int(row["step"] or 0) > 0)  # before it, nothing was read
    steps = sorted(set(rows.numbers("step")))
    largest = max([1.0, *rows.numbers("seen")])
    edges = np.logspace(0, math.log10(largest + 1), _BINS + 1)
    for rank, step in enumerate(steps):
        at = rows.where(step=int(step))
        seen, values = np.array(at.numbers("seen")), np.array(at.numbers("value"))
        bins = np.digitize(np.maximum(seen, 0.5), edges)
        found = [(float(np.mean(seen[bins == one])), 100 * float(values[bins == one].mean())) for one in np.unique(bins)]
        shade = colormaps["viridis"](0.9 * rank / max(1, len(steps) - 1))
        axes.plot(*zip(*found, strict=True), color=shade, marker="o", markersize=3, linewidth=1.2, label=f"{int(step)}")
    if rows.numbers("seen") and min(rows.numbers("seen")) > 0:
        axes.set_xscale("log")
    else:
        axes.set_xscale("symlog", base=10, linthresh=1, linscale=0.5)
    axes.set_xlabel("times that the first operand was read near a number")
    axes.set_ylim(bottom=0)
