"""Checkpoints are whole, say what they are, and are checked before a run goes on from them."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path

import pytest
import torch

from tests.training.conftest import MakeRecipe
from tripod import durable_files
from tripod.errors import CheckpointError
from tripod.models.gpt_neox import GPTNeoX
from tripod.models.initialize import initial_language_model
from tripod.models.llama import Llama
from tripod.training import checkpoint
from tripod.training.checkpoint import (
    Position,
    load_training_checkpoint,
    read_manifest,
    remove_partial,
    save_training_checkpoint,
    steps_of_run,
)
from tripod.training.loss_scale import LossScale
from tripod.training.optimizer import AdamW
from tripod.training.recipe import Recipe
from tripod.training.recipe_file import recipe_from, to_mapping

POSITION = Position(step=3, num_updates=2, num_tokens=192, loss_scale=LossScale(scale=8.0, overflows_left=1, good_steps=2))


@pytest.fixture
def recipe(make_recipe: MakeRecipe) -> Recipe:
    return make_recipe()


def fresh(recipe: Recipe, seed: int = 0) -> tuple[GPTNeoX | Llama, AdamW]:
    model = initial_language_model(recipe.model.config(), seed, "small-wang")
    optimizer = AdamW(model, recipe.optimizer)
    for tensor in optimizer.tensors().values():
        tensor.normal_(generator=torch.Generator().manual_seed(seed))
    return model, optimizer


def save(recipe: Recipe, position: Position = POSITION, seed: int = 0) -> Path:
    model, optimizer = fresh(recipe, seed)
    return save_training_checkpoint(
        Path(recipe.run),
        model,
        optimizer.tensors(),
        position,
        tokenizer=Path(recipe.data.tokenizer),
        recipe=to_mapping(recipe),
        order_fingerprint="f" * 64,
    )


def test_it_comes_back_as_it_was(recipe: Recipe) -> None:
    folder = save(recipe)
    model, optimizer = fresh(recipe, seed=1)
    manifest = load_training_checkpoint(folder, model, optimizer)
    expected_model, expected_optimizer = fresh(recipe)
    for name, tensor in expected_model.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    for name, tensor in expected_optimizer.tensors().items():
        assert torch.equal(optimizer.tensors()[name], tensor), name
    assert manifest == read_manifest(folder)
    assert manifest.position == POSITION
    assert recipe_from(manifest.recipe) == recipe
    assert manifest.order_fingerprint == "f" * 64
    assert manifest.versions["torch"] == torch.__version__


def test_the_manifest_has_the_hash_of_every_tensor_as_it_lies_in_the_file(recipe: Recipe) -> None:
    """The files are read by hand: eight bytes with the length of the header, the header, the tensors."""
    folder = save(recipe)
    manifest = json.loads((folder / "manifest.json").read_text())
    for file in ("model.safetensors", "optimizer.safetensors"):
        content = (folder / file).read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + length])
        header.pop("__metadata__", None)
        body = content[8 + length :]
        found = {name: hashlib.sha256(body[slice(*entry["data_offsets"])]).hexdigest() for name, entry in header.items()}
        assert found == manifest["tensors"][file]
    assert {"exp_avg.gpt_neox.embed_in.weight", "exp_avg_sq.embed_out.weight", "step"} <= manifest["tensors"][
        "optimizer.safetensors"
    ].keys()


def test_a_crash_at_any_point_leaves_this_one_absent_and_the_earlier_whole(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every write of the second checkpoint fails in turn, without the chance to clean up that an exception gives."""
    first = save(recipe)
    run = Path(recipe.run)
    before = {path.name: path.read_bytes() for path in first.iterdir()}
    write, calls = durable_files.write_flushed, 0

    class Crash(BaseException):
        pass

    def failing(path: Path, content: bytes) -> None:
        nonlocal calls
        calls += 1
        if calls == crash_at:
            path.write_bytes(content[: len(content) // 2])
            raise Crash
        write(path, content)

    monkeypatch.setattr(checkpoint, "write_flushed", failing)
    monkeypatch.setattr(durable_files.shutil, "rmtree", lambda *_, **__: None)
    crash_at, num_crashes = 0, 0
    while True:
        crash_at, calls = crash_at + 1, 0
        try:
            save(recipe, Position(step=4, num_updates=4, num_tokens=256))
            break
        except Crash:
            num_crashes += 1
            assert steps_of_run(run) == (3,)
    monkeypatch.undo()
    assert num_crashes == 5  # three files of the tokenizer, the optimizer, the manifest
    assert {path.name: path.read_bytes() for path in first.iterdir()} == before
    assert len(list(run.iterdir())) == 2 + num_crashes
    remove_partial(run)
    assert sorted(path.name for path in run.iterdir()) == ["step3", "step4"]


def test_an_exception_leaves_nothing(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(durable_files, "sync_folder", lambda folder: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save(recipe)
    assert list(Path(recipe.run).iterdir()) == []


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors"])
def test_a_flipped_bit_is_found_and_named(recipe: Recipe, file: str) -> None:
    folder = save(recipe)
    content = bytearray((folder / file).read_bytes())
    content[-1] ^= 1
    (folder / file).write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{file} is not what its manifest says, in .*; resume from another"):
        load_training_checkpoint(folder, *fresh(recipe))


def test_a_truncated_optimizer_state_is_told(recipe: Recipe) -> None:
    folder = save(recipe)
    content = (folder / "optimizer.safetensors").read_bytes()
    (folder / "optimizer.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=r"optimizer\.safetensors cannot be read"):
        load_training_checkpoint(folder, *fresh(recipe))


def test_a_folder_without_manifest_is_no_checkpoint(recipe: Recipe, tmp_path: Path) -> None:
    folder = save(recipe)
    (folder / "manifest.json").unlink()
    assert steps_of_run(Path(recipe.run)) == ()
    with pytest.raises(CheckpointError, match=r"has no manifest\.json"):
        read_manifest(folder)
    assert steps_of_run(tmp_path / "absent") == ()


def test_one_that_is_there_stays(recipe: Recipe) -> None:
    folder = save(recipe)
    before = (folder / "model.safetensors").read_bytes()
    assert save(recipe, seed=1) == folder
    assert (folder / "model.safetensors").read_bytes() == before
