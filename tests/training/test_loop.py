"""A run from its recipe to its checkpoints: it learns, it resumes bit for bit, and it stops where it must."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import tripod
from tests.training.conftest import MakeRecipe
from tripod.engine.engine import Engine
from tripod.errors import ConfigError, TokenizerError, TrainingError
from tripod.models.load import load_language_model
from tripod.sampling import SamplingParams
from tripod.training import gradients, loop
from tripod.training.data.rows import write_rows
from tripod.training.loop import StepReport, train
from tripod.training.metrics import read_metrics
from tripod.training.recipe import Recipe
from tripod.training.run import Run


def state_files(run: Path, step: int) -> tuple[bytes, bytes]:
    """Weights and optimizer state of a checkpoint, all bits of them."""
    folder = run / f"step{step}"
    return (folder / "model.safetensors").read_bytes(), (folder / "optimizer.safetensors").read_bytes()


def elsewhere(recipe: Recipe, name: str) -> Recipe:
    return replace(recipe, run=str(Path(recipe.run).parent / name))


def test_the_loss_falls_and_the_rule_is_kept(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(("num_steps=60", "validation.every=30", "checkpoints.every=20"))
    reports: list[StepReport] = []
    saved: list[tuple[str, int]] = []
    result = train(recipe, on_step=reports.append, on_checkpoint=lambda folder, step: saved.append((folder.name, step)))
    run = Path(recipe.run)
    assert result.is_complete
    assert saved == [(f"step{step}", step) for step in (0, 1, 2, 4, 20, 40, 60)]
    assert result.run.steps == (0, 1, 2, 4, 20, 40, 60)
    assert [report.step for report in reports] == list(range(1, 61))
    assert reports[0].loss == pytest.approx(5.6, abs=0.4)  # ln 259 = 5.56
    assert reports[-1].loss < 2.5
    records = list(read_metrics(run / "metrics.jsonl"))
    assert [record["step"] for record in records] == list(range(61))
    assert [record["step"] for record in records if "valid_loss" in record] == [0, 30, 60]
    assert records[0]["valid_loss"] > records[30]["valid_loss"] > records[60]["valid_loss"]
    assert records[60]["num_tokens"] == 60 * 4 * 16


def test_a_step_trains_the_rows_of_the_order(make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = make_recipe(("num_steps=3", "batch.micro_rows=3"))
    seen: list[tuple[list[int], list[list[int]]]] = []
    original = loop.accumulate_gradients

    def watch(model, tokens, rows, **options):  # type: ignore[no-untyped-def]
        seen.append((list(rows), tokens.tolist()))
        return original(model, tokens, rows, **options)

    monkeypatch.setattr(loop, "accumulate_gradients", watch)
    run = train(recipe).run
    order = Run.open(run.folder).order()
    assert seen == [(list(order.rows_of_step(step)), order.batch_at(step).tolist()) for step in range(3)]


SPARSE = ("model.architecture=sparse_llama", "model.num_experts=4", "model.intermediate_size=32", "model.capacity_factor=1.25")


@pytest.mark.parametrize(
    "changes",
    [
        (),
        ("dropout=0.1", "batch.micro_rows=3"),
        ("precision=bf16",),
        ("precision=fp16",),
        (*SPARSE, "model.has_selection_bias=true", "model.gate=sigmoid", "batch.micro_rows=3", "recompute=true"),
        (*SPARSE, "optimizer.kind=adafactor", "schedule.kind=t5", "model.vocab_size=299", "ul2={to_step: 7}", "batch.seq_length=40"),
    ],
    ids=str,
)
def test_a_resumed_run_equals_an_unbroken_one_bit_for_bit(make_recipe: MakeRecipe, changes: tuple[str, ...]) -> None:
    recipe = make_recipe((*changes, "num_steps=9", "validation.every=4"))
    unbroken = elsewhere(recipe, "unbroken")
    train(unbroken)
    for stop_at in (3, 5):
        reports: list[StepReport] = []
        stopped = train(recipe, resume=True, on_step=reports.append, should_stop=lambda: bool(reports) and reports[-1].step == stop_at)  # noqa: B023
        assert (stopped.step, stopped.is_complete) == (stop_at, False)
    assert train(recipe, resume=True).is_complete
    for step in (0, 1, 2, 4, 5, 9):
        assert state_files(Path(recipe.run), step) == state_files(Path(unbroken.run), step), step

    def measured(run: str) -> list[dict[str, object]]:
        return [{key: value for key, value in record.items() if key != "seconds"} for record in read_metrics(Path(run) / "metrics.jsonl")]

    assert measured(recipe.run) == measured(unbroken.run)
    for file in (Path(unbroken.run) / "routing").glob("*"):  # of sparse models
        assert (Path(recipe.run) / "routing" / file.name).read_bytes() == file.read_bytes()
    assert (Path(unbroken.run) / "routing").is_dir() == recipe.model.is_sparse


def test_a_llama_is_trained_by_the_same_loop(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(("model.architecture=llama", "model.num_kv_heads=1", "model.is_tied=true", "num_steps=40"))
    result = train(recipe)
    assert result.last is not None
    assert result.last.loss < 3.0
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(result.run.checkpoint(40), dtype=torch.float32)
    tokens = torch.from_numpy(result.run.order().batch_at(0).astype("int64"))
    ours = load_language_model(result.run.checkpoint(40))
    expected = torch.nn.functional.cross_entropy(theirs(tokens[:, :-1]).logits.flatten(0, 1), tokens[:, 1:].flatten())
    assert gradients.mean_loss(ours, tokens, micro_rows=4, precision="fp32").item() == pytest.approx(expected.item(), rel=1e-5)


def test_rows_written_in_their_order_train_the_same_weights(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_recipe(("num_steps=3",))
    packed = train(recipe).run
    write_rows(packed.order().rows, 12, tmp_path / "rows", np.dtype("<u2"))
    data = replace(recipe.data, prefixes=(str(tmp_path / "rows"),), is_preshuffled=True)
    rows = train(elsewhere(replace(recipe, data=data), "rows-run")).run
    assert state_files(rows.folder, 3) == state_files(packed.folder, 3)
    with pytest.raises(ConfigError, match="has 12 rows of 16 targets; the recipe needs 16 of 16"):
        train(elsewhere(replace(recipe, data=data, num_steps=4), "too-long"))


def test_seeds_are_apart(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(("num_steps=1",))
    base = train(recipe).run
    other_order = train(elsewhere(replace(recipe, seeds=replace(recipe.seeds, order=7)), "order")).run
    other_weights = train(elsewhere(replace(recipe, seeds=replace(recipe.seeds, initialization=7)), "weights")).run
    assert state_files(base.folder, 0) == state_files(other_order.folder, 0)
    assert state_files(base.folder, 1) != state_files(other_order.folder, 1)
    assert base.manifest(1).order_fingerprint != other_order.manifest(1).order_fingerprint
    assert state_files(base.folder, 0) != state_files(other_weights.folder, 0)
    assert base.manifest(1).order_fingerprint == other_weights.manifest(1).order_fingerprint


def test_a_checkpoint_is_served_as_it_stands(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(("num_steps=8", "checkpoints.log_until=8"))
    train(recipe)

    async def generate() -> tuple[int, ...]:
        async with Engine.load(f"{recipe.run}@step8") as engine:
            reply = await engine.generate("1 and 1", SamplingParams(max_tokens=5, min_tokens=5))  # it may end a document earlier
            return reply.token_ids

    assert len(tripod.run(asyncio.wait_for(generate(), 60))) == 5


def test_a_second_beginning_in_one_folder_is_refused(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(("num_steps=1",))
    train(recipe)
    with pytest.raises(ConfigError, match="has checkpoints up to step 1; resume it"):
        train(recipe)


def test_another_recipe_cannot_go_on_with_the_run(make_recipe: MakeRecipe) -> None:
    train(make_recipe(("num_steps=2",)))
    with pytest.raises(ConfigError, match=r"optimizer\.lr: 0\.01 before, 0\.02 now"):
        train(make_recipe(("num_steps=2", "lr=0.02")), resume=True)


def test_what_does_not_touch_the_weights_may_change(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(("num_steps=6",))
    train(recipe, should_stop=lambda: len(Run.open(Path(recipe.run)).steps) > 2)
    result = train(make_recipe(("num_steps=6", "checkpoints.every=1", "validation.every=2", "batch.micro_rows=2")), resume=True)
    assert result.run.steps == (0, 1, 2, 3, 4, 5, 6)


def test_other_data_under_the_same_name_is_refused_by_the_fingerprint(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    from tripod.training.data.build import build_dataset

    recipe = make_recipe(("num_steps=2",))
    tokenizer = Path(recipe.data.tokenizer)
    train(recipe)
    (tmp_path / "other.txt").write_text("Other words, and enough of them. " * 20, encoding="utf-8")
    build_dataset([tmp_path / "other.txt"], tokenizer, tmp_path / "other", append_eod=True)
    moved = replace(recipe, data=replace(recipe.data, prefixes=(str(tmp_path / "other"),)))
    with pytest.raises(ConfigError, match="was trained on the data order"):
        train(moved, resume=True)


def test_a_loss_that_is_not_a_number_names_its_batch_and_saves_nothing(make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 21, the second of step 5, is given a loss that is not a number."""
    recipe = make_recipe(("num_steps=8", "checkpoints.every=1"))
    order = Run.begin(recipe).order()
    spans = order.rows.spans(21)
    poisoned = torch.from_numpy(order.batch_at(5)[1, 1:].astype("int64"))

    def poison(losses: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        is_poisoned = (targets.view(-1, 16) == poisoned).all(1)
        return losses + torch.where(is_poisoned, float("nan"), 0.0).repeat_interleave(16)

    def head_gradients(hidden, weight, targets, factor, **options):  # type: ignore[no-untyped-def]
        found = plain_gradients(hidden, weight, targets, factor, **options)
        return found._replace(losses=poison(found.losses, targets))

    def head_losses(hidden, weight, targets):  # type: ignore[no-untyped-def]
        return poison(plain_losses(hidden, weight, targets), targets)

    plain_gradients, plain_losses = gradients.head_gradients, gradients.head_losses
    monkeypatch.setattr(gradients, "head_gradients", head_gradients)
    monkeypatch.setattr(gradients, "head_losses", head_losses)
    with pytest.raises(TrainingError) as caught:
        train(recipe)
    message = str(caught.value)
    assert "the loss of step 5 is nan" in message
    assert "rows 20 to 23; 1 of its rows have no finite loss" in message
    assert f"row 21: document {spans[0].document} [{spans[0].start}, {spans[0].stop})" in message
    assert Run.open(Path(recipe.run)).steps == (0, 1, 2, 3, 4, 5)
    assert [record["step"] for record in read_metrics(Path(recipe.run) / "metrics.jsonl")] == [1, 2, 3, 4, 5]


def test_a_spike_is_reported_and_logged_also_by_a_run_that_goes_on(make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows of step 70 are given a loss of ten nats more; the losses it is compared with lie before the resumption."""
    recipe = make_recipe(("num_steps=72", "checkpoints.every=0"))
    rows = set(Run.begin(recipe).order().rows_of_step(70))
    original = loop.accumulate_gradients

    def raise_loss(model, tokens, rows_now, **options):  # type: ignore[no-untyped-def]
        loss = original(model, tokens, rows_now, **options)
        return loss + 10.0 if set(rows_now) == rows else loss

    monkeypatch.setattr(loop, "accumulate_gradients", raise_loss)
    reports: list[StepReport] = []
    train(recipe, on_step=reports.append, should_stop=lambda: len(reports) == 68)
    train(recipe, resume=True, on_step=reports.append)
    assert [report.step for report in reports if report.is_spike] == [71]  # steps done, the one that read batch 70 included
    assert [record["step"] for record in read_metrics(Path(recipe.run) / "metrics.jsonl") if record.get("is_spike")] == [71]


def test_an_overflow_in_float16_skips_the_step_and_not_the_rows(make_recipe: MakeRecipe) -> None:
    """A scale of 2^40 overflows until it is small enough; the learning rate waits for the first update."""
    recipe = make_recipe(("num_steps=6", "precision=fp16", "loss_scaling.initial=1.0e+40", "loss_scaling.hysteresis=1", "warmup=0.5"))
    reports: list[StepReport] = []
    result = train(recipe, on_step=reports.append)
    assert [report.is_skipped for report in reports] == [True] * 6
    assert state_files(Path(recipe.run), 6)[0] == state_files(Path(recipe.run), 0)[0]
    assert [report.loss_scale for report in reports] == [1e40 / 2**step for step in range(6)]
    assert {report.lr for report in reports} == {1e-2 / 3}
    position = result.run.manifest(6).position
    assert (position.step, position.num_updates, position.num_tokens) == (6, 0, 6 * 64)


def test_a_tokenizer_with_more_ids_than_the_model_is_refused(make_recipe: MakeRecipe) -> None:
    with pytest.raises(TokenizerError, match="259 token ids, the model's embedding only 256 rows"):
        train(make_recipe(model={"vocab_size": 256}))
