"""What a task asks, and what comes back: plain frozen values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Continuation:
    """How likely is this text after that one? A space between is part of the continuation; an empty context is a text's beginning."""

    context: str
    text: str


@dataclass(frozen=True, slots=True)
class WholeText:
    """How likely is this text, however long it is?"""

    text: str


@dataclass(frozen=True, slots=True)
class Generation:
    """What follows, greedily?"""

    prompt: str
    until: tuple[str, ...]  # any of them ends the answer and is no part of it
    max_tokens: int


Ask: TypeAlias = Continuation | WholeText | Generation


@dataclass(frozen=True, slots=True)
class Likelihood:
    """The reply to a Continuation or a WholeText."""

    logprob: float  # natural log, of all its tokens
    num_tokens: int
    is_greedy: bool = False  # each token was the most likely one


@dataclass(frozen=True, slots=True)
class Generated:
    """The reply to a Generation."""

    text: str


Reply: TypeAlias = Likelihood | Generated


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One item of a task."""

    id: str
    asks: tuple[Ask, ...]
    gold: int | str = 0  # which of the asks is right, or the right answer
    lengths: tuple[int, ...] = ()  # of the choices, in characters, for acc_norm; of a text, its words and bytes
    example: str = ""  # prompt and right answer, as it stands before another question where examples are given
    group: str = ""  # a part of the task that is reported by itself, too
