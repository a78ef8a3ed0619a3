"""Sums and products to be worked out by a model, as Pythia's study of term frequency asks them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Literal

from tripod.errors import ConfigError

Operation = Literal["addition", "multiplication"]
WORDS = {"addition": "plus", "multiplication": "times"}
MAX_TOKENS = 16  # of an answer, which ends at its line
_ANSWER = re.compile(r"\d{1,5}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One item: `first` is the operand whose frequency is studied."""

    operation: str
    first: int
    second: int
    prompt: str

    @property
    def answer(self) -> int:
        return result(self.operation, self.first, self.second)

    def is_right(self, reply: str) -> bool:
        """Whether the first run of one to five digits is the answer."""
        match = _ANSWER.search(reply)
        return match is not None and int(match[0]) == self.answer


def questions(operation: str, *, shots: int, num_first: int = 100, num_second: int = 50, seed: int = 0) -> Iterator[Question]:
    """All items of an operation: first operands from 0, second ones from 1. Examples have other first operands, drawn by the seed.

    Raises:
        ConfigError: an unknown operation, nothing to ask, or examples of a single first operand.
    """
    if operation not in WORDS:
        raise ConfigError(f"operation {operation!r}; known are {', '.join(WORDS)}")
    if shots < 0 or num_first < 1 or num_second < 1:
        raise ConfigError(f"shots={shots}, num_first={num_first}, num_second={num_second}; give at least 0, 1 and 1")
    if shots and num_first < 2:
        raise ConfigError(f"shots={shots} with num_first={num_first}: examples need another first operand")
    for first in range(num_first):
        for second in range(1, num_second + 1):
            drawn = Random(f"{seed} {operation} {shots} {first} {second}")
            examples = []
            for _ in range(shots):
                other = drawn.randrange(num_first - 1)
                other, with_it = other + (other >= first), drawn.randint(1, num_second)
                examples.append(f"{_asked(operation, other, with_it)} {result(operation, other, with_it)}")
            prompt = "\n\n".join([*examples, _asked(operation, first, second)])
            yield Question(operation=operation, first=first, second=second, prompt=prompt)


def result(operation: str, first: int, second: int) -> int:
    return first + second if operation == "addition" else first * second


def _asked(operation: str, first: int, second: int) -> str:
    return f"Q:What is {first} {WORDS[operation]} {second}? A:"
