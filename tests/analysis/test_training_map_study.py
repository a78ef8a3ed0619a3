from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

import tripod
from tripod.analysis.checkpoints import Checkpoint, find_checkpoints
from tripod.analysis.study import run_study
from tripod.analysis.training_map_study import TrainingMaps, weight_statistics
from tripod.errors import ConfigError


def test_the_statistics_are_of_all_matrices_and_of_all_vectors(trained_series: Path) -> None:
    folder = trained_series / "step64"
    tensors = load_file(folder / "model.safetensors")
    found = weight_statistics(Checkpoint("run", folder))
    matrices = np.concatenate([tensor.numpy().ravel() for tensor in tensors.values() if tensor.ndim > 1])
    assert found["weights l2"] == pytest.approx(float(np.linalg.norm(matrices)), rel=1e-5)
    assert found["vectors largest"] == max(float(tensor.abs().max()) for tensor in tensors.values() if tensor.ndim == 1)


def test_a_map_gives_each_checkpoint_of_each_run_a_state(trained_series: Path, copied_series: Path, tmp_path: Path) -> None:
    other = copied_series.rename(copied_series.with_name("other"))
    checkpoints = find_checkpoints([str(trained_series), str(other)])
    table = tripod.run(run_study(TrainingMaps(max_states=3), checkpoints, tmp_path)).table
    assert len(table) == len(checkpoints)
    ours, theirs = (table.where(run=run).column("state") for run in ("run", "other"))
    assert ours == theirs  # the same weights
    assert ours[0] == 0
    assert max(int(str(state)) for state in ours) >= 1
    with pytest.raises(ConfigError, match="a map needs two runs"):
        tripod.run(run_study(TrainingMaps(), find_checkpoints([str(trained_series)]), tmp_path))
