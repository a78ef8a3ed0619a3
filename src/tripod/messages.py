"""What is said to a model and what it says back: plain frozen values that travel through all floors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool"]
FinishReason = Literal["stop", "length", "abort"]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A model asks for a tool. `arguments` is the JSON text as the model wrote it."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    text: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None  # role "tool": the call that this answers


def system(text: str) -> Message:
    """An instruction that stands above the conversation."""
    return Message("system", text)


def user(text: str) -> Message:
    """A turn of the person asking."""
    return Message("user", text)


def assistant(text: str) -> Message:
    """A turn of the model."""
    return Message("assistant", text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens counted by whoever ran the model."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0  # of the prompt tokens, those whose keys and values were reused

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
            cached_tokens=self.cached_tokens + other.cached_tokens,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Seconds that one request spent in each phase, on one process's monotonic clock."""

    queue_s: float = 0.0  # arrival to first step
    prefill_s: float = 0.0  # first step to first token
    decode_s: float = 0.0  # first token to last


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token with its natural-log probability under the model's unmodified distribution (temperature 1, no penalties)."""

    token_id: int
    token: str
    token_bytes: bytes
    logprob: float
    top: tuple[TokenLogprob, ...] = ()  # the most likely alternatives, best first; their own `top` is empty


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A model's whole answer: the fold over its events."""

    message: Message
    finish_reason: FinishReason
    usage: Usage
    timings: Timings = Timings()
    model: str = ""
    mode: str = ""  # how it was computed; empty where a server does not tell
    token_ids: tuple[int, ...] = ()  # empty where a server does not tell
    logprobs: tuple[TokenLogprob, ...] = ()  # empty unless asked for
    step_ids: tuple[int, ...] = ()  # the engine's step that chose each of the tokens; empty where a server does not tell
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)  # what a server said beyond the standard

    @property
    def text(self) -> str:
        return self.message.text
