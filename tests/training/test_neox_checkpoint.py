"""GPT-NeoX's files: any number of parts becomes the model that the parts compute, and back without a bit changed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from torch.nn.functional import gelu

from tripod.errors import CheckpointError, ConfigError
from tripod.models.gpt_neox import GPTNeoX, GPTNeoXConfig
from tripod.models.initialize import random_language_model
from tripod.ops.rope import RopeConfig
from tripod.training.neox_checkpoint import is_neox_checkpoint, merge_parts, read_neox_checkpoint, write_neox_checkpoint

CONFIG = GPTNeoXConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=128,
    num_layers=3,
    num_heads=4,
    max_positions=16,
    rope=RopeConfig(rotary_dim=2),
    hidden_act="gelu_new",
)


def a_model(dtype: torch.dtype = torch.float32) -> GPTNeoX:
    """Norms and biases are not ones and zeros here, as in a trained one."""
    model = random_language_model(CONFIG, seed=3)
    assert isinstance(model, GPTNeoX)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator) / 10)
    return model.to(dtype)


def same(one: GPTNeoX, other: GPTNeoX) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    return all(ours[name].dtype == theirs[name].dtype and torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("num_parts", [1, 2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_split_then_merged_is_the_same_model_bit_for_bit(tmp_path: Path, num_parts: int, dtype: torch.dtype) -> None:
    model = a_model(dtype)
    target = write_neox_checkpoint(model, tmp_path, step=12, num_parts=num_parts)
    assert target == tmp_path / "global_step12"
    again = read_neox_checkpoint(target)
    assert again.config == model.config
    assert same(again, model)
    assert same(read_neox_checkpoint(tmp_path), model)  # by the file `latest`
    assert torch.load(target / "mp_rank_00_model_states.pt", weights_only=True)["iteration"] == 12


def test_the_files_are_named_as_gpt_neox_names_them(tmp_path: Path) -> None:
    """Of 3 layers: 0 the embedding, 1 nothing, 2 to 4 the layers, 6 the last norm, 7 the output matrix."""
    target = write_neox_checkpoint(a_model(), tmp_path, step=0, num_parts=2)
    layers = [f"layer_{number:02}-model_{part:02}-model_states.pt" for number in (0, 1, 2, 3, 4, 6, 7) for part in (0, 1)]
    assert sorted(path.name for path in target.iterdir()) == [
        "configs",
        *layers,
        "mp_rank_00_model_states.pt",
        "mp_rank_01_model_states.pt",
    ]
    assert set(torch.load(target / layers[4], weights_only=True)) == {
        f"{module}.{kind}"
        for module in (
            "input_layernorm",
            "post_attention_layernorm",
            "attention.query_key_value",
            "attention.dense",
            "mlp.dense_h_to_4h",
            "mlp.dense_4h_to_h",
        )
        for kind in ("weight", "bias")
    }
    assert is_neox_checkpoint(target)
    assert not is_neox_checkpoint(target / "configs")


def test_merged_matrices_compute_what_their_parts_compute_together() -> None:
    """As a model-parallel MLP does: each part reads all of x, and what the parts write, biases too, is added up."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 8, generator=generator, dtype=torch.float64)
    up, up_bias = (torch.randn(3, *shape, generator=generator, dtype=torch.float64) for shape in ((4, 8), (4,)))
    down, down_bias = (torch.randn(3, *shape, generator=generator, dtype=torch.float64) for shape in ((8, 4), (8,)))
    expected = sum(gelu(x @ up[part].T + up_bias[part]) @ down[part].T + down_bias[part] for part in range(3))
    merged = {
        name: merge_parts(f"mlp.{name}", list(parts))
        for name, parts in (
            ("dense_h_to_4h.weight", up),
            ("dense_h_to_4h.bias", up_bias),
            ("dense_4h_to_h.weight", down),
            ("dense_4h_to_h.bias", down_bias),
        )
    }
    hidden = gelu(x @ merged["dense_h_to_4h.weight"].T + merged["dense_h_to_4h.bias"])
    # biases are added in float32
    assert torch.allclose(hidden @ merged["dense_4h_to_h.weight"].T + merged["dense_4h_to_h.bias"], expected, atol=1e-5)


def test_norms_are_the_mean_of_their_copies() -> None:
    first, second = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 2.0])
    assert merge_parts("input_layernorm.weight", [first, second]).tolist() == [2.0, 2.0]
    assert merge_parts("norm.bias", [first, second]).tolist() == [2.0, 2.0]
    third = torch.tensor([0.1, 0.7])
    assert torch.equal(merge_parts("post_attention_layernorm.bias", [third] * 3), third)  # without rounding


def test_tables_of_older_versions_are_passed_over_and_strangers_are_not(tmp_path: Path) -> None:
    target = write_neox_checkpoint(a_model(), tmp_path, step=1)
    path = target / "layer_02-model_00-model_states.pt"
    tensors = torch.load(path, weights_only=True)
    torch.save({**tensors, "attention.rotary_emb.inv_freq": torch.ones(1)}, path)
    assert same(read_neox_checkpoint(target), a_model())
    torch.save({**tensors, "mlp.gate.weight": torch.ones(1)}, path)
    with pytest.raises(CheckpointError, match=r"unexpected: layer_02 mlp\.gate\.weight"):
        read_neox_checkpoint(target)
    del tensors["mlp.dense_4h_to_h.bias"]
    torch.save(tensors, path)
    with pytest.raises(CheckpointError, match=r"missing: gpt_neox.layers.0.mlp.dense_4h_to_h.bias"):
        read_neox_checkpoint(target)


def test_a_missing_part_and_a_broken_file_are_named(tmp_path: Path) -> None:
    target = write_neox_checkpoint(a_model(), tmp_path, step=1, num_parts=2)
    spoilt = tmp_path / "spoilt"
    shutil.copytree(target, spoilt)
    (spoilt / "layer_03-model_01-model_states.pt").unlink()
    with pytest.raises(CheckpointError, match="layer 3 has no file of model_01"):
        read_neox_checkpoint(spoilt)
    (spoilt / "layer_03-model_01-model_states.pt").write_bytes(b"PK")
    with pytest.raises(CheckpointError, match=r"layer_03-model_01-model_states.pt cannot be read"):
        read_neox_checkpoint(spoilt)


def test_a_checkpoint_without_configuration_takes_the_runs(tmp_path: Path) -> None:
    target = write_neox_checkpoint(a_model(), tmp_path, step=1)
    settings = yaml.safe_load((target / "configs" / "tripod.yml").read_text())
    shutil.rmtree(target / "configs")
    with pytest.raises(ConfigError, match="its number of heads is not known"):
        read_neox_checkpoint(target)
    run = tmp_path / "run.yml"
    run.write_text(yaml.safe_dump({name.replace("_", "-"): value for name, value in settings.items()} | {"launcher": "slurm"}))
    assert same(read_neox_checkpoint(target, configs=[run]), a_model())


def test_parts_that_do_not_divide_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="parts=3 does not divide num_heads=4"):
        write_neox_checkpoint(a_model(), tmp_path, step=1, num_parts=3)
    write_neox_checkpoint(a_model(), tmp_path, step=1)
    with pytest.raises(ConfigError, match="global_step1 is there"):
        write_neox_checkpoint(a_model(), tmp_path, step=1)
