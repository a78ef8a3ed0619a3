"""A model whose training is known."""

from __future__ import annotations

from tests.rag.planted import planted

__all__ = ["planted"]  # a fixture
