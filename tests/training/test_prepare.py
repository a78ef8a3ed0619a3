"""Tokenizer and data set out of texts: made once, and made again where a crash left them half made."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tripod.errors import ConfigError
from tripod.training.data.indexed_dataset import IndexedDataset
from tripod.training.prepare import is_prepared, prepare_data
from tripod.training.recipe import DataRecipe, SourceRecipe


@pytest.fixture
def data(tmp_path: Path) -> DataRecipe:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("the lantern hangs by the river, " * 40, encoding="utf-8")
    source = SourceRecipe(inputs=(str(tmp_path / "texts"),), vocab_size=270)
    return DataRecipe(prefixes=(str(tmp_path / "data" / "text"),), tokenizer=str(tmp_path / "data" / "tokenizer"), source=source)


def test_what_was_made_is_there_and_of_another_source_it_is_refused(data: DataRecipe, tmp_path: Path) -> None:
    assert not is_prepared(data)
    prepare_data(data, [tmp_path / "texts"])
    assert is_prepared(data)
    assert IndexedDataset.open(Path(data.prefixes[0])).num_documents == 1
    assert data.source is not None
    with pytest.raises(ConfigError, match="was made from"):
        is_prepared(replace(data, source=replace(data.source, vocab_size=280)))


def test_a_data_set_beside_the_tokenizer_of_a_later_broken_attempt_does_not_count(data: DataRecipe, tmp_path: Path) -> None:
    prepare_data(data, [tmp_path / "texts"])
    tokenizer = Path(data.tokenizer) / "tokenizer.json"
    tokenizer.unlink()
    (tmp_path / "texts" / "a.txt").write_text("quick foxes jump over lazy dogs, " * 40, encoding="utf-8")

    def crash(stage: str, done: int, total: int | None) -> None:
        if stage == "tokenise":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_data(data, [tmp_path / "texts"], progress=crash)
    assert tokenizer.is_file()  # the new one, with the old data set
    assert not is_prepared(data)
