"""Each published error is planted in a real small series and found; the series without it is the control."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.training.checkpoint_series import STEPS, write_manifest
from tripod.errors import ConfigError
from tripod.training.audit import Kind, audit, inferred_steps
from tripod.training.initial_spread import InitialSpread

MLP = "gpt_neox.layers.1.mlp.dense_h_to_4h.weight"


def without_manifests(run: Path) -> Path:
    """As published series are."""
    for path in run.glob("step*/manifest.json"):
        path.unlink()
    return run


def change_weights(run: Path, step: int, change: Callable[[dict[str, torch.Tensor]], None], *, file: str = "model.safetensors") -> None:
    path = run / f"step{step}" / file
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize("series", ["trained_series", "half_series"])
def test_a_clean_series_has_no_findings(series: str, request: pytest.FixtureRequest) -> None:
    seen: list[tuple[int, int | None]] = []
    report = audit(request.getfixturevalue(series), progress=lambda _, done, total: seen.append((done, total)))
    assert report.findings == ()
    assert report.is_sound
    assert report.steps == report.expected_steps == STEPS
    assert report.num_hashes_checked == len(STEPS) * (28 + 57)  # 2 layers of 12 tensors, 4 others; two moments each, and the step
    assert seen[-1] == (len(STEPS), len(STEPS))


def test_a_clean_series_without_manifests_has_no_findings(copied_series: Path) -> None:
    report = audit(without_manifests(copied_series))
    assert report.findings == ()
    assert report.num_hashes_checked == 0


def test_final_weights_under_an_earlier_step_are_found(copied_series: Path) -> None:
    shutil.copy(copied_series / "step64/model.safetensors", without_manifests(copied_series) / "step32")
    kinds = {finding.kind: finding.steps for finding in audit(copied_series).findings}
    assert kinds[Kind.DUPLICATE] == (32, 64)
    assert kinds[Kind.STRANGER] == (32,)


def test_weights_of_another_run_are_found_though_they_are_no_duplicate(copied_series: Path) -> None:
    generator = torch.Generator().manual_seed(5)

    def near_the_end(tensors: dict[str, torch.Tensor]) -> None:
        for name, tensor in load_file(copied_series / "step64/model.safetensors").items():
            tensors[name] = tensor + 1e-3 * torch.randn(tensor.shape, generator=generator)

    change_weights(without_manifests(copied_series), 24, near_the_end)
    assert [(finding.kind, finding.steps) for finding in audit(copied_series).findings] == [(Kind.STRANGER, (24,))]


def test_a_missing_step_is_found_by_the_declared_and_by_the_inferred_rule(copied_series: Path) -> None:
    shutil.rmtree(copied_series / "step40")
    assert [(finding.kind, finding.steps) for finding in audit(copied_series).findings] == [(Kind.MISSING, (40,))]
    assert [(finding.kind, finding.steps) for finding in audit(without_manifests(copied_series)).findings] == [(Kind.MISSING, (40,))]
    assert audit(copied_series, expected_steps=audit(copied_series).steps).is_sound


def test_a_branch_owes_only_the_steps_behind_the_one_that_it_left_its_parent_at(copied_series: Path) -> None:
    for step in STEPS:
        path = copied_series / f"step{step}" / "manifest.json"
        if step < 8:
            shutil.rmtree(path.parent)
        else:
            manifest = json.loads(path.read_text())
            manifest["recipe"]["branch"] = {"parent": "runs/x@step8", "control": None}
            path.write_text(json.dumps(manifest))
    report = audit(copied_series)
    assert report.findings == ()
    assert report.expected_steps == STEPS[STEPS.index(8) :]
    shutil.rmtree(copied_series / "step8")
    assert [(finding.kind, finding.steps) for finding in audit(copied_series).findings] == [(Kind.MISSING, (8,))]


def test_what_a_run_that_stopped_has_not_reached_is_one_finding(copied_series: Path) -> None:
    for step in (24, 48, 56, 64):
        shutil.rmtree(copied_series / f"step{step}")
    found = audit(copied_series).findings
    assert [(finding.kind, finding.steps) for finding in found] == [(Kind.MISSING, (24,)), (Kind.MISSING, (48, 56, 64))]
    assert "3 more behind step 40: the run is not finished, or they were lost" in str(found[1])


@pytest.mark.parametrize(("first", "second"), [(32, 40), (4, 8), (48, 56)])
def test_two_swapped_steps_are_found(copied_series: Path, first: int, second: int) -> None:
    without_manifests(copied_series)
    (copied_series / f"step{first}").rename(copied_series / "aside")
    (copied_series / f"step{second}").rename(copied_series / f"step{first}")
    (copied_series / "aside").rename(copied_series / f"step{second}")
    assert [(finding.kind, finding.steps) for finding in audit(copied_series).findings] == [(Kind.SWAPPED, (first, second))]


def test_two_distant_steps_in_each_others_place_are_both_strangers(copied_series: Path) -> None:
    without_manifests(copied_series)
    (copied_series / "step8").rename(copied_series / "aside")
    (copied_series / "step48").rename(copied_series / "step8")
    (copied_series / "aside").rename(copied_series / "step48")
    assert [(finding.kind, finding.steps) for finding in audit(copied_series).findings] == [(Kind.STRANGER, (8,)), (Kind.STRANGER, (48,))]


def test_a_folder_with_a_manifest_of_another_step_is_found(copied_series: Path) -> None:
    shutil.rmtree(copied_series / "step40")
    shutil.copytree(copied_series / "step48", copied_series / "step40")
    kinds = [(finding.kind, finding.steps) for finding in audit(copied_series).findings]
    assert (Kind.MISLABELLED, (40,)) in kinds
    assert (Kind.DUPLICATE, (40, 48)) in kinds


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors"])
def test_a_flipped_bit_is_found_by_the_manifest(copied_series: Path, file: str) -> None:
    path = copied_series / "step24" / file
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    (finding,) = audit(copied_series).findings
    assert (finding.kind, finding.steps, len(finding.tensors)) == (Kind.CORRUPT, (24,), 1)


def test_numbers_that_are_not_finite_are_found_and_spoil_nothing_else(copied_series: Path) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors[MLP][3, 3] = float("nan")

    def below_zero(tensors: dict[str, torch.Tensor]) -> None:
        tensors[f"exp_avg_sq.{MLP}"][0, 0] = -1.0

    change_weights(without_manifests(copied_series), 32, spoil)
    change_weights(copied_series, 40, below_zero, file="optimizer.safetensors")
    found = [(finding.kind, finding.steps, finding.tensors) for finding in audit(copied_series).findings]
    assert found == [(Kind.NOT_FINITE, (32,), (MLP,)), (Kind.NOT_FINITE, (40,), (f"exp_avg_sq.{MLP}",))]


def test_a_shard_of_another_step_is_found(copied_series: Path) -> None:
    final = load_file(copied_series / "step64/model.safetensors")
    shard = [name for name in final if ".layers.0." in name or "embed_in" in name]
    change_weights(without_manifests(copied_series), 24, lambda tensors: tensors.update({name: final[name] for name in shard}))
    findings = audit(copied_series).findings
    same = [finding for finding in findings if finding.steps == (24, 64)]
    assert [(finding.kind, finding.tensors) for finding in same] == [(Kind.FOREIGN_TENSORS, tuple(sorted(shard)))]
    assert {step for finding in findings for step in finding.steps} == {24, 64}


def test_a_shard_of_a_step_that_is_not_there_is_found_by_its_path(copied_series: Path) -> None:
    final = load_file(copied_series / "step64/model.safetensors")
    shutil.rmtree(copied_series / "step64")
    change_weights(without_manifests(copied_series), 24, lambda tensors: tensors.update({MLP: final[MLP]}))
    (finding,) = audit(copied_series).findings
    assert (finding.kind, finding.steps, finding.tensors) == (Kind.FOREIGN_TENSORS, (24,), (MLP,))


def test_a_series_that_goes_on_elsewhere_is_found(copied_series: Path) -> None:
    generator = torch.Generator().manual_seed(5)
    push = {
        name: 0.05 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in load_file(copied_series / "step40/model.safetensors").items()
    }
    without_manifests(copied_series)
    for step in (40, 48, 56, 64):
        change_weights(copied_series, step, lambda tensors: tensors.update({name: tensor + push[name] for name, tensor in tensors.items()}))
    (finding,) = audit(copied_series).findings
    assert (finding.kind, finding.steps) == (Kind.JUMP, (40,))


def test_weights_drawn_by_another_rule_than_declared_are_found(copied_series: Path) -> None:
    (finding,) = audit(copied_series, initial_spread=InitialSpread.NORMAL_SCALED).findings
    assert finding.kind is Kind.INITIALIZATION
    assert "all of it fits small-wang" in finding.detail


def test_a_matrix_drawn_too_wide_is_found(copied_series: Path) -> None:
    for step in STEPS:
        change_weights(copied_series, step, lambda tensors: tensors.update({MLP: tensors[MLP] * 1.2}))
        write_manifest(copied_series / f"step{step}", step)
    (finding,) = audit(copied_series).findings
    assert (finding.kind, finding.tensors) == (Kind.INITIALIZATION, (MLP,))


def test_a_truncated_file_is_a_finding_and_the_others_are_audited(copied_series: Path) -> None:
    path = copied_series / "step32/model.safetensors"
    path.write_bytes(path.read_bytes()[:-50])
    shutil.rmtree(copied_series / "step48")
    assert [(finding.kind, finding.steps) for finding in audit(copied_series).findings] == [(Kind.UNREADABLE, (32,)), (Kind.MISSING, (48,))]


def test_a_tensor_of_another_shape_is_found(copied_series: Path) -> None:
    change_weights(without_manifests(copied_series), 64, lambda tensors: tensors.update({MLP: tensors[MLP][:-1].clone()}))
    (finding,) = audit(copied_series).findings
    assert (finding.kind, finding.steps, finding.tensors) == (Kind.MISMATCH, (64,), (MLP,))


def test_folders_from_anywhere_are_audited_and_must_be_named_by_their_step(trained_series: Path, tmp_path: Path) -> None:
    assert audit([trained_series / "step8", trained_series / "step4"]).steps == (4, 8)
    with pytest.raises(ConfigError, match="not named stepN"):
        audit([tmp_path])
    with pytest.raises(ConfigError, match="no checkpoints"):
        audit(tmp_path)


def test_the_rule_of_pythia_is_inferred_with_a_hole_in_each_part() -> None:
    pythia = [0, *(2**power for power in range(10)), *range(1000, 144_000, 1000)]
    holed = [step for step in pythia if step not in (16, 26_000)]
    assert inferred_steps(holed) == tuple(pythia)
    assert len(pythia) == 154


def test_a_finding_reads_as_a_sentence(copied_series: Path) -> None:
    shutil.rmtree(copied_series / "step40")
    (finding,) = audit(copied_series).findings
    assert str(finding) == "step 40: missing: the rule keeps this step, and there is no folder of it"
    assert json.loads(json.dumps(finding.kind)) == "missing"
