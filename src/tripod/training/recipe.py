"""A training run as one value: what is trained, on what, how, and what is kept.

Every piece is plain and frozen. The whole is checked when it is built, and one error lists everything that is wrong with it. A
recipe says nothing of the machine: device and number of processes are arguments of the run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from tripod.errors import ConfigError
from tripod.training.checkpoint_rule import CheckpointRule
from tripod.training.intervention import InterventionRecipe
from tripod.training.loss_scale import LossScaling
from tripod.training.schedule import Schedule, ScheduleKind

if TYPE_CHECKING:
    from tripod.models.gpt_neox import GPTNeoXConfig
    from tripod.models.llama import LlamaConfig

Problem = tuple[str, str]  # where, and what


@runtime_checkable
class Checked(Protocol):
    """A piece of a recipe that can say what is wrong with it."""

    def problems(self, path: str) -> Iterator[Problem]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRecipe:
    """The architecture. What is None follows from the rest."""

    architecture: Literal["gpt_neox", "llama"] = "gpt_neox"
    vocab_size: int  # rows of the embedding: at least the tokenizer's ids
    hidden_size: int
    num_layers: int
    num_heads: int
    max_positions: int = 2048
    intermediate_size: int | None = None  # 4 * hidden_size; for llama 8/3 of it, rounded up to a multiple of 64
    num_kv_heads: int | None = None  # of llama; num_heads
    hidden_act: Literal["gelu", "gelu_new", "relu", "silu"] = "gelu_new"  # of gpt_neox: GELU by erf, or by tanh as Pythia was trained
    rotary_fraction: float | None = None  # of a head; a quarter in gpt_neox, all in llama
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5
    is_parallel: bool = True  # of gpt_neox: attention and MLP side by side, not one after the other
    is_tied: bool = False
    initialization: Literal["small-wang", "normal-scaled"] = "small-wang"  # see `tripod.models.initialize`
    mup_base_width: int | None = None  # the hidden size for which optimizer.lr was found: muP carries it over (arXiv:2203.03466)

    def problems(self, path: str) -> Iterator[Problem]:
        for name in ("vocab_size", "hidden_size", "num_layers", "num_heads", "max_positions"):
            if getattr(self, name) < 1:
                yield f"{path}.{name}", f"{getattr(self, name)}; must be at least 1"
        if self.num_heads > 0 and self.hidden_size % self.num_heads:
            yield f"{path}.num_heads", f"{self.num_heads} does not divide hidden_size={self.hidden_size}"
        elif self.num_heads > 0 and (self.rotary_dim < 2 or self.rotary_dim % 2 or self.rotary_dim > self.hidden_size // self.num_heads):
            yield (
                f"{path}.rotary_fraction",
                f"{self._rotary_fraction} of a head of {self.hidden_size // self.num_heads} rotates {self.rotary_dim} numbers; "
                "must be even, at least 2, and within the head",
            )
        if self.intermediate_size is not None and self.intermediate_size < 1:
            yield f"{path}.intermediate_size", f"{self.intermediate_size}; must be at least 1"
        if self.architecture == "gpt_neox" and self.num_kv_heads not in (None, self.num_heads):
            yield f"{path}.num_kv_heads", f"{self.num_kv_heads}; gpt_neox has as many as num_heads={self.num_heads}"
        if self.num_kv_heads is not None and (self.num_kv_heads < 1 or self.num_heads % self.num_kv_heads):
            yield f"{path}.num_kv_heads", f"{self.num_kv_heads} does not divide num_heads={self.num_heads}"
        if self.architecture == "llama" and not self.is_parallel:
            yield f"{path}.is_parallel", "false; llama has its attention before its MLP in any case, so leave it out"
        if self.mup_base_width is not None and self.mup_base_width < 1:
            yield f"{path}.mup_base_width", f"{self.mup_base_width}; must be at least 1"
        if self.mup_base_width is not None and self.is_tied:
            yield f"{path}.mup_base_width", "given with is_tied: embedding and head need different scales"
        if self.norm_eps <= 0:
            yield f"{path}.norm_eps", f"{self.norm_eps}; must be positive"

    @property
    def mup_ratio(self) -> float:
        """How many times wider than the model for which the learning rate was found; 1 without muP."""
        return 1.0 if self.mup_base_width is None else self.hidden_size / self.mup_base_width

    @property
    def _rotary_fraction(self) -> float:
        default = 0.25 if self.architecture == "gpt_neox" else 1.0
        return default if self.rotary_fraction is None else self.rotary_fraction

    @property
    def rotary_dim(self) -> int:
        return int(self.hidden_size // self.num_heads * self._rotary_fraction)

    def config(self) -> GPTNeoXConfig | LlamaConfig:
        """The configuration of `tripod.models`."""
        return self.neox_config() if self.architecture == "gpt_neox" else self.llama_config()

    def neox_config(self) -> GPTNeoXConfig:
        from tripod.models.gpt_neox import GPTNeoXConfig
        from tripod.ops.rope import RopeConfig

        return GPTNeoXConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size or 4 * self.hidden_size,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            max_positions=self.max_positions,
            rope=RopeConfig(rotary_dim=self.rotary_dim, theta=self.rope_theta),
            norm_eps=self.norm_eps,
            hidden_act=self.hidden_act,
            is_parallel=self.is_parallel,
            is_tied=self.is_tied,
        )

    def llama_config(self) -> LlamaConfig:
        from tripod.models.llama import LlamaConfig
        from tripod.ops.rope import RopeConfig

        return LlamaConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size or -(-8 * self.hidden_size // (3 * 64)) * 64,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads or self.num_heads,
            head_dim=self.hidden_size // self.num_heads,
            max_positions=self.max_positions,
            rope=RopeConfig(rotary_dim=self.rotary_dim, theta=self.rope_theta),
            norm_eps=self.norm_eps,
            is_tied=self.is_tied,
        )


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
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101); no decay of biases and norms."""

    lr: float  # at the peak
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip: float = 1.0  # global L2 norm of the gradients; 0: not clipped

    def problems(self, path: str) -> Iterator[Problem]:
        if not self.lr > 0:
            yield f"{path}.lr", f"{self.lr}; must be positive"
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                yield f"{path}.{name}", f"{getattr(self, name)}; must be from 0 to below 1"
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

    style: Literal["replicate", "shard"] = "replicate"  # every process has all weights, or a part of each (FSDP, arXiv:2304.11277)
    tensor: int = 1  # processes that share each matrix (Megatron, arXiv:1909.08053); the rest share the rows

    def problems(self, path: str) -> Iterator[Problem]:
        if self.tensor < 1:
            yield f"{path}.tensor", f"{self.tensor}; must be at least 1"


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
    schedule: ScheduleRecipe = field(default_factory=ScheduleRecipe)
    checkpoints: CheckpointRule = field(default_factory=CheckpointRule)
    seeds: SeedsRecipe = field(default_factory=SeedsRecipe)
    validation: ValidationRecipe | None = None
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"  # of the matrix products; weights and optimizer are float32
    loss_scaling: LossScaling = field(default_factory=LossScaling)  # of fp16
    recompute: bool = False  # compute each block again for its gradients instead of keeping what it computed (arXiv:1604.06174)
    compile: bool = False  # the blocks by torch.compile
    parallel: ParallelRecipe = field(default_factory=ParallelRecipe)
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
        for name in ("model", "data", "batch", "optimizer", "schedule", "seeds", "validation", "parallel"):
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
