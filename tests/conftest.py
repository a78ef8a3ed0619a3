"""Where the tests find real inputs: `TRIPOD_SHARED`, or the folder `shared` beside the checkout. Tests that need it skip without it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.rag.planted import Planted

# One thread for torch and for the kernels, here and in the processes that tests start: the models are so small that threads would wait
# for each other longer than they work. Read when torch is imported. Tests of several threads ask for them by name.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TRITON_INTERPRET", "1")  # kernels for GPUs are tested on the CPU; read when Triton is imported

_SHARED = Path(os.environ.get("TRIPOD_SHARED", Path(__file__).parents[2] / "shared"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data files (cranfield, squad-dev, stories260K, ...); the test skips where it is absent."""
    folder = _SHARED / "data"
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder}; set TRIPOD_SHARED to a folder that holds data/")
    return folder


@pytest.fixture(scope="session")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    """A small model whose training is known; it takes some seconds."""
    from tests.rag.planted import train_planted

    return train_planted(tmp_path_factory.mktemp("planted"))
