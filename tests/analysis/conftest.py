"""A real series of checkpoints to study."""

from __future__ import annotations

from tests.training.checkpoint_series import copied_series, trained_series

__all__ = ["copied_series", "trained_series"]  # fixtures
