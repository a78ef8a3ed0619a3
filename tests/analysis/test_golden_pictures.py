"""The pictures of the documentation are those of the tables beside them."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

DOCS = Path(__file__).parents[2] / "docs"
TABLES = sorted((DOCS / "studies").glob("*.parquet"))


@pytest.mark.parametrize("table", TABLES, ids=[path.stem for path in TABLES])
def test_a_picture_is_drawn_from_its_table_as_the_build_of_the_documentation_does(table: Path, tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("draw_studies", DOCS / "hooks" / "draw_studies.py")
    assert spec is not None
    assert spec.loader is not None
    hook = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hook)
    shutil.copy(table, tmp_path)
    assert hook.draw(tmp_path) == [tmp_path / f"{table.stem}.png"]
    drawn, kept = imread(tmp_path / f"{table.stem}.png"), imread(table.with_suffix(".png"))
    assert drawn.shape == kept.shape
    assert np.abs(drawn - kept).mean() < 0.01  # another version of matplotlib may round a line otherwise
    assert hook.draw(tmp_path) == []  # the same bytes are not written again


def test_the_studies_have_their_pictures() -> None:
    names = {path.stem for path in TABLES}
    assert names >= {
        "memorization",
        "predictable-memorization",
        "term-frequency",
        "model-statistics",
        "seeds",
        "gender-intervention",
        "routing",
    }
    page = (DOCS / "studies" / "index.md").read_text(encoding="utf-8")
    assert all(f"]({name}.png)" in page for name in names)
