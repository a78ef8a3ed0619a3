"""`tripod study routing RUN`: where a run sent its tokens, from its own data alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.cli.conftest import Command

pytest.importorskip("torch")

from tests.training.test_sparse_training import router_logits
from tripod.evaluation.table import Table
from tripod.training.routing_record import read_routing, routing_path
from tripod.training.run import Run

RECIPE = Path(__file__).parents[2] / "recipes" / "twins.yaml"
LAYERS, NUM_EXPERTS, TOP_K, SEQ_LENGTH = (0, 1), 6, 2, 64
STEPS, KEPT = (0, 1, 2, 4, 8, 12), (0, 2, 12)


def sizes(folder: Path) -> list[str]:
    """The sparse twin, so small that it trains in a second."""
    changes = {
        "run": f"{folder}/twin", "data.prefixes": f"[{folder}/data/text]", "data.tokenizer": f"{folder}/data/tokenizer",
        "data.source.inputs": f"[{folder}/texts]", "data.source.vocab_size": 300, "data.split": "'80,20,0'",
        "model.architecture": "mixtral", "model.num_experts": NUM_EXPERTS, "model.top_k": TOP_K, "model.vocab_size": 300,
        "model.hidden_size": 32, "model.num_layers": 2, "model.num_heads": 2, "model.intermediate_size": 32, "model.max_positions": 64,
        "num_steps": 12, "batch.rows": 4, "batch.seq_length": SEQ_LENGTH, "validation.num_batches": 1, "routing_rows": 8,
    }  # fmt: skip
    return [argument for name, value in changes.items() for argument in ("--set", f"{name}={value}")]


def test_a_run_is_studied_by_its_name_alone_at_every_step_that_it_recorded(tripod: Command, tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    for number in range(30):
        (tmp_path / "texts" / f"{number:02}.md").write_text(f"The {number}th lantern hangs by the river.\n" * 20, encoding="utf-8")
    trained = tripod("train", RECIPE, *sizes(tmp_path))
    assert trained.code == 0, trained.err
    folder, out = tmp_path / "twin", tmp_path / "out"
    for step in set(STEPS) - set(KEPT):
        shutil.rmtree(folder / f"step{step}")
    outcome = tripod("study", "routing", folder, "--out", out)
    assert outcome.code == 0, outcome.err
    assert "3 checkpoints measured" in outcome.err
    table = Table.read(out / "table.csv")
    order = Run.open(folder).order()
    rows = np.stack([order.rows.row(row) for row in range(32)])[:, :-1]  # the first training rows
    for step in KEPT:
        logits = router_logits(folder / f"step{step}", rows)
        for layer in LAYERS:
            of_layer = table.where(step=step, layer=layer)
            chosen = logits[layer].topk(TOP_K).indices.flatten().bincount(minlength=NUM_EXPERTS)
            load = of_layer.where(measure="load").sorted_by("expert").numbers("value")
            assert load == pytest.approx((chosen / (32 * SEQ_LENGTH * TOP_K)).tolist(), abs=1e-3)  # four may fall otherwise by rounding
            [overlap] = of_layer.where(measure="overlap with the last").numbers("value")
            assert overlap == 1.0 if step == KEPT[-1] else 1 / NUM_EXPERTS < overlap < 1.0
            assert set(of_layer.where(measure="spread").column("group")) == {"token id", "position"}  # the rows are of one class
    assert not len(table.where(measure="divergence"))
    last = read_routing(routing_path(folder, STEPS[-1]))
    for step in STEPS:
        record = read_routing(routing_path(folder, step))
        for layer in LAYERS:
            recorded = table.where(step=step, layer=layer)
            pairs = zip(record.experts[layer].tolist(), last.experts[layer].tolist(), strict=True)
            same = [len({*now} & {*then}) for now, then in pairs]
            assert recorded.where(measure="recorded overlap with the last").numbers("value") == [pytest.approx(np.mean(same) / TOP_K)]
            assert sum(recorded.where(measure="recorded load").numbers("value")) == pytest.approx(1.0)
    for name in ("lanterns", "rivers"):  # in rows as long as the model's 64 positions
        (tmp_path / f"{name}.txt").write_text(f"Of {name} there is more to say than fits. " * 40, encoding="utf-8")
    by_class = tripod("study", "routing", folder, "--set", f"texts={tmp_path}/*.txt", "--out", tmp_path / "classes")
    assert by_class.code == 0, by_class.err
    assert "specialised by domain" in by_class.out
    assert (out / "plot.png").read_bytes().startswith(b"\x89PNG")
    drawn = (out / "plot.svg").read_text(encoding="utf-8")
    assert all(f"<!-- {title} -->" in drawn for title in ("Router saturation", "Recorded saturation", "Dropped towards the end"))
