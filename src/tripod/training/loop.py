"""The training loop: (order, step) -> batch -> loss -> gradients -> update -> checkpoint rule -> run on disk."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tripod.errors import TrainingError, TripodError
from tripod.models.architectures import Decoder, build
from tripod.models.moe import Router
from tripod.text.load_tokenizer import load_tokenizer
from tripod.text.tokenizer import check_fits
from tripod.training.adafactor import open_optimizer
from tripod.training.blocks import compile_blocks, recompute_blocks
from tripod.training.checkpoint import Position, checkpoint_folder, load_training_checkpoint, save_training_checkpoint
from tripod.training.data.order import DataOrder, check_fingerprint
from tripod.training.data.progress import Progress, no_progress
from tripod.training.data.ul2 import trained_targets
from tripod.training.dropout import RowDropout
from tripod.training.fast_layers import with_fast_layers
from tripod.training.flops import flops_per_token
from tripod.training.gradients import accumulate_gradients, mean_loss, row_losses
from tripod.training.initial_model import initial_model
from tripod.training.loss_terms import LossTerms
from tripod.training.metric_sinks import MetricSink, OpenSink
from tripod.training.metrics import MetricsLog, SpikeDetector, read_metrics
from tripod.training.observe_routing import observe_rows
from tripod.training.packing import Packing, pack
from tripod.training.parallel import ALONE, Processes, joined_processes, parallelize, whole
from tripod.training.recipe import Recipe
from tripod.training.recipe_file import to_mapping
from tripod.training.routing_record import write_routing
from tripod.training.run import Run, sole_trainer


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """What a step measured. Losses are means over targets, in nats."""

    step: int  # steps done, this one included
    loss: float
    lr: float
    grad_norm: float | None  # before it was clipped; None where the gradients overflowed
    num_tokens: int  # targets seen since the beginning
    seconds: float  # of this step
    is_skipped: bool = False  # float16 gradients overflowed: the weights did not change
    loss_scale: float | None = None  # of float16
    is_spike: bool = False  # the loss is far above those before it
    terms: Mapping[str, float] = field(default_factory=dict)  # of the loss beside cross-entropy; see `LossTerms.measured`
    valid_loss: float | None = None
    num_step_tokens: int  # that the model read in this step; targets all of them but under UL2
    flops: int  # of this step; see `flops_per_token`

    @property
    def tokens_per_s(self) -> float:
        return self.num_step_tokens / self.seconds

    def record(self) -> dict[str, object]:
        """The line of `metrics.jsonl`: what this step measured; what is absent or false is left out."""
        fields = {key: value for key, value in asdict(self).items() if value is not None and value is not False}
        del fields["num_step_tokens"], fields["flops"], fields["terms"]
        return {**fields, **self.terms}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    run: Run
    step: int
    is_complete: bool  # False: stopped before the end, and saved
    last: StepReport | None  # None if there was nothing left to do


def ignore_step(report: StepReport) -> None:
    """For callers that do not watch."""


def ignore_checkpoint(folder: Path, step: int) -> None:
    """For callers that do nothing with a checkpoint while the run goes on."""


def never_stop() -> bool:
    """For callers that let a run go to its end."""
    return False


def train(
    recipe: Recipe,
    *,
    resume: bool = False,
    device: torch.device | str = "cpu",
    on_step: Callable[[StepReport], None] = ignore_step,
    on_checkpoint: Callable[[Path, int], None] = ignore_checkpoint,
    should_stop: Callable[[], bool] = never_stop,
    sinks: Sequence[OpenSink] = (),
    progress: Progress = no_progress,
) -> TrainResult:
    """Run a recipe to its end, keeping the checkpoints that its rule asks for.

    The weights after any step are a function of the recipe, the data and the machine (its processor, number of threads and torch),
    however often the run was broken off and resumed.

    Args:
        recipe: of the run.
        resume: go on from the newest checkpoint of the run's folder; begin if there is none.
        device: where to compute.
        on_step: told what each step measured.
        on_checkpoint: given the folder of each checkpoint that was saved, and its step; for sampling and evaluation, which are not the
            trainer's business.
        should_stop: asked between steps; True saves a checkpoint and ends.
        sinks: where metrics go beside the run's `metrics.jsonl`; opened by the first process.
        progress: of opening the order.

    Raises:
        ConfigError: the run exists, does not fit the recipe, or is being trained; see `Run.begin`, `Run.resume`, `sole_trainer`.
        CheckpointError: the newest checkpoint is not what its manifest says.
        MissingExtraError: a sink needs a package that is not installed.
        TrainingError: a loss or a gradient is not a number; nothing of that step was saved.
    """
    with joined_processes(recipe.parallel, torch.device(device)) as processes, ExitStack() as lock:
        run = _open_run(recipe, resume, processes, lock)
        trainer = Trainer(run, device=torch.device(device), processes=processes, sinks=sinks, progress=progress)
        last: StepReport | None = None

        def save() -> None:
            folder, step = trainer.save(), trainer.position.step
            if processes.is_first:
                on_checkpoint(folder, step)

        try:
            if not run.steps:
                trainer.validate_beginning()
                save()
            while trainer.position.step < recipe.num_steps and not trainer.should_stop(should_stop()):
                last = trainer.step()
                if processes.is_first:
                    on_step(last)
                if recipe.checkpoints.is_due(last.step, recipe.num_steps):
                    save()
            trainer.save()  # of a run that was stopped; otherwise it is there
        finally:
            trainer.close()
        step = trainer.position.step
        return TrainResult(run=run, step=step, is_complete=step == recipe.num_steps, last=last)


def _open_run(recipe: Recipe, resume: bool, processes: Processes, lock: ExitStack) -> Run:
    """By the first process, which locks it; the others go on when its files are there, or raise what it raised."""
    run: Run | TripodError | None = None
    if processes.is_first:
        try:
            lock.enter_context(sole_trainer(Path(recipe.run)))
            run = Run.resume(recipe) if resume else Run.begin(recipe)
        except TripodError as error:
            run = error
    run = processes.from_first(run)
    if isinstance(run, TripodError):
        raise run
    assert run is not None
    return run


class Trainer:
    """Model, optimizer and position of a run, one step after the other."""

    def __init__(
        self,
        run: Run,
        *,
        device: torch.device,
        processes: Processes = ALONE,
        sinks: Sequence[OpenSink] = (),
        progress: Progress = no_progress,
    ) -> None:
        """Open a run where its newest checkpoint stands, or at its beginning."""
        recipe = run.recipe
        self._processes = processes
        self._part = processes.part(recipe.batch.rows)
        self.run = run
        self._recipe = recipe
        self._device = device
        self._tokenizer = Path(recipe.data.tokenizer)
        check_fits(load_tokenizer(self._tokenizer), recipe.model.vocab_size)
        if not processes.is_first:
            processes.from_first(None)  # which makes the index maps that the others read
        self._order = run.order(progress=progress)
        self._valid = None if recipe.validation is None else run.order("valid", progress=progress)
        if processes.is_first:
            processes.from_first(None)
        self._flops = flops_per_token(recipe.model.config(), recipe.batch.seq_length)
        self.model = initial_model(recipe, is_begun=bool(run.steps)).to(device)
        self._is_sparse = any(isinstance(module, Router) for module in self.model.modules())
        if device.type == "cpu" and recipe.parallel.tensor == 1 and not recipe.compile:
            with_fast_layers(self.model)
        self.optimizer = open_optimizer(self.model, recipe.optimizer, mup_ratio=recipe.model.mup_ratio)
        self._dropout = RowDropout(self.model, recipe.dropout, recipe.seeds.dropout)
        self._learning_rates = recipe.learning_rates()
        self._micro_rows = recipe.batch.micro_rows or recipe.batch.rows
        scaling = recipe.loss_scaling.begin() if recipe.precision == "fp16" else None
        self.position = Position(step=0, num_updates=0, num_tokens=0, loss_scale=scaling)
        if run.steps:
            manifest = load_training_checkpoint(run.checkpoint(run.steps[-1]), self.model, self.optimizer)
            check_fingerprint(manifest.order_fingerprint, self._order.fingerprint)
            self.position = manifest.position
        if not processes.is_alone:
            state = self.optimizer.tensors()
            parallelize(self.model, processes)
            self.optimizer = open_optimizer(self.model, recipe.optimizer, processes, mup_ratio=recipe.model.mup_ratio)
            self.optimizer.load(state, self.position.num_updates)
        if recipe.compile:
            compile_blocks(self.model, device)
        if recipe.recompute:
            recompute_blocks(self.model)
        first_step = self.position.step if run.steps else -1
        self._metrics = MetricsLog(run.metrics_path, first_step=first_step, is_kept=processes.is_first)
        self._sinks: list[MetricSink] = [self._metrics]
        try:
            self._sinks += [open_sink(run, first_step) for open_sink in sinks if processes.is_first]
        except TripodError:
            self.close()
            raise
        self._spikes = SpikeDetector()
        for record in read_metrics(run.metrics_path):
            if "loss" in record:
                self._spikes.is_spike(record["loss"])

    def step(self) -> StepReport:
        """Train on the rows of the next step.

        Raises:
            TrainingError: the loss or a gradient is not a number.
        """
        began_s = time.monotonic()
        recipe, position, processes = self._recipe, self.position, self._processes
        rows = self._order.rows_of_step(position.step)
        tokens = self._batch(self._order, position.step, self._part)
        num_read = len(rows) * recipe.batch.seq_length
        is_trained = trained_targets(self._order.rows, rows)
        num_targets = num_read if is_trained is None else int(is_trained.sum())
        terms = LossTerms(recipe.loss, num_tokens=num_read, processes=processes)
        scale = position.loss_scale
        share = accumulate_gradients(
            self.model,
            tokens,
            rows[self._part],
            micro_rows=self._micro_rows,
            num_targets=num_targets,
            packing=self._packing(self._order, rows[self._part]),
            precision=recipe.precision,
            dropout=self._dropout,
            loss_scale=(1.0 if scale is None else scale.scale) * processes.gradient_factor,
            is_trained=None if is_trained is None else torch.from_numpy(is_trained[self._part]).to(self._device),
            terms=terms,
        )
        loss = processes.sum_over_data(share).item()
        processes.reduce_gradients(self.model)
        grad_norm = self.optimizer.clip_gradients(loss_scale=1.0 if scale is None else scale.scale)
        lr = self._learning_rates.learning_rate(position.num_updates)
        is_sound = math.isfinite(loss) and math.isfinite(grad_norm)
        if is_sound:
            self.optimizer.update(lr)
            terms.move_biases(self.model)
        else:
            self.optimizer.forget_gradients()
            if scale is None or not math.isfinite(loss) or scale.scale <= recipe.loss_scaling.minimum:
                raise TrainingError(self._divergence(rows, loss, grad_norm))
        self.position = Position(
            step=position.step + 1,
            num_updates=position.num_updates + is_sound,
            num_tokens=position.num_tokens + num_targets,
            loss_scale=None if scale is None else recipe.loss_scaling.after(scale, has_overflow=not is_sound),
        )
        report = StepReport(
            step=self.position.step,
            loss=loss,
            lr=lr,
            grad_norm=grad_norm if is_sound else None,
            num_tokens=self.position.num_tokens,
            seconds=time.monotonic() - began_s,
            is_skipped=not is_sound,
            loss_scale=None if scale is None else scale.scale,
            is_spike=self._spikes.is_spike(loss),
            terms=terms.measured(),
            valid_loss=self._validation_loss() if self._is_validation_due() else None,
            num_step_tokens=num_read,
            flops=self._flops * num_read,
        )
        self._write(report.record())
        return report

    def validate_beginning(self) -> None:
        """Note the validation loss of the initial weights."""
        if self._valid is not None:
            self._write({"step": 0, "valid_loss": self._validation_loss()})

    def save(self) -> Path:
        """Write the checkpoint of this step, the metrics up to it and the routing at it first."""
        self._metrics.sync()
        folder = checkpoint_folder(self.run.folder, self.position.step)
        if self.position.step not in self.run.steps:
            self._record_routing()
        weights = {name: whole(tensor) for name, tensor in self.model.state_dict().items()}
        state = {name: whole(tensor) for name, tensor in self.optimizer.tensors().items()}
        if self._processes.is_first:
            save_training_checkpoint(
                self.run.folder,
                self.model if self._processes.is_alone else _model_of(weights, self._recipe),
                state,
                self.position,
                tokenizer=self._tokenizer,
                recipe=to_mapping(self._recipe),
                order_fingerprint=self._order.fingerprint,
            )
        self._processes.from_first(None)
        return folder

    def _record_routing(self) -> None:
        """Of the first rows of the validation data or, where there are none, of the run."""
        if not self._is_sparse or not self._recipe.routing_rows:
            return
        order = self._valid or self._order
        numbers = range(min(self._recipe.routing_rows, order.rows.num_rows))
        packing, precision = self._packing(order, numbers), self._recipe.precision
        record = observe_rows(
            self.model, order.rows, numbers, self.position.step, packing, micro_rows=self._micro_rows, precision=precision
        )
        if self._processes.is_first:
            write_routing(self.run.folder, record)

    def should_stop(self, is_asked: bool) -> bool:
        """Whether any of the processes was asked to stop: all stop at the same step."""
        return bool(self._processes.sum_over_all(int(is_asked)))

    def close(self) -> None:
        for sink in self._sinks:
            sink.close()

    def _write(self, record: Mapping[str, object]) -> None:
        for sink in self._sinks:
            sink.write(record)

    def _batch(self, order: DataOrder, step: int, part: slice = slice(None)) -> Tensor:
        """[rows, seq_length + 1] int64 on the device."""
        return torch.from_numpy(order.batch_at(step, part).astype(np.int64)).to(self._device)

    def _packing(self, order: DataOrder, rows: Sequence[int]) -> Packing:
        return pack(order.rows, rows, self._recipe.batch, self._device)

    def _is_validation_due(self) -> bool:
        validation, step = self._recipe.validation, self.position.step
        return validation is not None and (step % validation.every == 0 or step == self._recipe.num_steps)

    def _validation_loss(self) -> float:
        assert self._valid is not None
        assert self._recipe.validation is not None
        self.model.eval()  # nothing is dropped for want of capacity
        losses = [
            mean_loss(
                self.model,
                self._batch(self._valid, number, self._part),
                micro_rows=self._micro_rows,
                precision=self._recipe.precision,
                packing=self._packing(self._valid, self._valid.rows_of_step(number)[self._part]),
            )
            for number in range(self._recipe.validation.num_batches)
        ]
        self.model.train()
        return self._processes.sum_over_data(torch.stack(losses).mean()).item() / self._processes.num_data

    def _divergence(self, rows: range, loss: float, grad_norm: float) -> str:
        """Which rows did it, and which documents are in them. Every process looks at all of them."""
        tokens = self._batch(self._order, self.position.step)
        packing = self._packing(self._order, rows)
        alone = row_losses(self.model, tokens, micro_rows=self._micro_rows, precision=self._recipe.precision, packing=packing)
        bad = [row for row, is_sound in zip(rows, alone.isfinite().tolist(), strict=True) if not is_sound]
        named = []
        for row in (bad or list(rows))[:4]:
            spans = self._order.rows.spans(row)
            documents = ", ".join(f"document {span.document} [{span.start}, {span.stop})" for span in spans[:6])
            named.append(f"row {row}: {documents}" + (f" and {len(spans) - 6} more" if len(spans) > 6 else ""))
        which = f"{len(bad)} of its rows have no finite loss by themselves" if bad else "each of its rows has a finite loss by itself"
        step = self.position.step
        return (
            f"the loss of step {step} is {loss}, the norm of its gradients {grad_norm} (rows {rows.start} to {rows.stop - 1}; {which}); "
            f"{'; '.join(named)}. See `tripod data batch {self.run.folder} {step}`; lower the learning rate, or leave these rows out. "
            "Nothing of this step was saved"
        )


def _model_of(weights: dict[str, Tensor], recipe: Recipe) -> Decoder:
    """A plain model around tensors that are whole."""
    with torch.device("meta"):
        model = build(recipe.model.config())
    model.load_state_dict(weights, assign=True)
    return model
