"""A small data set and a recipe of a model that trains on it in a second."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.checkpoint_series import copied_series, half_series, trained_series
from tripod.text.byte_level import write_byte_tokenizer
from tripod.training.data.build import build_dataset
from tripod.training.recipe import Recipe
from tripod.training.recipe_file import recipe_from

__all__ = ["copied_series", "half_series", "trained_series"]  # fixtures

MakeRecipe = Callable[..., Recipe]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """For models so small that threads wait for each other longer than they work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `tokenizer/` and the data set `train`: sixty documents of counting, one token a byte."""
    folder = tmp_path_factory.mktemp("tiny-data")
    (folder / "text").mkdir()
    for number in range(60):
        lines = (f"{number} and {step} make {number + step}." for step in range(number % 7 + 1))
        (folder / "text" / f"{number:02}.txt").write_text("\n".join(lines), encoding="utf-8")
    write_byte_tokenizer(folder / "tokenizer")
    build_dataset([folder / "text"], folder / "tokenizer", folder / "train", append_eod=True)
    return folder


@pytest.fixture
def make_recipe(tiny_data: Path, tmp_path: Path) -> MakeRecipe:
    """A recipe of 12 steps of 4 rows, for two layers of 32; `section={...}` or `key=value` change it, `changes` are `a.b=c`."""

    def make(changes: tuple[str, ...] = (), **sections: Any) -> Recipe:
        content: dict[str, Any] = {
            "run": str(tmp_path / "run"),
            "num_steps": 12,
            "model": {"vocab_size": 259, "hidden_size": 32, "num_layers": 2, "num_heads": 2, "max_positions": 64},
            "data": {
                "prefixes": [str(tiny_data / "train")],
                "tokenizer": str(tiny_data / "tokenizer"),
                "valid_prefixes": [str(tiny_data / "train")],
                "maps_folder": str(tmp_path / "maps"),
            },
            "batch": {"rows": 4, "seq_length": 16},
            "optimizer": {"lr": 1e-2},
            "checkpoints": {"log_until": 4, "every": 5},
        }
        for key, value in sections.items():
            content[key] = {**content[key], **value} if isinstance(content.get(key), dict) else value
        return recipe_from(content, changes)

    return make
