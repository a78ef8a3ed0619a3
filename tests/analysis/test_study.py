from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import tripod
from tests.analysis.weight_norm import WeightNorm
from tests.training.checkpoint_series import STEPS
from tripod.analysis.checkpoints import Checkpoint, find_checkpoints
from tripod.analysis.study import Finding, Study, measurement_key, run_study
from tripod.errors import ConfigError


def run(study: Study, checkpoints: tuple[Checkpoint, ...], out: Path) -> Finding:
    return tripod.run(run_study(study, checkpoints, out))


def test_a_study_writes_its_table_and_its_picture(trained_series: Path, tmp_path: Path) -> None:
    run(WeightNorm(), find_checkpoints([str(trained_series)]), tmp_path / "out")
    rows = list(csv.DictReader((tmp_path / "out" / "table.csv").read_text().splitlines()))
    assert [int(row["step"]) for row in rows] == list(STEPS)
    last = load_file(trained_series / f"step{STEPS[-1]}" / "model.safetensors")
    assert float(rows[-1]["norm"]) == pytest.approx(float(torch.linalg.norm(last["embed_out.weight"]) ** 2), rel=1e-6)
    assert int(rows[0]["size"]) == sum(tensor.numel() for tensor in last.values())
    assert (tmp_path / "out" / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert len(json.loads((tmp_path / "out" / "study.json").read_text())["checkpoints"]) == len(STEPS)


def test_a_study_measures_only_what_it_has_not_measured(trained_series: Path, tmp_path: Path) -> None:
    address = str(trained_series)
    assert run(WeightNorm(), find_checkpoints([address], steps=[0, 64]), tmp_path).num_measured == 2
    assert run(WeightNorm(), find_checkpoints([address], steps=[0, 1, 64]), tmp_path).num_measured == 1


def test_another_setting_and_another_dependency_are_measured_anew(trained_series: Path, tmp_path: Path) -> None:
    checkpoints = find_checkpoints([str(trained_series)], steps=[0])
    for study, num_measured in ((WeightNorm(), 1), (WeightNorm(power=1.0), 1), (WeightNorm(outside="file"), 1), (WeightNorm(), 0)):
        assert run(study, checkpoints, tmp_path).num_measured == num_measured


def test_a_checkpoint_is_found_again_by_its_content_and_not_by_its_place(copied_series: Path, tmp_path: Path) -> None:
    elsewhere = shutil.copytree(copied_series, tmp_path / "elsewhere")
    [here], [there] = (find_checkpoints([str(run)], steps=[64]) for run in (copied_series, elsewhere))
    [other] = find_checkpoints([str(copied_series)], steps=[56])
    assert here.hash == there.hash != other.hash


def test_a_measurement_is_named_by_version_weights_architecture_tokenizer_and_device(copied_series: Path) -> None:
    class Newer(WeightNorm):
        version = 2

    def key(study: type[Study] = WeightNorm, device: str = "cpu", step: int = 64) -> str:
        return measurement_key(study(), Checkpoint("run", copied_series / f"step{step}", step, device))

    found = [key(), key(Newer), key(device="cuda"), key(step=56)]
    for file in ("config.json", "tokenizer.json"):
        path = copied_series / "step64" / file
        path.write_text(path.read_text() + " ")
        found.append(key())
    assert len(set(found)) == 6
    assert key() == found[-1]


@pytest.mark.parametrize("with_manifest", [True, False])
def test_a_weight_that_changes_changes_the_hash(copied_series: Path, with_manifest: bool) -> None:
    folder = copied_series / "step64"
    if not with_manifest:
        (folder / "manifest.json").unlink()
    before = Checkpoint("a", folder).hash
    weights = load_file(folder / "model.safetensors")
    weights["embed_out.weight"] = weights["embed_out.weight"] + 1.0
    save_file(weights, folder / "model.safetensors")
    if with_manifest:
        from tests.training.checkpoint_series import write_manifest

        write_manifest(folder, 64)
    assert Checkpoint("a", folder).hash != before


def test_addresses_name_runs_and_single_checkpoints_each_once(trained_series: Path) -> None:
    found = find_checkpoints([f"{trained_series}@step64", str(trained_series)])
    assert [checkpoint.step for checkpoint in found] == [64, *STEPS[:-1]]
    assert {checkpoint.name for checkpoint in found} == {"run"}


@pytest.mark.parametrize("steps", [[3], [0, 3, 64]])
def test_steps_that_no_run_has_are_an_error(trained_series: Path, steps: list[int]) -> None:
    with pytest.raises(ConfigError, match=r"no checkpoint is of the steps 3$"):
        find_checkpoints([str(trained_series)], steps=steps)


def test_a_folder_without_checkpoints_is_said_to_be_one(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"empty holds no checkpoint: expected folders stepN, .*; it holds nothing"):
        find_checkpoints([str(tmp_path / "empty")])
    (tmp_path / "empty" / "recipe.yaml").write_text("")
    with pytest.raises(ConfigError, match=r"is a training run without a checkpoint; train it on.* it holds recipe\.yaml"):
        find_checkpoints([str(tmp_path / "empty")])


def test_runs_of_the_same_name_are_told_apart_by_their_folders(trained_series: Path, copied_series: Path) -> None:
    """Else one would take the other's place, in tables and in studies of several runs."""
    found = find_checkpoints([str(trained_series), f"{copied_series}@step64"], steps=[0, 64])
    names = [f"{folder.parent.name}/run" for folder in (trained_series, copied_series)]
    assert [(checkpoint.name, checkpoint.step) for checkpoint in found] == [(names[0], 0), (names[0], 64), (names[1], 64)]
