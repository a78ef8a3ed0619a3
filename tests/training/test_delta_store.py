"""The expected bytes are the checkpoint's own files."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import zstandard
from safetensors.torch import load_file, save_file

from tests.training.checkpoint_series import STEPS
from tripod.errors import CheckpointError, ConfigError
from tripod.models.load import load_language_model
from tripod.training.delta_store import DeltaStore


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def packed(series: Path, path: Path, group: int = 4) -> DeltaStore:
    store = DeltaStore.open(path, level=3, group=group)
    store.pack(series)
    return store


@pytest.mark.parametrize("series", ["trained_series", "half_series"])
def test_every_step_is_restored_byte_for_byte_and_serves(series: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    run: Path = request.getfixturevalue(series)
    packed(run, tmp_path / "store")
    store = DeltaStore.open(tmp_path / "store")
    assert store.steps == STEPS
    for step in reversed(STEPS):
        store.restore(step, tmp_path / f"again{step}")
        assert contents(tmp_path / f"again{step}") == contents(run / f"step{step}")
    restored, original = load_language_model(tmp_path / "again64"), load_language_model(run / "step64")
    assert all(torch.equal(restored.state_dict()[name], tensor) for name, tensor in original.state_dict().items())


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors"])
def test_any_tensor_of_any_step_is_read_alone(trained_series: Path, tmp_path: Path, file: str) -> None:
    store = packed(trained_series, tmp_path / "store")
    for step in (0, 8, 40):
        expected = load_file(trained_series / f"step{step}" / file)
        assert set(store.names(step, file)) == set(expected)
        for name, tensor in expected.items():
            read = store.tensor(step, name, file)
            assert read.dtype == tensor.dtype
            assert read.shape == tensor.shape
            assert torch.equal(read, tensor)


def test_tensors_of_every_dtype_and_shape_come_back(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(3, 700, generator=generator)
    values[0, :4] = torch.tensor([float("nan"), float("-inf"), -0.0, 1e-45])
    dtypes = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.int64, torch.uint8, torch.bool]
    for step in (1, 2):
        tensors = {str(dtype): (values * step * 100).nan_to_num().to(dtype) for dtype in dtypes}
        tensors |= {"scalar": torch.tensor(step), "empty": torch.empty(0, 5), "special": values * step}
        (tmp_path / f"step{step}").mkdir()
        save_file(tensors, tmp_path / f"step{step}" / "model.safetensors")
    store = packed(tmp_path, tmp_path / "store")
    for step in (1, 2):
        expected = load_file(tmp_path / f"step{step}" / "model.safetensors")
        for name, tensor in store.tensors(step).items():
            assert (tensor.dtype, tensor.shape) == (expected[name].dtype, expected[name].shape)
            if tensor.ndim and tensor.numel():
                assert torch.equal(tensor.view(torch.uint8), expected[name].view(torch.uint8))
        store.restore(step, tmp_path / f"again{step}")
        assert contents(tmp_path / f"again{step}") == contents(tmp_path / f"step{step}")


def test_a_tensor_that_changes_its_shape_or_appears_late_is_stored(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    for step, shape in ((1, (40, 40)), (2, (80, 40)), (3, (80, 40))):
        (tmp_path / f"step{step}").mkdir()
        tensors = {"grows": torch.randn(shape, generator=generator)} | ({"late": torch.ones(50, 50)} if step > 1 else {})
        save_file(tensors, tmp_path / f"step{step}" / "model.safetensors")
    store = packed(tmp_path, tmp_path / "store")
    for step in (1, 2, 3):
        assert all(
            torch.equal(store.tensor(step, name), tensor)
            for name, tensor in load_file(tmp_path / f"step{step}" / "model.safetensors").items()
        )


def test_a_step_is_read_without_the_files_of_other_groups(trained_series: Path, tmp_path: Path) -> None:
    store = packed(trained_series, tmp_path / "store", group=4)
    others = [step for step in STEPS if step not in STEPS[4:8]]
    for step in others[1:]:
        (store.path / f"step{step}.delta").unlink()
    reader = DeltaStore.open(store.path)
    for step in STEPS[4:8]:
        expected = load_file(trained_series / f"step{step}" / "model.safetensors")
        assert all(torch.equal(reader.tensor(step, name), tensor) for name, tensor in expected.items())


def test_planes_that_move_little_refer_and_noise_does_not(trained_series: Path, tmp_path: Path) -> None:
    store = packed(trained_series, tmp_path / "store")
    tensors = store.index(64).files["model.safetensors"].tensors
    assert tensors is not None
    frames = tensors["gpt_neox.layers.0.mlp.dense_h_to_4h.weight"].frames
    assert frames[0].reference is None
    assert not frames[0].is_packed
    assert frames[3].reference is not None
    assert store.index(8).keyframe == 8
    assert all(frame.reference is None for tensor in store.index(8).files["model.safetensors"].tensors.values() for frame in tensor.frames)


def test_the_store_is_smaller_than_whole_files_packed_by_zstd(trained_series: Path, half_series: Path, tmp_path: Path) -> None:
    for series, bound in ((trained_series, 0.9), (half_series, 0.85)):  # noise of single tensors of 4096 numbers; measured 0.84 and 0.76
        store = packed(series, tmp_path / series.parent.name, group=16)
        plain = sum(len(zstandard.compress((series / f"step{step}" / "model.safetensors").read_bytes())) for step in STEPS)
        assert store.size("model.safetensors").stored < bound * plain


def test_a_file_that_stays_the_same_is_stored_once(trained_series: Path, tmp_path: Path) -> None:
    store = packed(trained_series, tmp_path / "store")
    assert {store.index(step).files["tokenizer.json"].stored_at for step in STEPS} == {0}
    assert store.index(64).files["manifest.json"].stored_at == 64


def test_adding_a_step_again_is_quiet_when_it_is_the_same_and_an_error_when_it_is_not(copied_series: Path, tmp_path: Path) -> None:
    store = packed(copied_series, tmp_path / "store")
    before = contents(store.path)
    assert store.pack(copied_series) == 0
    assert contents(store.path) == before
    shutil.copy(copied_series / "step56" / "model.safetensors", copied_series / "step40")
    with pytest.raises(CheckpointError, match=r"another checkpoint under step 40 .* tensor gpt_neox"):
        store.pack(copied_series)


def test_steps_are_added_in_ascending_order(trained_series: Path, tmp_path: Path) -> None:
    store = DeltaStore.open(tmp_path / "store")
    store.add(8, trained_series / "step8")
    with pytest.raises(ConfigError, match="step 4 comes after step 8"):
        store.add(4, trained_series / "step4")


def test_damage_anywhere_is_an_error_that_names_step_and_tensor(trained_series: Path, tmp_path: Path) -> None:
    packed(trained_series, tmp_path / "store")
    whole = (tmp_path / "store" / "step40.delta").read_bytes()
    generator = np.random.default_rng(0)
    named = 0
    for place in generator.integers(0, len(whole), 20):
        spoiled = bytearray(whole)
        spoiled[place] ^= 0x10
        (tmp_path / "store" / "step40.delta").write_bytes(spoiled)
        with pytest.raises(CheckpointError, match=r"step ?40") as caught:
            DeltaStore.open(tmp_path / "store").verify()
        named += "gpt_neox" in str(caught.value) or "embed_out" in str(caught.value)
    assert named > 10  # most bytes are of tensors


def test_a_plane_stored_raw_is_checked_at_every_read(trained_series: Path, tmp_path: Path) -> None:
    store = packed(trained_series, tmp_path / "store")
    name = "embed_out.weight"
    tensors = store.index(40).files["model.safetensors"].tensors
    assert tensors is not None
    frame = tensors[name].frames[0]
    assert not frame.is_packed
    content = bytearray((store.path / "step40.delta").read_bytes())
    content[frame.start + 5] ^= 1
    (store.path / "step40.delta").unlink()
    (store.path / "step40.delta").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"step 40 .* tensor embed_out.weight of model.safetensors .*step40.delta"):
        DeltaStore.open(store.path).tensor(40, name)


def test_a_missing_reference_is_named(trained_series: Path, tmp_path: Path) -> None:
    store = packed(trained_series, tmp_path / "store")
    (store.path / "step40.delta").unlink()
    with pytest.raises(CheckpointError, match=r"step 48 .* needs step40.delta"):
        DeltaStore.open(store.path).tensors(48)


def test_restoring_over_something_or_from_nowhere_is_refused(trained_series: Path, tmp_path: Path) -> None:
    store = packed(trained_series, tmp_path / "store")
    with pytest.raises(ConfigError, match="exists"):
        store.restore(8, tmp_path)
    with pytest.raises(ConfigError, match="nowhere is not a delta store: it has no stepN"):
        DeltaStore.open(tmp_path / "nowhere").restore(8, tmp_path / "restored")
    with pytest.raises(ConfigError, match=r"no step 9; it has 12 steps: 0, 1, 2, 4"):
        store.restore(9, tmp_path / "nine")
    assert not (tmp_path / "nine").exists()


def test_a_damaged_step_leaves_no_folder_behind(trained_series: Path, tmp_path: Path) -> None:
    store = packed(trained_series, tmp_path / "store")
    path = store.path / "step64.delta"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.unlink()
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="step 64"):
        DeltaStore.open(store.path).restore(64, tmp_path / "again")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["store"]


def test_a_pack_that_is_killed_leaves_whole_steps_and_goes_on(trained_series: Path, tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from tripod.training.delta_store import DeltaStore\n"
        "print('go', flush=True); DeltaStore.open(Path(sys.argv[2]), level=19, group=4).pack(Path(sys.argv[1]))"
    )
    for delay in (0.0, 0.02, 0.05, 0.1, 0.3):
        victim = subprocess.Popen(
            [sys.executable, "-c", program, str(trained_series), str(tmp_path / "store")],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
        )
        assert victim.stdout is not None
        victim.stdout.readline()
        time.sleep(delay)
        victim.send_signal(signal.SIGKILL)
        victim.communicate()
        store = DeltaStore.open(tmp_path / "store")
        assert store.steps == STEPS[: len(store.steps)]
        store.verify()
    store.pack(trained_series)
    assert store.steps == STEPS
    assert sorted(path.name for path in store.path.iterdir()) == sorted(f"step{step}.delta" for step in STEPS)
    for step in STEPS:
        store.restore(step, tmp_path / f"again{step}")
        assert contents(tmp_path / f"again{step}") == contents(trained_series / f"step{step}")


def test_restoring_checks_the_sha256_of_every_tensor_not_only_the_checksum_of_a_read(trained_series: Path, tmp_path: Path) -> None:
    store = packed(trained_series, tmp_path / "store")
    tensors = store.index(8).files["model.safetensors"].tensors
    assert isinstance(tensors, dict)
    name = min(tensors)
    tensors[name] = replace(tensors[name], sha256="0" * 64)  # a damage that CRC-32 does not see
    store.tensor(8, name)
    with pytest.raises(CheckpointError, match=name):
        store.restore(8, tmp_path / "restored")
    assert not (tmp_path / "restored").exists()
