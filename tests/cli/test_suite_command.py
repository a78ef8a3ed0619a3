"""The commands on a series of two checkpoints without training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tripod.cli.app import main


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
