"""Statistics of weights and activations against numpy and a model called by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy

import tripod
from tests.training.conftest import MakeRecipe
from tripod.analysis.checkpoints import find_checkpoints
from tripod.analysis.model_statistics import ModelStatistics
from tripod.analysis.study import Finding, run_study
from tripod.analysis.tensor_statistics import split_name
from tripod.errors import ConfigError
from tripod.models.load import load_language_model
from tripod.models.save import save_checkpoint
from tripod.ops.attention import causal_attention
from tripod.training.loop import train
from tripod.training.run import Run


@pytest.fixture
def run(make_recipe: MakeRecipe) -> Run:
    return train(make_recipe()).run


def _study(run: Run, out: Path, **settings: int) -> Finding:
    return tripod.run(run_study(ModelStatistics(**settings), find_checkpoints([str(run.folder)], steps=[0, 12]), out))


def test_statistics_of_weights_are_numpys(run: Run, tmp_path: Path) -> None:
    table = _study(run, tmp_path, num_rows=0).table.where(kind="weight", step=12)
    first, last = (load_file(run.checkpoint(step) / "model.safetensors") for step in (0, 12))
    for (layer, part), rows in table.by("layer", "part").items():
        [name] = [name for name in last if split_name(name) == (layer, part)]
        values, start = last[name].double().numpy().ravel(), first[name].double().numpy().ravel()
        found = {str(row["statistic"]): float(row["value"] or 0) for row in rows}
        assert found["rms"] == pytest.approx(np.sqrt(np.mean(values**2)))
        assert found["largest"] == pytest.approx(np.abs(values).max())
        assert found["excess kurtosis"] == pytest.approx(np.mean((values - values.mean()) ** 4) / values.var() ** 2 - 3)
        if np.linalg.norm(start):
            assert found["moved"] == pytest.approx(np.linalg.norm(values - start) / np.linalg.norm(start))
            assert found["cosine to start"] == pytest.approx(values @ start / np.linalg.norm(values) / np.linalg.norm(start))
    assert len(table.by("layer", "part")) == len(last)


def test_statistics_of_activations_are_those_of_the_forward_pass(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tripod.analysis.tensor_statistics._POSITIONS_AT_ONCE", 5)  # of 16: their logits come in four parts
    table = _study(run, tmp_path, num_rows=3).table.where(step=12)
    model = load_language_model(run.checkpoint(12))
    rows = torch.from_numpy(np.stack([run.order().rows.row(row).astype(np.int64) for row in range(3)]))
    with torch.inference_mode():
        hidden = model.hidden(rows[:, :-1], torch.arange(16).expand(3, -1), causal_attention)
        logits = model.logits(hidden)
    [loss] = table.where(statistic="loss of these rows").numbers("value")
    assert loss == pytest.approx(float(cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())), rel=1e-5)
    [entropy] = table.where(statistic="entropy").numbers("value")
    assert entropy == pytest.approx(float(torch.distributions.Categorical(logits=logits).entropy().mean()), rel=1e-5)
    [last] = table.where(kind="activation", layer=1, statistic="rms").numbers("value")
    stream = {}
    model.norm.register_forward_hook(lambda _, inputs, __: stream.update(x=inputs[0]))
    model.hidden(rows[:, :-1], torch.arange(16).expand(3, -1), causal_attention)
    assert last == pytest.approx(float(stream["x"].square().mean().sqrt()), rel=1e-5)
    [tails] = table.where(kind="activation", layer=1, statistic="excess kurtosis").numbers("value")
    assert tails == pytest.approx(scipy.stats.kurtosis(stream["x"].double().numpy().ravel()), rel=1e-4)
    [largest] = table.where(statistic="largest logit").numbers("value")
    assert largest == pytest.approx(float(logits.max()), rel=1e-5)


def test_losses_and_spikes_are_those_of_the_run(run: Run, tmp_path: Path) -> None:
    records = [json.loads(line) for line in run.metrics_path.read_text().splitlines()]
    records[7]["is_spike"] = True
    run.metrics_path.write_text("".join(json.dumps(record) + "\n" for record in records))
    table = _study(run, tmp_path, num_rows=2).table
    assert table.where(statistic="loss").numbers("value") == [record["loss"] for record in records]
    assert [(row["step"], row["value"]) for row in table.where(statistic="loss spike")] == [(8, records[7]["loss"])]
    assert (tmp_path / "plot.png").stat().st_size > 20_000


def test_a_run_that_validates_before_its_first_step_has_no_loss_there(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    run = train(make_recipe(validation={"every": 6, "num_batches": 1})).run
    table = _study(run, tmp_path / "out", num_rows=0).table
    assert table.where(statistic="loss").column("step") == list(range(1, 13))


def test_of_a_long_curve_the_last_loss_is_kept_too(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tripod.analysis.model_statistics._AT_MOST_LOSSES", 5)  # of 12: every third
    assert _study(run, tmp_path, num_rows=0).table.where(statistic="loss").column("step") == [1, 4, 7, 10, 12]


def test_a_measurement_depends_on_where_the_run_began(trained_series: Path, copied_series: Path) -> None:
    """`moved` is the distance from there."""
    save_checkpoint(load_language_model(copied_series / "step8"), copied_series / "step0")
    (copied_series / "step0" / "manifest.json").unlink()
    first, second = (find_checkpoints([f"{folder}@step64"])[0] for folder in (trained_series, copied_series))
    assert first.hash == second.hash
    assert ModelStatistics().depends_on(first) != ModelStatistics().depends_on(second)


def test_a_model_without_a_run_has_weights_only(trained_series: Path, tmp_path: Path) -> None:
    found = tripod.run(run_study(ModelStatistics(), find_checkpoints([str(trained_series)], steps=[64]), tmp_path))
    assert {row["kind"] for row in found.table} == {"weight"}
    assert "moved" in set(found.table.column("statistic"))
    with pytest.raises(ConfigError, match="num_rows=-1"):
        ModelStatistics(num_rows=-1)


def test_layers_are_read_from_names() -> None:
    assert split_name("gpt_neox.layers.11.mlp.dense_h_to_4h.weight") == (11, "mlp.dense_h_to_4h.weight")
    assert split_name("model.layers.0.self_attn.q_proj.weight") == (0, "self_attn.q_proj.weight")
    assert split_name("embed_out.weight") == (None, "embed_out.weight")
