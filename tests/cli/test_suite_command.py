"""The commands on a series of two checkpoints without training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.cli.conftest import Command
from tripod.cli.app import main

RECIPE = """
run: nowhere
num_steps: 10
model: {vocab_size: 300, hidden_size: 32, num_layers: 2, num_heads: 2, max_positions: 64}
data: {prefixes: [absent], tokenizer: absent}
batch: {rows: 4, seq_length: 16}
optimizer: {lr: 2e-3}
"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(64, 64, generator=generator)
    for step in (1, 2, 4):
        (tmp_path / f"run/step{step}").mkdir(parents=True)
        weights = weights + 0.01 * torch.randn(64, 64, generator=generator)
        save_file({"w": weights}, tmp_path / f"run/step{step}/model.safetensors")
    return tmp_path / "run"


def test_a_run_is_packed_restored_and_audited(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["audit", str(run)], ["pack", str(run), "--into", str(tmp_path / "store")]):
        with pytest.raises(SystemExit) as ended:
            main(["suite", *arguments])
        assert ended.value.code == 0
    assert "3 checkpoints, no manifests to check against: 0 findings" in capsys.readouterr().out
    before = (run / "step4/model.safetensors").read_bytes()
    shutil.rmtree(run / "step4")
    with pytest.raises(SystemExit) as ended:
        main(["suite", "restore", str(tmp_path / "store"), "4", "--into", str(run / "step4")])
    assert ended.value.code == 0
    assert (run / "step4/model.safetensors").read_bytes() == before


def test_an_audit_that_finds_something_ends_with_1(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(run / "step1/model.safetensors", run / "step4")
    with pytest.raises(SystemExit) as ended:
        main(["suite", "audit", str(run), "--json"])
    assert ended.value.code == 1
    (finding,) = [finding for finding in json.loads(capsys.readouterr().out)["findings"] if finding["kind"] == "duplicate"]
    assert finding["steps"] == [1, 4]


def test_a_coordinate_check_ends_with_0_by_mup_and_with_1_without(tripod: Command, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE, encoding="utf-8")
    check = ("suite", "coordcheck", recipe, "--widths", "32,64,128")
    by_mup = tripod(*check, "--set", "model.mup_base_width=32", "--plot", tmp_path / "coord.png")
    assert (by_mup.code, "the change does not depend on the width" in by_mup.out) == (0, True), by_mup.out
    assert [line.split()[:2] for line in by_mup.out.splitlines()[1:3]] == [["block", "0"], ["block", "1"]]
    assert (tmp_path / "coord.png").read_bytes().startswith(b"\x89PNG")
    standard = tripod(*check, "--json")
    assert standard.code == 1
    found = json.loads(standard.out)
    assert found["widths"] == [32, 64, 128]
    assert found["beyond"] == ["block 0", "block 1", "logits"]
    assert "model.mup_base_width" in standard.err


@pytest.mark.parametrize(
    ("widths", "reason"),
    [("64", "two different ones"), ("64,72", "72 are not multiples of the recipe's head size 16"), ("a,b", "64,128,256")],
)
def test_widths_that_cannot_be_compared_are_refused(tripod: Command, tmp_path: Path, widths: str, reason: str) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    refused = tripod("suite", "coordcheck", tmp_path / "recipe.yaml", "--widths", widths)
    assert (refused.code, reason in refused.err) == (2, True), refused.err
