"""Examples that are like the question: few-shot prompting with those that help most (Liu et al. 2022, arXiv:2101.06804)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio

from tripod.errors import ConfigError
from tripod.messages import assistant, user
from tripod.prompts import Part, Prompt
from tripod.protocols import Embedder

if TYPE_CHECKING:
    from tripod.protocols import Vectors


@dataclass(frozen=True, slots=True)
class Example:
    """What was asked, and how it should be answered."""

    question: str
    answer: str


class FewShot:
    """Chooses examples by the similarity of their questions. Each is embedded once, at the first choice.

    Raises:
        ConfigError: there are no examples.
    """

    def __init__(self, examples: Sequence[Example], embedder: Embedder) -> None:
        if not examples:
            raise ConfigError("there are no examples to choose from; give at least one")
        self.examples = tuple(examples)
        self._embedder = embedder
        self._embedding = anyio.Lock()
        self._vectors: Vectors | None = None  # [N, dim]

    async def nearest(self, question: str, k: int = 4) -> list[Example]:
        """The k most similar, the most similar last: what stands nearest to the question counts most. Equals keep their order."""
        async with self._embedding:
            if self._vectors is None:
                self._vectors = await self._embedder.embed([example.question for example in self.examples], kind="passage")
        [asked] = await self._embedder.embed([question], kind="query")
        scores = self._vectors @ asked
        best = sorted(range(len(self.examples)), key=lambda i: -float(scores[i]))[:k]
        return [self.examples[i] for i in reversed(best)]

    async def parts(self, question: str, k: int = 4) -> tuple[Part, ...]:
        """The same as turns of a conversation, to stand before the question in a prompt."""
        nearest = await self.nearest(question, k)
        return Prompt.of([turn for e in nearest for turn in (user(e.question), assistant(e.answer))]).parts if nearest else ()
