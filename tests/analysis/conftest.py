"""A real series of checkpoints to study."""

from __future__ import annotations

from tests.analysis.planted import control_run, repeated_run
from tests.training.checkpoint_series import copied_series, trained_series
from tests.training.conftest import make_recipe, one_thread, tiny_data

__all__ = ["control_run", "copied_series", "make_recipe", "one_thread", "repeated_run", "tiny_data", "trained_series"]  # fixtures
