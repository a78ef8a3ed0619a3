"""Examples that are like the question."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import pytest

from tripod.chat.few_shot import Example, FewShot
from tripod.errors import ConfigError
from tripod.messages import assistant, user
from tripod.prompts import Part, Prompt

if TYPE_CHECKING:
    from tripod.protocols import Vectors


class Compass:
    """Embeds a number of degrees as its direction, so that similarity can be worked out by hand."""

    fingerprint = "compass"
    dim = 2

    def __init__(self) -> None:
        self.batches: list[list[str]] = []

    async def embed(self, texts: Sequence[str], *, kind: Literal["query", "passage"]) -> Vectors:
        self.batches.append(list(texts))
        angles = np.radians([float(text) for text in texts])
        return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


EXAMPLES = [Example("0", "east"), Example("90", "north"), Example("180", "west"), Example("45", "north-east")]


def test_the_most_similar_stands_last_and_each_example_is_embedded_once() -> None:
    async def choose() -> tuple[list[Example], list[Example]]:
        return await few.nearest("80", k=3), await few.nearest("170", k=1)

    compass = Compass()
    few = FewShot(EXAMPLES, compass)
    first, second = asyncio.run(choose())
    assert [example.answer for example in first] == ["east", "north-east", "north"]  # 80, 35 and 10 degrees away
    assert [example.answer for example in second] == ["west"]
    assert compass.batches == [["0", "90", "180", "45"], ["80"], ["170"]]


def test_as_parts_they_are_turns_before_the_question() -> None:
    async def asked() -> Prompt:
        return Prompt((Part("Name it.", "system", "system"), *await FewShot(EXAMPLES, Compass()).parts("50", k=1), Part("50")))

    assert asyncio.run(asked()).messages[1:] == (user("45"), assistant("north-east"), user("50"))
    assert asyncio.run(FewShot(EXAMPLES, Compass()).parts("50", k=0)) == ()


def test_without_examples_there_is_nothing_to_choose() -> None:
    with pytest.raises(ConfigError, match="give at least one"):
        FewShot([], Compass())
