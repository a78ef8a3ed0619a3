"""The training loop: (order, step) -> batch -> loss -> gradients -> update -> checkpoint rule -> run on disk."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tripod.errors import TrainingError
from tripod.models.initialize import initial_language_model
from tripod.text.load_tokenizer import load_tokenizer
from tripod.text.tokenizer import check_fits
from tripod.training.checkpoint import Position, load_training_checkpoint, save_training_checkpoint
from tripod.training.data.order import DataOrder, check_fingerprint
from tripod.training.data.progress import Progress, no_progress
from tripod.training.dropout import RowDropout
from tripod.training.fast_layers import with_fast_layers
from tripod.training.flops import flops_per_token
from tripod.training.gradients import accumulate_gradients, mean_loss, row_losses
from tripod.training.metrics import MetricsLog, SpikeDetector, read_metrics
from tripod.training.optimizer import AdamW
from tripod.training.recipe import Recipe
from tripod.training.recipe_file import to_mapping
from tripod.training.run import Run


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
    valid_loss: float | None = None
    num_step_tokens: int  # targets of this step
    flops: int  # of this step; see `flops_per_token`

    @property
    def tokens_per_s(self) -> float:
        return self.num_step_tokens / self.seconds

    def record(self) -> dict[str, object]:
        """The line of `metrics.jsonl`: what this step measured; what is absent or false is left out."""
        fields = {key: value for key, value in asdict(self).items() if value is not None and value is not False}
        del fields["num_step_tokens"], fields["flops"]
        return fields


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
        progress: of opening the order.

    Raises:
        ConfigError: the run exists, or does not fit the recipe; see `Run.begin`, `Run.resume`.
        CheckpointError: the newest checkpoint is not what its manifest says.
        TrainingError: a loss or a gradient is not a number; nothing of that step was saved.
    """
    run = Run.resume(recipe) if resume else Run.begin(recipe)
    trainer = Trainer(run, device=torch.device(device), progress=progress)
    last: StepReport | None = None
    try:
        if not run.steps:
            trainer.validate_beginning()
            on_checkpoint(trainer.save(), 0)
        while trainer.position.step < recipe.num_steps and not should_stop():
            last = trainer.step()
            on_step(last)
            if recipe.checkpoints.is_due(last.step, recipe.num_steps):
                on_checkpoint(trainer.save(), last.step)
        trainer.save()  # of a run that was stopped; otherwise it is there
    finally:
        trainer.close()
    step = trainer.position.step
    return TrainResult(run=run, step=step, is_complete=step == recipe.num_steps, last=last)


class Trainer:
    """Model, optimizer and position of a run, one step after the other."""

    def __init__(self, run: Run, *, device: torch.device, progress: Progress = no_progress) -> None:
        """Open a run where its newest checkpoint stands, or at its beginning."""
        recipe = run.recipe
        self.run = run
        self._recipe = recipe
        self._device = device
        self._tokenizer = Path(recipe.data.tokenizer)
        check_fits(load_tokenizer(self._tokenizer), recipe.model.vocab_size)
        self._order = run.order(progress=progress)
        self._valid = None if recipe.validation is None else run.order("valid", progress=progress)
        config = recipe.model.config()
        self._flops = flops_per_token(config, recipe.batch.seq_length)
        self.model = initial_language_model(config, recipe.seeds.initialization, recipe.model.initialization).to(device)
        if device.type == "cpu":
            with_fast_layers(self.model)
        self.optimizer = AdamW(self.model, recipe.optimizer)
        self._dropout = RowDropout(self.model, recipe.dropout, recipe.seeds.dropout)
        self._learning_rates = recipe.learning_rates()
        self._micro_rows = recipe.batch.micro_rows or recipe.batch.rows
        scaling = recipe.loss_scaling.begin() if recipe.precision == "fp16" else None
        self.position = Position(step=0, num_updates=0, num_tokens=0, loss_scale=scaling)
        if run.steps:
            manifest = load_training_checkpoint(run.checkpoint(run.steps[-1]), self.model, self.optimizer)
            check_fingerprint(manifest.order_fingerprint, self._order.fingerprint)
            self.position = manifest.position
        self._metrics = MetricsLog(run.metrics_path, first_step=self.position.step if run.steps else -1)
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
        recipe, position = self._recipe, self.position
        rows = self._order.rows_of_step(position.step)
        tokens = self._batch(self._order, position.step)
        scale = position.loss_scale
        loss = accumulate_gradients(
            self.model,
            tokens,
            rows,
            micro_rows=self._micro_rows,
            precision=recipe.precision,
            dropout=self._dropout,
            loss_scale=1.0 if scale is None else scale.scale,
        ).item()
        grad_norm = self.optimizer.clip_gradients(loss_scale=1.0 if scale is None else scale.scale)
        lr = self._learning_rates.learning_rate(position.num_updates)
        is_sound = math.isfinite(loss) and math.isfinite(grad_norm)
        if is_sound:
            self.optimizer.update(lr)
        else:
            self.optimizer.forget_gradients()
            if scale is None or not math.isfinite(loss) or scale.scale <= recipe.loss_scaling.minimum:
                raise TrainingError(self._divergence(tokens, rows, loss, grad_norm))
        num_targets = tokens[:, 1:].numel()
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
            valid_loss=self._validation_loss() if self._is_validation_due() else None,
            num_step_tokens=num_targets,
            flops=self._flops * num_targets,
        )
        self._metrics.write(report.record())
        return report

    def validate_beginning(self) -> None:
        """Note the validation loss of the initial weights."""
        if self._valid is not None:
            self._metrics.write({"step": 0, "valid_loss": self._validation_loss()})

    def save(self) -> Path:
        """Write the checkpoint of this step, the metrics up to it first."""
        self._metrics.sync()
        return save_training_checkpoint(
            self.run.folder,
            self.model,
            self.optimizer,
            self.position,
            tokenizer=self._tokenizer,
            recipe=to_mapping(self._recipe),
            order_fingerprint=self._order.fingerprint,
        )

    def close(self) -> None:
        self._metrics.close()

    def _batch(self, order: DataOrder, step: int) -> Tensor:
        """[rows, seq_length + 1] int64 on the device."""
        return torch.from_numpy(order.batch_at(step).astype(np.int64)).to(self._device)

    def _is_validation_due(self) -> bool:
        validation, step = self._recipe.validation, self.position.step
        return validation is not None and (step % validation.every == 0 or step == self._recipe.num_steps)

    def _validation_loss(self) -> float:
        assert self._valid is not None
        assert self._recipe.validation is not None
        losses = [
            mean_loss(self.model, self._batch(self._valid, number), micro_rows=self._micro_rows, precision=self._recipe.precision)
            for number in range(self._recipe.validation.num_batches)
        ]
        return torch.stack(losses).mean().item()

    def _divergence(self, tokens: Tensor, rows: range, loss: float, grad_norm: float) -> str:
        """Which rows did it, and which documents are in them."""
        alone = row_losses(self.model, tokens, micro_rows=self._micro_rows, precision=self._recipe.precision)
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
