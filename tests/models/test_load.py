"""The layouts in which checkpoints come, and every way in which one can be broken: each named, none guessed around."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.models import reference
from tripod.errors import CheckpointError, ConfigError
from tripod.models.language_model import LanguageModel
from tripod.models.load import load_encoder, load_language_model
from tripod.models.save import save_checkpoint
from tripod.ops.attention import causal_attention

TOKENS = torch.arange(12)[None]


def our_logits(model: LanguageModel) -> Tensor:
    with torch.inference_mode():
        return model.logits(model.hidden(TOKENS, TOKENS, causal_attention))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    reference.save("llama", tmp_path)
    return tmp_path


def change_tensors(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")


def change_config(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def as_pickle(folder: Path, name: str = "pytorch_model.bin") -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / name)
    (folder / "model.safetensors").unlink()


def test_shards_of_safetensors_are_one_checkpoint(tmp_path: Path) -> None:
    theirs = reference.make("llama")
    theirs.save_pretrained(tmp_path, max_shard_size="40kB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert (our_logits(load_language_model(tmp_path)) - reference.logits(theirs, TOKENS)).abs().max() < 1e-4


def test_pickled_weights_whole_and_in_shards_are_the_same_model(checkpoint: Path) -> None:
    expected = our_logits(load_language_model(checkpoint))
    tensors = load_file(checkpoint / "model.safetensors")
    as_pickle(checkpoint)
    assert torch.equal(our_logits(load_language_model(checkpoint)), expected)
    (checkpoint / "pytorch_model.bin").unlink()
    names = sorted(tensors)
    files = {name: f"pytorch_model-0000{1 + i % 2}-of-00002.bin" for i, name in enumerate(names)}
    for file in set(files.values()):
        torch.save({name: tensors[name] for name in names if files[name] == file}, checkpoint / file)
    (checkpoint / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": files}))
    assert torch.equal(our_logits(load_language_model(checkpoint)), expected)


def test_the_pickles_of_old_torch_versions_open_too(checkpoint: Path) -> None:
    expected = our_logits(load_language_model(checkpoint))
    torch.save(load_file(checkpoint / "model.safetensors"), checkpoint / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    (checkpoint / "model.safetensors").unlink()
    assert torch.equal(our_logits(load_language_model(checkpoint)), expected)


class Planted:
    """Pickles to a call that writes a file: what a malicious checkpoint does when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_a_pickle_cannot_run_code(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    torch.save({"model.norm.weight": Planted(checkpoint / "ran")}, checkpoint / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
        load_language_model(checkpoint)
    assert not (checkpoint / "ran").exists()


def test_tables_that_old_versions_saved_are_ignored_by_name(tmp_path: Path) -> None:
    theirs = reference.save("gpt_neox parallel", tmp_path)
    change_tensors(
        tmp_path,
        lambda tensors: tensors.update(
            {
                "gpt_neox.layers.0.attention.bias": torch.ones(1, 1, 8, 8, dtype=torch.uint8),
                "gpt_neox.layers.1.attention.masked_bias": torch.tensor(-1e9),
                "gpt_neox.layers.1.attention.rotary_emb.inv_freq": torch.ones(2),
            }
        ),
    )
    assert (our_logits(load_language_model(tmp_path)) - reference.logits(theirs, TOKENS)).abs().max() < 1e-4


def test_a_tied_model_may_repeat_its_embedding_but_not_bring_another_head(tmp_path: Path) -> None:
    reference.save("llama tied", tmp_path)
    expected = our_logits(load_language_model(tmp_path))
    change_tensors(tmp_path, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}))
    assert torch.equal(our_logits(load_language_model(tmp_path)), expected)
    change_tensors(tmp_path, lambda tensors: tensors["lm_head.weight"].add_(1.0))
    with pytest.raises(CheckpointError, match=r"unexpected: lm_head\.weight"):
        load_language_model(tmp_path)


def test_missing_extra_and_misshapen_tensors_are_all_named_at_once(checkpoint: Path) -> None:
    def damage(tensors: dict[str, Tensor]) -> None:
        del tensors["model.layers.1.mlp.up_proj.weight"]
        tensors["model.layers.0.self_attn.q_norm.weight"] = torch.ones(8)
        tensors["model.layers.7.mlp.up_proj.weight"] = torch.ones(8)
        tensors["model.norm.weight"] = torch.ones(47)

    change_tensors(checkpoint, damage)
    with pytest.raises(CheckpointError) as error:
        load_language_model(checkpoint)
    assert "missing: model.layers.1.mlp.up_proj.weight;" in str(error.value)
    assert "unexpected: model.layers.0.self_attn.q_norm.weight, model.layers.7.mlp.up_proj.weight;" in str(error.value)
    assert "wrongly shaped: model.norm.weight is [47], expected [48]" in str(error.value)
    assert str(checkpoint) in str(error.value)


@pytest.mark.parametrize("kept", [0, 5, 100, 20_000])
@pytest.mark.parametrize("pickled", [False, True])
def test_a_truncated_file_is_named(checkpoint: Path, kept: int, pickled: bool) -> None:
    if pickled:
        as_pickle(checkpoint)
    path = checkpoint / ("pytorch_model.bin" if pickled else "model.safetensors")
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=rf"{path.name} is truncated or corrupt .* its size is {kept} bytes"):
        load_language_model(checkpoint)


def test_an_absent_shard_is_named(tmp_path: Path) -> None:
    reference.make("llama").save_pretrained(tmp_path, max_shard_size="40kB")
    victim = sorted(tmp_path.glob("model-*.safetensors"))[1]
    victim.unlink()
    with pytest.raises(CheckpointError, match=rf"{victim.name} is absent"):
        load_language_model(tmp_path)


def test_an_index_cannot_reach_outside_its_folder(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint.parent / "outside.safetensors")
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"model.norm.weight": "../outside.safetensors"}}))
    with pytest.raises(CheckpointError, match="outside of its own folder"):
        load_language_model(checkpoint)


def test_a_folder_without_a_config_is_refused_with_what_it_holds(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no config\.json.*holds nothing"):
        load_language_model(tmp_path)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(CheckpointError, match=r"holds notes\.txt"):
        load_language_model(tmp_path)
    with pytest.raises(CheckpointError, match="is not a folder"):
        load_language_model(tmp_path / "absent")


def test_a_config_without_weights_or_without_json_is_refused(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no weights; expected one of model\.safetensors"):
        load_language_model(checkpoint)
    (checkpoint / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read as JSON"):
        load_language_model(checkpoint)


def test_an_unknown_architecture_is_refused_with_the_known_ones(checkpoint: Path) -> None:
    change_config(checkpoint, model_type="mamba")
    with pytest.raises(CheckpointError, match=r"'mamba'.*supported: gpt_neox, llama, mistral, qwen2, qwen3"):
        load_language_model(checkpoint)
    with pytest.raises(CheckpointError, match=r"'mamba'.*supported: bert"):
        load_encoder(checkpoint)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"hidden_act": "relu6"}, "hidden_act 'relu6'.*supported: silu"),
        ({"num_key_value_heads": 4}, "num_kv_heads=4 does not divide num_heads=6"),
        ({"hidden_size": None}, "hidden_size=None; expected a whole number"),
        ({"rope_parameters": {"rope_type": "spiral"}}, "'spiral' .* not supported"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantized"),
    ],
)
def test_an_unsupported_setting_is_named_with_the_folder(checkpoint: Path, values: dict[str, object], message: str) -> None:
    change_config(checkpoint, **values)
    with pytest.raises(ConfigError, match=message) as error:
        load_language_model(checkpoint)
    assert str(checkpoint) in str(error.value)


@pytest.mark.parametrize(
    "values",
    [
        {"num_attention_heads": 0},
        {"vocab_size": -1},
        {"num_key_value_heads": "two"},
        {"max_position_embeddings": "many"},
        {"rms_norm_eps": "small"},
        {"rope_parameters": 3},
        {"rope_parameters": {"rope_type": "yarn", "factor": "2"}},
    ],
    ids=str,
)
def test_a_config_with_values_that_no_model_has_is_refused_by_its_folder(checkpoint: Path, values: dict[str, object]) -> None:
    change_config(checkpoint, **values)
    with pytest.raises(ConfigError) as refused:
        load_language_model(checkpoint)
    assert str(checkpoint) in str(refused.value)


def test_a_pickle_damaged_anywhere_is_named(checkpoint: Path) -> None:
    as_pickle(checkpoint)
    path = checkpoint / "pytorch_model.bin"
    whole, chance = path.read_bytes(), random.Random(0)
    refusals: list[str] = []
    for _ in range(60):
        damaged = bytearray(whole)
        for _ in range(10):
            damaged[chance.randrange(3000)] = chance.randrange(256)  # the table of tensors; the numbers behind it cannot be checked
        path.write_bytes(damaged)
        try:
            load_language_model(checkpoint)
        except CheckpointError as refused:
            refusals.append(str(refused))
    assert len(refusals) > 30
    assert all(str(checkpoint) in refusal for refusal in refusals)


def test_saving_over_a_checkpoint_leaves_its_other_files_and_no_temporary_ones(checkpoint: Path) -> None:
    model = load_language_model(checkpoint)
    (checkpoint / "tokenizer.json").write_text("{}")
    before = {path.name for path in checkpoint.iterdir()}
    save_checkpoint(model, checkpoint)
    assert {path.name for path in checkpoint.iterdir()} == before
    assert torch.equal(our_logits(load_language_model(checkpoint)), our_logits(model))


def test_building_an_empty_model_does_not_load_torchs_compiler(tmp_path: Path) -> None:
    from tests.engine.tiny_models import NEOX, tiny_model

    save_checkpoint(tiny_model(NEOX), tmp_path)
    program = (
        "import sys; from pathlib import Path; from tripod.models.load import empty_language_model; "
        "model = empty_language_model(Path(sys.argv[1])); "
        "print(model.embedding.weight.device, 'torch._dynamo.utils' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.split() == ["meta", "False"]


def test_matrices_that_will_be_packed_stay_in_the_file_and_all_else_is_copied(tmp_path: Path) -> None:
    from tests.engine.tiny_models import NEOX, tiny_model

    saved = tiny_model(NEOX)
    save_checkpoint(saved, tmp_path)
    mapped = load_language_model(tmp_path, dtype=torch.bfloat16, keeps_linear_mapped=True)
    for name, tensor in mapped.state_dict().items():
        is_matrix = tensor.ndim == 2 and name != "embedding.weight"
        assert tensor.dtype is (torch.float32 if is_matrix else torch.bfloat16), name
        assert torch.equal(tensor, saved.state_dict()[name].to(tensor.dtype)), name
