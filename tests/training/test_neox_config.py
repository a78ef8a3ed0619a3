"""GPT-NeoX's configuration files, those published for Pythia above all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tripod.errors import ConfigError
from tripod.training.neox_config import is_neox_config, merge_neox, neox_recipe
from tripod.training.recipe_file import read_recipe, recipe_from

BROKEN = ("pythia-12b", "pythia-12b-deduped")
SMALL = {
    "num-layers": 2,
    "hidden_size": 32,
    "num-attention-heads": 4,
    "seq-length": 16,
    "max-position-embeddings": 16,
    "pos-emb": "rotary",
    "train-iters": 100,
    "train_batch_size": 8,
    "train_micro_batch_size_per_gpu": 2,
    "padded_vocab_size": 256,
    "data-path": "data/text",
    "optimizer": {"type": "Adam", "params": {"lr": 0.001}},
}


@pytest.fixture
def configs(shared_data: Path) -> Path:
    return shared_data / "pythia-configs"


def test_sixteen_published_files_are_the_presets(configs: Path) -> None:
    """Our presets come from the papers' table; so does each file, read by its own way."""
    read = 0
    for path in sorted(configs.glob("*.yml")):
        if path.stem in BROKEN:
            continue
        recipe = read_recipe(path, ["batch.rows=1024"])
        preset = recipe_from({"preset": path.stem.removesuffix("-deduped"), "run": "r", "data": {"prefixes": ["x"], "tokenizer": "y"}})
        assert recipe.model.config() == preset.model.config()
        for name in ("num_steps", "batch", "optimizer", "schedule", "checkpoints", "seeds", "loss_scaling", "dropout"):
            assert getattr(recipe, name) == getattr(preset, name), (path.stem, name)
        assert recipe.model.initialization == preset.model.initialization
        assert recipe.precision == "fp16"  # the released 1b was bf16, which its file does not say
        assert len(recipe.checkpoints.steps(recipe.num_steps)) == 154
        assert recipe.run == f"runs/{path.stem}"
        read += 1
    assert read == 16


def test_the_missing_comma_of_the_published_12b_is_pointed_at(configs: Path) -> None:
    with pytest.raises(ConfigError, match=r'(?s)is not YAML.*line 19 has no comma at its end: "attention-config": ..."flash".'):
        read_recipe(configs / "pythia-12b.yml", ["batch.rows=1024"])


def test_the_swapped_layers_and_heads_of_the_published_12b_deduped_are_pointed_at(configs: Path) -> None:
    with pytest.raises(ConfigError, match=r"36 does not divide hidden-size=5120; .* num-layers: 36, num-attention-heads: 40"):
        read_recipe(configs / "pythia-12b-deduped.yml", ["batch.rows=1024"])


def test_a_file_that_does_not_say_its_rows_says_how_many_to_give(configs: Path) -> None:
    with pytest.raises(ConfigError, match=r"one thing to change.*\n  train_batch_size: is not given.* 16 \* 1 .*give batch.rows"):
        read_recipe(configs / "pythia-1b.yml")


def test_gpt_neox_defaults_stand_where_a_file_is_silent() -> None:
    recipe = recipe_from(neox_recipe(SMALL, name="small", source="small.yml"))
    model = recipe.model
    assert (model.is_parallel, model.is_tied, model.hidden_act, model.rotary_dim) == (False, True, "gelu", 8)
    assert (model.initialization, recipe.precision, recipe.schedule.kind) == ("normal-scaled", "fp32", "linear")
    assert (recipe.optimizer.beta2, recipe.optimizer.weight_decay, recipe.batch.rows, recipe.batch.micro_rows) == (0.999, 0.01, 8, 2)
    assert (recipe.data.split, recipe.validation is not None) == ("969,30,1", True)
    assert recipe.model.neox_config().is_parallel is False


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pos-emb": "alibi"}, "pos_emb: 'alibi'; .* only 'rotary'"),
        ({"norm": "rmsnorm"}, "norm: 'rmsnorm'"),
        ({"attention-config": [[["local", "global"], 1]]}, "attention_config: local;"),
        ({"init_method": "small_init"}, "init_method: small_init with scaled_normal; expected small_init with wang_init"),
        ({"lr-decay-iters": 50}, "lr_decay_iters: 50; .*train-iters=100"),
        ({"moe_num_experts": 8}, "moe_num_experts: 8; Tripod does not know this setting"),
        ({"optimizer": {"type": "Lion", "params": {"lr": 0.1}}}, "optimizer.type: 'Lion'"),
        ({"attention-dropout": 0.1, "norm": "rmsnorm"}, "2 things to change in small.yml"),
    ],
)
def test_what_cannot_be_done_as_a_file_says_is_told(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        neox_recipe({**SMALL, **changes}, name="small", source="small.yml")


def test_checkpoints_that_are_not_powers_are_kept_too() -> None:
    rule = recipe_from(neox_recipe({**SMALL, "extra-save-iters": [0, 1, 2, 3, 4, 10, 16], "checkpoint-factor": 50}, name="s", source="s"))
    assert rule.checkpoints.steps(100) == (0, 1, 2, 3, 4, 10, 16, 50, 100)


def test_files_are_merged_with_hyphens_or_underscores_and_may_not_contradict() -> None:
    sizes = {key: SMALL[key] for key in ("num-layers", "hidden_size", "num-attention-heads")}
    rest = {key: value for key, value in SMALL.items() if key not in sizes}
    merged = merge_neox({Path("sizes.yml"): sizes, Path("rest.yml"): rest})
    assert is_neox_config(merged)
    assert not is_neox_config(rest)
    assert recipe_from(neox_recipe(merged, name="s", source="s")) == recipe_from(neox_recipe(SMALL, name="s", source="s"))
    with pytest.raises(ConfigError, match=r"num_layers is in sizes.yml and in other.yml"):
        merge_neox({Path("sizes.yml"): sizes, Path("other.yml"): {"num_layers": 2}})
