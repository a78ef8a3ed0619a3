"""Draws the pictures of docs/studies/ from the tables beside them, when the documentation is built.

A table is what `tripod study NAME` wrote as table.parquet, under the name of its study; see docs/studies/index.md for the commands.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def draw(folder: Path) -> list[Path]:
    """Draw every table of a folder; a picture that would be the same is left alone. Returns what was written."""
    from tripod.analysis.registry import study_class
    from tripod.analysis.study import save_picture
    from tripod.evaluation.table import Table

    written = []
    for path in sorted(folder.glob("*.parquet")):
        with tempfile.TemporaryDirectory() as name:
            drawn = Path(name) / f"{path.stem}.png"
            save_picture(study_class(path.stem)(), Table.read(path), [drawn])
            target = path.with_suffix(".png")
            if not target.is_file() or target.read_bytes() != drawn.read_bytes():
                target.write_bytes(drawn.read_bytes())
                written.append(target)
    return written


def on_pre_build(config: Any) -> None:
    """Called by mkdocs."""
    sys.path.insert(0, str(ROOT / "src"))
    draw(Path(config["docs_dir"]) / "studies")
