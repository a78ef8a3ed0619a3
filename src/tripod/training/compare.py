"""What an intervention did: the losses of branch and control on the same texts, checkpoint by checkpoint, with intervals.

A metric is a set of texts: the rows of the validation, and any that are given. Of each text branch and control have a loss, and only
their difference counts, so what makes a text hard falls out. With one pair of runs the interval is of the texts: 95 % of a paired
bootstrap, or Student's t where they are few, because a bootstrap of few is too narrow; one text alone has none. With several (seeds), it
is of the runs: Student's t over the pairs' mean differences; the texts are the same in all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tripod.errors import ConfigError, MissingExtraError
from tripod.training.data.build import end_of_document
from tripod.training.data.progress import Progress, no_progress
from tripod.training.run import Run

if TYPE_CHECKING:
    from tripod.models.architectures import Decoder
    from tripod.text.tokenizer import Tokenizer
    from tripod.training.packing import Packing

VALIDATION = "validation loss"
_RESAMPLES = 10_000
_RESAMPLED_AT_ONCE = 1 << 22  # numbers in memory
_FEW_TEXTS = 20  # below, a bootstrap is too narrow: of 5 normal numbers its 95 % hold the truth in 83 % of cases
# Student's t, 97.5 %, of 1 to 30 degrees of freedom; beyond, 1.96 + 2.5 / degrees is right to three digits.
_T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One metric at one checkpoint. Losses are means over texts and runs, in nats a token."""

    metric: str
    step: int
    branch: float
    control: float
    difference: float  # branch - control
    low: float | None  # of a 95 % interval; None where one text gives none
    high: float | None
    num_texts: int
    num_pairs: int
    interval_of: str  # "texts" | "seeds"

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def control_of(branch: Run) -> Run:
    """The control that a branch names.

    Raises:
        ConfigError: it names none, or the control is not there.
    """
    if branch.recipe.branch is None or branch.recipe.branch.control is None:
        raise ConfigError(f"{branch.folder} names no control; it was not made by `tripod train --branch`: give --control RUN")
    return Run.open(Path(branch.recipe.branch.control))


def compare(
    pairs: Sequence[tuple[Run, Run]],
    *,
    texts: Mapping[str, Sequence[str]] | None = None,
    steps: Sequence[int] | None = None,
    progress: Progress = no_progress,
) -> tuple[Difference, ...]:
    """Compare branches with their controls at the checkpoints that all have.

    Args:
        pairs: (branch, control), one of each seed.
        texts: metrics by name; each text is read as a document, its tokens beyond the models' longest row left out.
        steps: some of the common checkpoints; all.
        progress: told the stage "compare", with checkpoints done.

    Raises:
        ConfigError: there is no pair, no common checkpoint, nothing to measure, or two runs of a pair validate on other rows.
        CheckpointError: a checkpoint cannot be read.
    """
    if not pairs:
        raise ConfigError("no branch was given to compare")
    common = sorted(set.intersection(*(set(run.steps) for pair in pairs for run in pair)))
    chosen = common if steps is None else sorted(steps)
    if not chosen or not set(chosen) <= set(common):
        raise ConfigError(f"steps {chosen} were asked for; the runs have in common: {common or 'none'}")
    probes = [_probes(pair, texts or {}) for pair in pairs]
    if not probes[0]:
        raise ConfigError("there is nothing to measure: the runs have no validation, and no texts are given; give some (--texts NAME=FILE)")
    found: list[Difference] = []
    for done, step in enumerate(chosen):
        progress("compare", done, len(chosen))
        losses = [
            [_losses(run, step, probe) for run in pair] for pair, probe in zip(pairs, probes, strict=True)
        ]  # [pair][side][metric] -> [texts]
        for metric in probes[0]:
            branch = np.stack([of_pair[0][metric] for of_pair in losses])  # [pairs, texts]
            control = np.stack([of_pair[1][metric] for of_pair in losses])
            found.append(difference(metric, step, branch, control))
    progress("compare", len(chosen), len(chosen))
    return tuple(sorted(found, key=lambda one: (list(probes[0]).index(one.metric), one.step)))


def difference(metric: str, step: int, branch: NDArray[np.float64], control: NDArray[np.float64], *, seed: int = 0) -> Difference:
    """The difference of losses [pairs, texts], with its interval."""
    apart = branch - control
    num_pairs, num_texts = apart.shape
    mean = float(apart.mean())
    independent = apart.mean(1) if num_pairs > 1 else apart[0]
    low: float | None = None
    high: float | None = None
    if num_pairs > 1 or 1 < num_texts < _FEW_TEXTS:
        half = student_t(len(independent) - 1) * float(independent.std(ddof=1)) / len(independent) ** 0.5
        low, high = mean - half, mean + half
    elif num_texts > 1:
        low, high = _bootstrap(independent, np.random.default_rng(seed))
    return Difference(
        metric=metric,
        step=step,
        branch=float(branch.mean()),
        control=float(control.mean()),
        difference=mean,
        low=low,
        high=high,
        num_texts=num_texts,
        num_pairs=num_pairs,
        interval_of="seeds" if num_pairs > 1 else "texts",
    )


def _bootstrap(values: NDArray[np.float64], rng: np.random.Generator) -> tuple[float, float]:
    """95 % of the means of as many values drawn from these."""
    at_once = max(1, _RESAMPLED_AT_ONCE // len(values))
    sizes = [min(at_once, _RESAMPLES - done) for done in range(0, _RESAMPLES, at_once)]
    means = np.concatenate([values[rng.integers(len(values), size=(size, len(values)))].mean(1) for size in sizes])
    low, high = np.quantile(means, (0.025, 0.975)).tolist()
    return low, high


def student_t(degrees: int) -> float:
    """How many standard errors 95 % of the distribution lie within."""
    return _T[degrees - 1] if degrees <= len(_T) else 1.96 + 2.5 / degrees


def plot(differences: Sequence[Difference], path: Path) -> None:
    """Draw each metric's difference over the steps, with its interval, into a file of the kind that its name says.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise MissingExtraError("matplotlib", "plots", "drawing a comparison") from error
    metrics = list(dict.fromkeys(one.metric for one in differences))
    figure = Figure(figsize=(7, 2.6 * len(metrics)), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, metric in zip(figure.subplots(len(metrics), squeeze=False)[:, 0], metrics, strict=True):
        shown = [one for one in differences if one.metric == metric]
        middle = np.array([one.difference for one in shown])
        ends = [(one.difference, one.difference) if one.low is None or one.high is None else (one.low, one.high) for one in shown]
        errors = np.abs(np.array(ends).T - middle)
        axes.axhline(0, color="0.6", linewidth=0.8)
        axes.errorbar([one.step for one in shown], middle, yerr=errors, marker="o", markersize=3, capsize=2, linewidth=1)
        axes.set_title(metric, loc="left", fontsize=10)
        axes.set_ylabel("branch - control (nats)")
        axes.set_xlabel(f"step; 95 % intervals over {shown[0].interval_of}")
    figure.savefig(path, dpi=150)


@dataclass(frozen=True, slots=True)
class _Probe:
    """A text as a model reads it."""

    ids: Sequence[int]
    packing: Packing | None = None  # of a row of several documents; None: one sequence


def _probes(pair: tuple[Run, Run], texts: Mapping[str, Sequence[str]]) -> dict[str, list[_Probe]]:
    """The texts of each metric; the same for both runs. Rows of the validation are read as the branch's recipe has them packed."""
    import torch

    from tripod.text.load_tokenizer import load_tokenizer
    from tripod.training.packing import pack

    branch, control = pair
    probes: dict[str, list[_Probe]] = {}
    if branch.recipe.validation is not None and control.recipe.validation is not None:
        order, other = branch.order("valid"), control.order("valid")
        if order.fingerprint != other.fingerprint:
            raise ConfigError(f"{branch.folder} and {control.folder} validate on different rows; compare runs of one data set and seed")
        num_rows = branch.recipe.validation.num_batches * branch.recipe.batch.rows
        packed, cpu = branch.recipe.batch, torch.device("cpu")
        probes[VALIDATION] = [_Probe(order.rows.row(row).tolist(), pack(order.rows, [row], packed, cpu)) for row in range(num_rows)]
    tokenizer = load_tokenizer(Path(branch.recipe.data.tokenizer))
    longest = branch.recipe.model.max_positions + 1
    for name, given in texts.items():
        probes[name] = [_Probe(_document(text, tokenizer)[:longest]) for text in given if text.strip()]
        if not probes[name]:
            raise ConfigError(f"there is no text in {name!r}")
    return probes


def _document(text: str, tokenizer: Tokenizer) -> list[int]:
    """As it is read behind the end of another, so that its first token is a target too."""
    return [end_of_document(tokenizer), *tokenizer.encode(text, add_special_tokens=False)]


def _losses(run: Run, step: int, probes: Mapping[str, Sequence[_Probe]]) -> dict[str, NDArray[np.float64]]:
    from tripod.models.load import load_language_model

    model = load_language_model(run.checkpoint(step))
    return {metric: np.array([_loss(model, probe) for probe in of_metric]) for metric, of_metric in probes.items()}


def _loss(model: Decoder, probe: _Probe) -> float:
    import torch

    from tripod.training.gradients import mean_loss

    return mean_loss(model, torch.tensor([list(probe.ids)]), micro_rows=1, precision="fp32", packing=probe.packing).item()
