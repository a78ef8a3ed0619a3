"""Packed weights that were kept are those that would be packed now; whatever else lies in the cache is not used."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.models.test_pack import NEOX, QWEN
from tripod.models import native_blocks, native_parts, packed_file
from tripod.models.gpt_neox import GPTNeoXConfig
from tripod.models.initialize import random_language_model
from tripod.models.llama import LlamaConfig
from tripod.models.load import load_language_model
from tripod.models.save import save_checkpoint
from tripod.ops.attention import causal_attention
from tripod.ops.kernels.cpu import library
from tripod.ops.linear import WeightFormat

pytestmark = pytest.mark.skipif(library.why_not() is not None, reason=str(library.why_not()))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRIPOD_PACKED_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(packed_file, "MIN_BYTES", 0)
    return tmp_path / "cache"


def save(folder: Path, config: GPTNeoXConfig | LlamaConfig, seed: int = 3) -> Path:
    folder.mkdir(exist_ok=True)
    save_checkpoint(random_language_model(config, seed), folder)
    return folder


def packed_logits(folder: Path, weight_format: WeightFormat) -> Tensor:
    model = native_blocks.pack_native(load_language_model(folder, keeps_linear_mapped=True), weight_format, folder)
    token_ids = torch.randint(0, 259, (20,), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return model.logits(model.hidden(token_ids, torch.arange(20), _attend))


def _attend(layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float, window: int | None = None) -> Tensor:
    heads = [tensor.contiguous()[None] for tensor in (query, key, value)]
    return causal_attention(layer, *heads, scale=scale, window=window)[0].contiguous()


def forbid_packing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("packed again")

    monkeypatch.setattr(native_parts, "pack_linear", refuse)
    monkeypatch.setattr(native_parts, "pack_gate_up", refuse)


@pytest.mark.parametrize("config", [NEOX, QWEN], ids=["gpt-neox", "qwen2, tied"])
@pytest.mark.parametrize("weight_format", ["f32", "bf16", "int8", "int4", "int4-128"])
def test_the_second_start_packs_nothing_and_gives_the_same_bits(
    config: GPTNeoXConfig | LlamaConfig, weight_format: WeightFormat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save(tmp_path / "model", config)
    first = packed_logits(folder, weight_format)
    forbid_packing(monkeypatch)
    assert torch.equal(packed_logits(folder, weight_format), first)


def test_other_weights_in_the_same_place_are_packed_anew(tmp_path: Path) -> None:
    first = packed_logits(save(tmp_path / "model", NEOX), "bf16")
    second = packed_logits(save(tmp_path / "model", NEOX, seed=4), "bf16")
    assert not torch.equal(second, first)


@pytest.mark.parametrize(
    "damage", [lambda content: content[:-64], lambda content: content + bytes(64), lambda content: bytes(len(content))]
)
def test_a_damaged_file_is_not_used_and_is_replaced(damage: object, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save(tmp_path / "model", NEOX)
    first = packed_logits(folder, "int8")
    [kept] = cache.glob("*.bin")
    kept.write_bytes(damage(kept.read_bytes()))  # type: ignore[operator]
    assert torch.equal(packed_logits(folder, "int8"), first)
    forbid_packing(monkeypatch)
    assert torch.equal(packed_logits(folder, "int8"), first)


def test_what_was_used_longest_ago_makes_room(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [save(tmp_path / name, NEOX, seed) for seed, name in enumerate(("a", "b", "c"))]
    for age, folder in ((30, folders[0]), (20, folders[1])):
        before = set(cache.glob("*.bin"))
        packed_logits(folder, "bf16")
        [new] = set(cache.glob("*.bin")) - before
        os.utime(new, (1e9 - age, 1e9 - age))
        if age == 30:
            oldest = new
    monkeypatch.setattr(packed_file, "MAX_BYTES", int(2.5 * oldest.stat().st_size))
    packed_logits(folders[2], "bf16")
    assert not oldest.exists()
    assert len(list(cache.glob("*.bin"))) == 2


def test_nothing_is_kept_where_it_is_switched_off(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIPOD_PACKED_CACHE", "off")
    packed_logits(save(tmp_path / "model", NEOX), "bf16")
    assert not cache.exists()
