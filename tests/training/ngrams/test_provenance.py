"""Where a document came from, of two data sets whose documents have the same numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.conftest import MakeRecipe
from tripod.errors import ConfigError
from tripod.training.data.build import build_dataset
from tripod.training.ngrams.provenance import Provenance
from tripod.training.run import Run


def test_a_document_is_looked_up_in_its_own_data_set(make_recipe: MakeRecipe, tiny_data: Path, tmp_path: Path) -> None:
    prefixes = []
    for name in ("whales", "lamps"):
        (tmp_path / name).mkdir()
        for number in range(40):
            (tmp_path / name / f"{name}{number:02}.txt").write_text(f"{name} of number {number}.", encoding="utf-8")
        build_dataset([tmp_path / name], tiny_data / "tokenizer", tmp_path / f"{name}-data", append_eod=True)
        prefixes.append(str(tmp_path / f"{name}-data"))
    run = Run.begin(make_recipe(data={"prefixes": prefixes, "weights": [1, 1]}))
    provenance = Provenance.open(str(run.folder))
    for name in ("whales", "lamps"):
        [span, *_] = provenance.trace(list(f"{name} of".encode())).spans
        records = [provenance.record(one) for one in span.seen]
        assert len(records) > 2
        assert all(record is not None and record.source.endswith(".txt") and name in record.source for record in records)


def test_a_step_behind_the_end_of_the_run_is_refused(make_recipe: MakeRecipe) -> None:
    run = Run.begin(make_recipe())
    assert Provenance.open(f"{run.folder}@step12").step == Provenance.open(str(run.folder)).step == 12
    with pytest.raises(ConfigError, match="step 13 was asked for"):
        Provenance.open(f"{run.folder}@step13")
