"""Sparse models in the suite's loop: they learn, their routing is recorded from step 0 on, and several processes train what one trains."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.training.conftest import MakeRecipe
from tests.training.test_loop import state_files
from tests.training.test_parallel import LOSS_TOLERANCE, assert_same_state, losses, train_by_two
from tripod.cli.processes import run_as_processes
from tripod.errors import ConfigError
from tripod.models.load import load_language_model
from tripod.models.moe import Router
from tripod.ops.attention import causal_attention
from tripod.training.audit import audit
from tripod.training.gradients import target_losses
from tripod.training.loop import StepReport, train
from tripod.training.metrics import read_metrics
from tripod.training.recipe import ParallelRecipe
from tripod.training.recipe_file import to_yaml
from tripod.training.routing_record import RoutingRecord, read_routing, routing_path, routing_steps

MIXTRAL = ("model.architecture=mixtral", "model.num_experts=4", "model.intermediate_size=32")


def test_a_mixtral_learns_and_transformers_agrees(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe((*MIXTRAL, "num_steps=40", "validation.every=40", "routing_rows=0"))
    result = train(recipe)
    assert result.last is not None
    assert result.last.loss < 3.0
    assert 1.0 <= result.last.terms["max_load"] < 4.0
    assert routing_steps(result.run.folder) == ()  # as asked for
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(result.run.checkpoint(40), dtype=torch.float32)
    rows = torch.from_numpy(result.run.order("valid").batch_at(0).astype(np.int64))
    with torch.no_grad():
        logits = theirs(rows[:, :-1]).logits
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
    assert result.last.valid_loss == pytest.approx(expected.item(), abs=1e-4)


def router_logits(checkpoint: Path, rows: np.ndarray) -> list[torch.Tensor]:
    """Of each layer, from what enters its router."""
    model = load_language_model(checkpoint)
    found: list[torch.Tensor] = []
    for module in model.modules():
        if isinstance(module, Router):
            module.register_forward_hook(lambda module, given, _: found.append(given[0] @ module.weight.T))
    model.hidden(torch.from_numpy(rows.astype(np.int64)), torch.arange(rows.shape[1]).expand(rows.shape), causal_attention)
    return found


def test_the_record_is_what_the_routers_of_the_checkpoints_choose(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe((*MIXTRAL, "num_steps=5", "validation.every=5", "routing_rows=3", "batch.micro_rows=2"))
    run = train(recipe).run
    assert routing_steps(run.folder) == run.steps == (0, 1, 2, 4, 5)
    assert audit(run.folder).is_sound
    order = run.order("valid")
    rows = np.stack([order.rows.row(row) for row in range(3)])
    for step in (0, 5):
        record = read_routing(routing_path(run.folder, step))
        assert (record.step, record.layers, record.num_experts, record.top_k, record.num_tokens) == (step, (0, 1), 4, 2, 48)
        assert np.array_equal(record.token_ids, rows[:, :-1].ravel())
        assert np.array_equal(record.positions, np.tile(np.arange(16), 3))
        assert np.array_equal(record.rows, np.repeat(np.arange(3), 16))
        for layer, logits in enumerate(router_logits(run.checkpoint(step), rows[:, :-1])):
            gates, experts = logits.softmax(-1).sort(descending=True, stable=True)
            assert np.array_equal(record.experts[layer], experts[:, :2])
            shares = gates[:, :2] / gates[:, :2].sum(1, keepdim=True)
            assert record.weights[layer] == pytest.approx(shares.numpy(), abs=1e-3)  # float16 keeps 11 bits
    for row in range(3):
        for span in order.rows.spans(row):
            columns = slice(row * 16 + span.column, min((row + 1) * 16, row * 16 + span.column + span.num_tokens))
            assert (record.documents[columns] == span.document).all()


def test_a_recipe_says_the_scale_the_precision_and_the_least_room_of_its_routers(make_recipe: MakeRecipe) -> None:
    def trained(name: str, *changes: str) -> tuple[RoutingRecord, StepReport]:
        """One step in bfloat16; the routing at its beginning."""
        recipe = make_recipe((*MIXTRAL, "model.architecture=sparse_llama", "num_steps=1", "precision=bf16", *changes))
        result = train(replace(recipe, run=f"{recipe.run}-{name}"))
        assert result.last is not None
        return read_routing(routing_path(result.run.folder, 0)), result.last

    plain, _ = trained("plain", "model.is_normalized=true")
    scaled, _ = trained("scaled", "model.is_normalized=true", "model.router_scale=1.5")
    rounded, _ = trained("rounded", "model.is_normalized=true", "model.router_precision=model")
    assert plain.weights.astype(np.float32).sum(-1) == pytest.approx(1.0, abs=2e-3)  # float16 keeps 11 bits
    assert scaled.weights.astype(np.float32).sum(-1) == pytest.approx(1.5, abs=2e-3)
    assert not np.array_equal(rounded.weights, plain.weights)
    room = {minimum: trained(f"room-{minimum}", "model.capacity_factor=0.01", f"model.capacity_minimum={minimum}") for minimum in (2, 64)}
    assert room[2][1].terms["dropped"] >= 1 - 4 * 2 / 128  # two places at each of four experts for 128 choices
    assert room[64][1].terms["dropped"] == 0.0  # a place for each of the 64 tokens
    for change in ("router_scale=2.0", "capacity_minimum=0"):
        with pytest.raises(ConfigError, match=f"model.{change.partition('=')[0]}"):
            make_recipe((*MIXTRAL, f"model.{change}"))


def test_only_the_targets_of_ul2_are_trained_and_counted(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(
        ("num_steps=2", "loss.output_z=1.0e-4", "batch.micro_rows=3"),
        ul2={"to_step": 1},
        model={"vocab_size": 299},
        batch={"seq_length": 40},
    )
    reports: list[StepReport] = []
    run = train(recipe, on_step=reports.append).run
    order = run.order()
    losses = target_losses(load_language_model(run.checkpoint(0)), torch.from_numpy(order.batch_at(0).astype(np.int64)), "fp32")
    is_trained = torch.from_numpy(np.stack([order.rows.is_trained(row) for row in range(4)]))  # type: ignore[attr-defined]
    assert 0 < is_trained.sum() < 120
    assert reports[0].loss == pytest.approx(losses[is_trained].mean().item(), abs=1e-5)
    assert [report.num_tokens for report in reports] == [int(is_trained.sum()), int(is_trained.sum()) + 160]
    assert reports[0].terms["output_z_loss"] > 0


def test_a_run_begins_as_the_dense_model_that_it_is_upcycled_from(make_recipe: MakeRecipe) -> None:
    dense = make_recipe(("model.architecture=llama", "model.intermediate_size=32", "num_steps=4", "validation.every=4"))
    dense = replace(dense, run=dense.run + "-dense")
    last = train(dense).last
    assert last is not None
    upcycled = make_recipe((*MIXTRAL, "num_steps=2", "validation.every=2", f"model.upcycled_from={dense.run}@step4"))
    train(upcycled)
    assert audit(Path(upcycled.run)).is_sound
    first = next(iter(read_metrics(Path(upcycled.run) / "metrics.jsonl")))
    assert first["valid_loss"] == pytest.approx(last.valid_loss, abs=1e-5)
    with pytest.raises(ConfigError, match="num_layers=3, and 2 in the dense model"):
        train(replace(upcycled, run=upcycled.run + "-other", model=replace(upcycled.model, num_layers=3)))


def test_two_processes_and_four_that_share_experts_train_what_one_trains(make_recipe: MakeRecipe) -> None:
    """Two go on from what one has written, four from what two have; tokens travel to their experts and back."""
    changes = ("parallel.style=experts", "num_steps=8", "validation.every=4", "checkpoints.every=0", "checkpoints.also=[5]")
    recipe = make_recipe((*MIXTRAL, *changes))
    alone = replace(recipe, run=recipe.run + "-alone", parallel=ParallelRecipe())
    train(alone)
    done: list[int] = []
    train(replace(recipe, parallel=ParallelRecipe()), on_step=lambda report: done.append(report.step), should_stop=lambda: len(done) == 3)
    path = Path(recipe.run).with_suffix(".yaml")
    path.write_text(to_yaml(recipe), encoding="utf-8")
    for num_processes in (2, 4):
        assert run_as_processes(["train", str(path), "--threads", "1", "--resume"], num_processes) == 0
        assert losses(recipe.run) == pytest.approx(losses(alone.run), abs=LOSS_TOLERANCE)
        assert_same_state(recipe.run, alone.run, 8)
        for step in (0, 4, 5, 8):  # a choice between gates that are equal but for rounding may fall otherwise
            ours, theirs = (read_routing(routing_path(Path(run), step)) for run in (recipe.run, alone.run))
            assert (ours.experts == theirs.experts).mean() > 0.99
        shutil.rmtree(Path(recipe.run) / "step8")


def test_two_that_share_experts_resume_bit_for_bit_and_measure_tensors_and_loads_over_both(make_recipe: MakeRecipe) -> None:
    """Adafactor's rates are relative to the size of a whole tensor, and biases move by the load of both; a row has a capacity."""
    router = ("model.gate=sigmoid", "model.has_selection_bias=true", "model.capacity_factor=1.25", "model.capacity_tokens=16")
    loss = ("loss.balance=0.01", "loss.bias_rate=0.02")
    changes = ("optimizer.kind=adafactor", "num_steps=8", "validation.every=4", "checkpoints.every=0", "checkpoints.also=[5]")
    recipe = make_recipe((*MIXTRAL, "model.architecture=sparse_llama", *router, *loss, *changes, "parallel.style=experts"))
    alone = replace(recipe, run=recipe.run + "-alone", parallel=ParallelRecipe())
    train(alone)
    train_by_two(recipe)
    assert losses(recipe.run) == pytest.approx(losses(alone.run), abs=LOSS_TOLERANCE)
    assert_same_state(recipe.run, alone.run, 8)
    for mine, expected in zip(*(read_metrics(Path(run) / "metrics.jsonl") for run in (recipe.run, alone.run)), strict=True):
        for name in ("dropped", "max_load", "balance_loss", "router_z_loss"):
            assert mine.get(name) == pytest.approx(expected.get(name), abs=0.05)  # some choices of the 128 of a layer may fall otherwise
    last, record = Path(recipe.run) / "step8", routing_path(Path(recipe.run), 8)
    unbroken, routed = state_files(Path(recipe.run), 8), record.read_bytes()
    shutil.rmtree(last)
    record.unlink()
    train_by_two(recipe, "--resume")
    assert state_files(Path(recipe.run), 8) == unbroken
    assert record.read_bytes() == routed
