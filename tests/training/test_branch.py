"""Branches: an intervention and its control leave a run at one checkpoint, and a planted effect is in the one and not in the other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.training.conftest import MakeRecipe
from tripod.errors import ConfigError
from tripod.training.branch import REPORT, Branch, begin_branch, read_branch, report_changes
from tripod.training.compare import VALIDATION, compare, control_of
from tripod.training.data.order import check_fingerprint
from tripod.training.loop import train
from tripod.training.metrics import read_metrics
from tripod.training.run import Run

PLANT = "the zorblat sings"  # 18 bytes with its end; rows have 33


@pytest.fixture
def parent(make_recipe: MakeRecipe) -> Run:
    """A complete run of 40 steps."""
    recipe = make_recipe(num_steps=40, batch={"seq_length": 32}, validation={"every": 40, "num_batches": 4}, checkpoints={"every": 20})
    return train(recipe).run


def intervention(folder: Path, text: str, name: str = "plant") -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def run_branch(branch: Branch) -> tuple[Run, Run]:
    for recipe in (branch.branch, branch.control):
        begin_branch(recipe, branch.parent, branch.step)
    return train(branch.branch, resume=True).run, train(branch.control, resume=True).run


def weights(run: Run, step: int) -> dict[str, torch.Tensor]:
    return load_file(run.checkpoint(step) / "model.safetensors") | load_file(run.checkpoint(step) / "optimizer.safetensors")


def test_a_planted_text_is_learnt_by_the_branch_and_by_nothing_else(parent: Run, tmp_path: Path) -> None:
    path = intervention(tmp_path, f"interventions: [{{kind: inject, texts: ['{PLANT}'], rows_per_step: 2}}]")
    branch, control = run_branch(read_branch(f"{parent.folder}@step4", path))
    assert branch.folder == Path(f"{parent.folder}-plant")
    assert branch.steps == control.steps == (4, 20, 40)
    assert control_of(branch).folder == control.folder

    # The control is the parent's own way, bit for bit, optimizer states included.
    ours, theirs = weights(control, 40), weights(parent, 40)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)

    probes = [PLANT, *(f"{word} {PLANT}" for word in ("and", "now", "so", "then", "here"))]  # of two the interval would be wide
    planted = {(one.metric, one.step): one for one in compare([(branch, control)], texts={"plant": probes})}
    assert planted["plant", 4].difference == 0.0
    assert planted["plant", 40].difference < -1.0  # nats a token
    assert planted["plant", 40].is_clear
    assert planted[VALIDATION, 40].num_texts == 16
    assert abs(planted[VALIDATION, 40].difference) < 0.5

    # Without the plant there is no effect: exactly none.
    assert all(one.difference == 0.0 and not one.is_clear for one in compare([(parent, control)], texts={"plant": [PLANT]}))
    sham = intervention(tmp_path, "interventions: [{kind: swap, words: {zorblat: quux}}]", "sham")
    nothing, again = run_branch(read_branch(f"{parent.folder}@step4", sham))
    assert again.folder == control.folder
    assert report_changes(nothing)[0].num_rows_changed == 0
    assert all(one.difference == 0.0 for one in compare([(nothing, control)], texts={"plant": [PLANT]}))


@pytest.mark.parametrize("packed", [{}, {"attention": "document", "positions": "document"}])
def test_the_validation_that_is_compared_is_the_one_that_the_run_noted(make_recipe: MakeRecipe, packed: dict[str, str]) -> None:
    recipe = make_recipe(num_steps=4, batch={"seq_length": 32, **packed}, validation={"every": 4, "num_batches": 2})
    run = train(recipe).run
    noted = {record["step"]: record["valid_loss"] for record in read_metrics(run.metrics_path) if "valid_loss" in record}
    compared = {one.step: one.branch for one in compare([(run, run)], steps=[0, 4])}
    assert compared == pytest.approx(noted, abs=1e-5)  # float32, rows alone and eight at a time


def test_a_text_is_read_behind_the_end_of_another_so_that_its_first_token_counts(make_recipe: MakeRecipe) -> None:
    transformers = pytest.importorskip("transformers")
    run = train(make_recipe(num_steps=2)).run
    (found,) = (one for one in compare([(run, run)], texts={"one byte": ["e"]}, steps=[2]) if one.metric == "one byte")
    end, byte = 256, ord("e")  # of the byte tokenizer
    with torch.no_grad():
        logits = transformers.AutoModelForCausalLM.from_pretrained(run.checkpoint(2))(torch.tensor([[end]])).logits
    assert found.branch == pytest.approx(-logits[0, 0].log_softmax(-1)[byte].item(), abs=1e-4)


def test_the_checkpoints_of_a_branch_say_where_they_are_from_and_what_they_read(parent: Run, tmp_path: Path) -> None:
    path = intervention(tmp_path, "interventions: [{kind: swap, words: {make: give}, from_step: 10, to_step: 12}]\nnum_steps: 39")
    read = read_branch(f"{parent.folder}@step4", path)
    run = begin_branch(read.branch, read.parent, read.step)
    first = run.manifest(4)
    assert first.branch_of == {"checkpoint": f"{parent.folder}@step4", "order_fingerprint": parent.manifest(4).order_fingerprint}
    assert first.order_fingerprint != parent.manifest(4).order_fingerprint
    check_fingerprint(first.order_fingerprint, run.order().fingerprint)
    assert first.recipe["interventions"][0]["words"] == {"make": "give"}
    assert first.tensors == parent.manifest(4).tensors
    assert [record["step"] for record in read_metrics(run.metrics_path) if "loss" in record] == [1, 2, 3, 4]
    (report,) = report_changes(run)
    assert json.loads((run.folder / REPORT).read_text())[0]["counts"] == dict(report.counts) != {}
    assert begin_branch(read.branch, read.parent, read.step).steps == (4,)  # one that is there goes on


def test_a_branch_of_a_branch_keeps_what_it_inherits(parent: Run, tmp_path: Path) -> None:
    first = read_branch(f"{parent.folder}@step4", intervention(tmp_path, "interventions: [{kind: swap, words: {make: give}}]", "one"))
    run, _ = run_branch(first)
    second = read_branch(f"{run.folder}@step20", intervention(tmp_path, "interventions: [{kind: reorder}]", "two"))
    assert [one.kind for one in second.branch.interventions] == ["swap", "reorder"]
    assert [one.from_step for one in second.branch.interventions] == [4, 20]
    assert [one.kind for one in second.control.interventions] == ["swap"]
    control = begin_branch(second.control, second.parent, second.step)
    assert control.manifest(20).order_fingerprint == run.manifest(20).order_fingerprint


WRONG = (
    ("@step3", "interventions: [{kind: reorder}]", "its checkpoints: 0, 1, 2, 4, 20, 40"),
    ("", "interventions: [{kind: reorder}]", "expected RUN@stepN"),
    ("@step40", "interventions: [{kind: reorder, from_step: 20}]", "would change what .*@step40 was trained on"),
    ("@step20", "interventions: []", "declares no interventions"),
    ("@step20", "num_steps: 20\ninterventions: [{kind: reorder, from_step: 19}]", "would change what"),
    ("@step20", "lr: 3\ninterventions: [{kind: reorder}]", "lr cannot be changed by a branch; known: run, control"),
    ("@step20", "interventions: [{kind: swop}]", "'swop'; expected one of filter, swap, inject, reorder"),
)


def test_what_is_wrong_with_a_branch_is_told(parent: Run, tmp_path: Path) -> None:
    for at, text, message in WRONG:
        with pytest.raises(ConfigError, match=message):
            read_branch(f"{parent.folder}{at}", intervention(tmp_path, text))


def test_more_steps_that_need_another_epoch_are_refused(parent: Run, tmp_path: Path) -> None:
    """Then documents would be shuffled otherwise, from the first row on."""
    longer = read_branch(f"{parent.folder}@step20", intervention(tmp_path, "num_steps: 4000\ninterventions: [{kind: reorder}]"))
    with pytest.raises(ConfigError, match="was trained on the data order"):
        begin_branch(longer.branch, longer.parent, longer.step)


def test_a_run_from_before_a_field_was_known_goes_on(parent: Run) -> None:
    for step in parent.steps:
        path = parent.checkpoint(step) / "manifest.json"
        content = json.loads(path.read_text())
        del content["recipe"]["interventions"], content["recipe"]["branch"], content["branch_of"]
        path.write_text(json.dumps(content))
    assert Run.resume(parent.recipe).steps == parent.steps
