"""A training run as one value: what is trained, on what, how, and what is kept.

Every piece is plain and frozen. The whole is checked when it is built, and one error lists everything that is wrong with it. A
recipe says nothing of the machine: device and number of processes are arguments of the run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

from tripod.errors import ConfigError
from tripod.training.checkpoint_rule import CheckpointRule
from tripod.training.data.ul2 import Ul2Recipe
from tripod.training.intervention import InterventionRecipe
from tripod.training.loss_scale import LossScaling
from tripod.training.model_recipe import ModelRecipe, Problem
from tripod.training.schedule import Schedule, ScheduleKind


@runtime_checkable
class Checked(Protocol):
    """A piece of a recipe that can say what is wrong with it."""

    def problems(self, path: str) -> Iterator[Problem]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRecipe:
    """Texts from which tokenizer and data set are made before training, where they are not there yet."""

    inputs: tuple[str, ...]  # jsonl(.zst), text and Markdown files, folders of them; the command line also knows "python-documentation"
    vocab_size: int  # of the tokenizer that is trained on them

    def problems(self, path: str) -> Iterator[Problem]:
        if not self.inputs:
            yield f"{path}.inputs", "none; name files or folders"
        if self.vocab_size < 257:
            yield f"{path}.vocab_size", f"{self.vocab_size}; 256 bytes and the end of a document need 257"


@dataclass(frozen=True, slots=True, kw_only=True)
class DataRecipe:
    """The data sets, each by its path without .bin and .idx."""

    prefixes: tuple[str, ...]
    tokenizer: str  # a folder; its files go into every checkpoint
    weights: tuple[float, ...] | None = None  # of the data sets; equal
    split: str | None = None  # shares of training, validation and test of one data set, such as "969,30,1"
    valid_prefixes: tuple[str, ...] = ()  # data sets for validation, where there is no split
    maps_folder: str | None = None  # where index maps are kept; beside the data
    is_preshuffled: bool = False  # the data set holds the rows of the run in their order, as Pythia publishes them
    source: SourceRecipe | None = None  # None: the data sets are there

    def problems(self, path: str) -> Iterator[Problem]:
        if not self.prefixes:
            yield f"{path}.prefixes", "none; name at least one data set"
        if self.weights is not None and len(self.weights) != len(self.prefixes):
            yield f"{path}.weights", f"{len(self.weights)} weights for {len(self.prefixes)} data sets"
        if self.weights is not None and any(weight <= 0 for weight in self.weights):
            yield f"{path}.weights", f"{self.weights}; all must be positive"
        if self.split is not None and len(self.prefixes) > 1:
            yield f"{path}.split", f"{self.split!r} with {len(self.prefixes)} data sets; only one data set can be split"
        if self.is_preshuffled and (len(self.prefixes) > 1 or self.split is not None or self.source is not None):
            yield f"{path}.is_preshuffled", "rows in their order are one data set, without split and source"
        if self.split is not None and self.valid_prefixes:
            yield f"{path}.valid_prefixes", "given together with split; leave out one of them"
        if self.source is not None:
            if len(self.prefixes) > 1:
                yield f"{path}.source", f"makes one data set; {len(self.prefixes)} prefixes are given"
            yield from self.source.problems(f"{path}.source")


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRecipe:
    """How many rows a step trains. Micro-batches bound the memory; they never change which rows a step sees."""

    rows: int  # of a step, over all devices and micro-batches
    seq_length: int  # targets of a row
    micro_rows: int | None = None  # rows in memory at once; all
    attention: Literal["row", "document"] = "row"  # what a token sees: all before it in the row, as in GPT-NeoX, or in its document
    positions: Literal["row", "document"] = "row"  # from where they count

    def problems(self, path: str) -> Iterator[Problem]:
        if self.rows < 1:
            yield f"{path}.rows", f"{self.rows}; must be at least 1"
        if self.seq_length < 1:
            yield f"{path}.seq_length", f"{self.seq_length}; must be at least 1"
        if self.micro_rows is not None and not 1 <= self.micro_rows <= self.rows:
            yield f"{path}.micro_rows", f"{self.micro_rows}; must be from 1 to rows={self.rows}"

    @property
    def num_accumulated(self) -> int:
        """Micro-batches of a step."""
        return -(-self.rows // (self.micro_rows or self.rows))


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerRecipe:
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) or Adafactor (Shazeer & Stern 2018, arXiv:1804.04235) with steps relative to the
    size of what they change; no decay of biases and norms."""

    lr: float  # at the peak; of adafactor relative to the root mean square of a tensor: 0.01 is common
    kind: Literal["adamw", "adafactor"] = "adamw"
    beta1: float = 0.9  # of adamw, and so the next two
    beta2: float = 0.95
    eps: float = 1e-8
    beta2_decay: float = 0.8  # of adafactor: the mean of squares is over about the last step ** beta2_decay updates
    weight_decay: float = 0.1
    clip: float = 1.0  # global L2 norm of the gradients; 0: not clipped

    def problems(self, path: str) -> Iterator[Problem]:
        if not self.lr > 0:
            yield f"{path}.lr", f"{self.lr}; must be positive"
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                yield f"{path}.{name}", f"{getattr(self, name)}; must be from 0 to below 1"
        if not 0 < self.beta2_decay <= 1:
            yield f"{path}.beta2_decay", f"{self.beta2_decay}; must be above 0, and at most 1"
        for name in ("eps", "weight_decay", "clip"):
            if not getattr(self, name) >= 0:
                yield f"{path}.{name}", f"{getattr(self, name)}; must not be negative"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleRecipe:
    """See `tripod.training.schedule.Schedule`. Shares are of all steps, rounded to whole steps."""

    kind: ScheduleKind = "cosine"
    warmup: float = 0.01  # share
    decay: float = 0.2  # share; of wsd
    min_lr: float = 0.1  # share of the peak

    def problems(self, path: str) -> Iterator[Problem]:
        for name in ("warmup", "decay", "min_lr"):
            if not 0 <= getattr(self, name) <= 1:
                yield f"{path}.{name}", f"{getattr(self, name)}; a share from 0 to 1"
        if self.kind == "wsd" and self.warmup + self.decay > 1:
            yield f"{path}.decay", f"warmup={self.warmup} and decay={self.decay} are more than all steps"


@dataclass(frozen=True, slots=True, kw_only=True)
class LossRecipe:
    """Terms that are added to the mean cross-entropy, each with its coefficient; those of routers are means over the sparse layers."""

    output_z: float = 0.0  # mean of log(sum of exponentials of the logits)^2; OpenMoE: 1e-4
    balance: float = 0.01  # how unevenly a router uses its experts; see `tripod.training.loss_terms`
    router_z: float = 1e-3  # as output_z, of a router's logits; OpenMoE: 1e-4, OLMoE: 1e-3
    bias_rate: float = 1e-3  # by which the selection bias of routers that have one moves in a step (arXiv:2408.15664)

    def problems(self, path: str) -> Iterator[Problem]:
        for name in ("output_z", "balance", "router_z", "bias_rate"):
            if not getattr(self, name) >= 0:
                yield f"{path}.{name}", f"{getattr(self, name)}; must not be negative"


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedsRecipe:
    """Apart from each other, so that each can be varied alone, as PolyPythias does (arXiv:2503.09543)."""

    initialization: int = 1234
    order: int = 1234
    dropout: int = 1234

    def problems(self, path: str) -> Iterator[Problem]:
        for name in ("initialization", "order", "dropout"):
            if not 0 <= getattr(self, name) < 2**32:
                yield f"{path}.{name}", f"{getattr(self, name)}; must be from 0 to 2^32 - 1"


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationRecipe:
    """The loss on the same rows at an interval, at step 0 and at the end."""

    every: int  # steps
    num_batches: int = 1  # of as many rows as a step trains

    def problems(self, path: str) -> Iterator[Problem]:
        if self.every < 1:
            yield f"{path}.every", f"{self.every}; must be at least 1"
        if self.num_batches < 1:
            yield f"{path}.num_batches", f"{self.num_batches}; must be at least 1"


@dataclass(frozen=True, slots=True, kw_only=True)
class BranchRecipe:
    """Where a run left another; written by `tripod train --branch`."""

    parent: str  # run@stepN, whose weights and optimizer state it began with
    control: str | None = None  # the run from there without the interventions; None: this is one


@dataclass(frozen=True, slots=True, kw_only=True)
class ParallelRecipe:
    """How several processes share a run. How many there are is an argument of the run; neither changes which rows a step trains."""

    style: Literal["replicate", "shard", "experts"] = "replicate"
    """Every process has all weights; or a part of each (FSDP, arXiv:2304.11277); or some of the experts, and all other weights."""

    tensor: int = 1  # processes that share each matrix (Megatron, arXiv:1909.08053); the rest share the rows

    def problems(self, path: str) -> Iterator[Problem]:
        if self.tensor < 1:
            yield f"{path}.tensor", f"{self.tensor}; must be at least 1"
        if self.tensor > 1 and self.style == "experts":
            yield f"{path}.tensor", f"{self.tensor} with style=experts; processes that share experts share no matrices: leave it out"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """All of a run but the machine.

    Raises:
        ConfigError: naming every field that is wrong.
    """

    run: str  # the folder that gets checkpoints and metrics
    num_steps: int
    model: ModelRecipe
    data: DataRecipe
    batch: BatchRecipe
    optimizer: OptimizerRecipe
    ul2: Ul2Recipe | None = None  # a mixture of objectives; None: next-token prediction alone
    loss: LossRecipe = field(default_factory=LossRecipe)
    schedule: ScheduleRecipe = field(default_factory=ScheduleRecipe)
    checkpoints: CheckpointRule = field(default_factory=CheckpointRule)
    seeds: SeedsRecipe = field(default_factory=SeedsRecipe)
    validation: ValidationRecipe | None = None
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"  # of the matrix products; weights and optimizer are float32
    loss_scaling: LossScaling = field(default_factory=LossScaling)  # of fp16
    recompute: bool = False  # compute each block again for its gradients instead of keeping what it computed (arXiv:1604.06174)
    compile: bool = False  # the blocks by torch.compile
    parallel: ParallelRecipe = field(default_factory=ParallelRecipe)
    routing_rows: int = 16  # of a sparse model: rows whose routing is recorded with each checkpoint; 0: none
    dropout: float = 0.0  # share of the numbers dropped behind the embedding and behind each attention and MLP
    interventions: tuple[InterventionRecipe, ...] = ()  # what changes in the rows, one after the other
    branch: BranchRecipe | None = None  # None: it began with initial weights

    def __post_init__(self) -> None:
        raise_problems(list(self._problems()), "the recipe")

    def _problems(self) -> Iterator[Problem]:
        if not self.run:
            yield "run", "empty; name a folder"
        if self.num_steps < 1:
            yield "num_steps", f"{self.num_steps}; must be at least 1"
        for name in ("model", "data", "batch", "optimizer", "ul2", "loss", "schedule", "seeds", "validation", "parallel"):
            piece = getattr(self, name)
            if piece is not None:
                yield from piece.problems(name)
        rule = self.checkpoints
        for name in ("log_until", "every", "offset"):
            if getattr(rule, name) < 0:
                yield f"checkpoints.{name}", f"{getattr(rule, name)}; must not be negative"
        scaling = self.loss_scaling
        if not (scaling.minimum > 0 and scaling.initial >= scaling.minimum and scaling.window >= 1 and scaling.hysteresis >= 1):
            yield "loss_scaling", f"{scaling}; must be positive, with initial at or above minimum"
        if self.batch.seq_length > self.model.max_positions:
            yield "batch.seq_length", f"{self.batch.seq_length} is beyond model.max_positions={self.model.max_positions}"
        if self.data.source is not None and self.data.source.vocab_size > self.model.vocab_size:
            yield "data.source.vocab_size", f"{self.data.source.vocab_size} is beyond model.vocab_size={self.model.vocab_size}"
        if self.validation is not None and self.data.split is None and not self.data.valid_prefixes:
            yield "validation", "asked for without data; give data.split or data.valid_prefixes"
        for number, intervention in enumerate(self.interventions):
            yield from intervention.problems(f"interventions[{number}]")
            if intervention.from_step >= self.num_steps:
                yield f"interventions[{number}].from_step", f"{intervention.from_step}; the run has num_steps={self.num_steps}"
            if intervention.rows_per_step > self.batch.rows:
                yield f"interventions[{number}].rows_per_step", f"{intervention.rows_per_step}; a step has batch.rows={self.batch.rows}"
        if self.ul2 is not None and (self.batch.attention, self.batch.positions) != ("row", "row"):
            yield "ul2", "its targets stand behind all inputs of a row; batch.attention and batch.positions must be 'row'"
        if self.optimizer.kind == "adafactor" and (self.parallel.style == "shard" or self.parallel.tensor > 1):
            yield "optimizer.kind", "adafactor needs whole matrices; use parallel.style=replicate or experts, and parallel.tensor=1"
        if self.optimizer.kind == "adafactor" and self.model.mup_base_width is not None:
            yield "optimizer.kind", "adafactor; muP's rates are those of adamw: leave out model.mup_base_width"
        if self.model.is_sparse and self.compile:
            yield "compile", "true for a sparse model; how many tokens an expert gets is known only when it runs: leave it out"
        if self.model.is_sparse and self.parallel.tensor > 1:
            yield "parallel.tensor", f"{self.parallel.tensor} for a sparse model; use parallel.style=experts"
        if self.parallel.style == "experts" and not self.model.is_sparse:
            yield "parallel.style", "experts, and the model has none; use replicate or shard"
        if self.routing_rows < 0:
            yield "routing_rows", f"{self.routing_rows}; must not be negative"
        if not 0 <= self.dropout < 1:
            yield "dropout", f"{self.dropout}; must be from 0 to below 1"

    def learning_rates(self) -> Schedule:
        """The schedule in updates."""
        return Schedule(
            kind=self.schedule.kind,
            peak_lr=self.optimizer.lr,
            min_lr=self.optimizer.lr * self.schedule.min_lr,
            num_updates=self.num_steps,
            num_warmup=round(self.num_steps * self.schedule.warmup),
            num_decay=round(self.num_steps * self.schedule.decay),
        )


def raise_problems(problems: list[Problem], what: str) -> None:
    """Report all at once.

    Raises:
        ConfigError: there is a problem.
    """
    if problems:
        count = "one thing" if len(problems) == 1 else f"{len(problems)} things"
        raise ConfigError(f"{count} to change in {what}:\n" + "\n".join(f"  {path}: {text}" for path, text in problems))
