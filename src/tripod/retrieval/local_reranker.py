"""A `Reranker` on a cross-encoder in a local folder, such as cross-encoder/ms-marco-MiniLM-L6-v2."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from tripod.documents import Passage
from tripod.errors import CheckpointError

if TYPE_CHECKING:
    from tripod.engine.cross_encode import CrossEncoder


class LocalReranker:
    """Reads the question and each passage together. The weights are loaded by the first passage.

    Args:
        folder: a BertForSequenceClassification in the Hugging Face layout, with one label.

    Raises:
        CheckpointError: there is no config.json in the folder.
    """

    def __init__(self, folder: Path) -> None:
        if not (folder / "config.json").is_file():
            raise CheckpointError(f"{folder} holds no cross-encoder; expected config.json, weights and tokenizer.json")
        self.folder = folder
        self._encoder: CrossEncoder | None = None
        self._encoding = anyio.CapacityLimiter(1)  # one list at a time: it takes all cores anyway

    async def rerank(self, question: str, passages: Sequence[Passage]) -> list[float]:
        """Logits, in the order of the passages."""
        return await anyio.to_thread.run_sync(self._score, question, [passage.text for passage in passages], limiter=self._encoding)

    def _score(self, question: str, texts: list[str]) -> list[float]:
        if self._encoder is None:
            from tripod.engine.cross_encode import CrossEncoder

            self._encoder = CrossEncoder.load(self.folder)
        return self._encoder.score(question, texts)
