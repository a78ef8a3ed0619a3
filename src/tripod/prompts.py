"""A prompt is a value: parts that keep their identity from the application down to the engine's cache.

A function returns a `Prompt`; it prints as text before anyone pays for it, and `str(prompt)` hides nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from tripod.errors import RequestError
from tripod.messages import Message, Role, ToolCall

Kind = Literal["system", "tool", "passage", "history", "question", "text"]


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of a prompt. Parts with equal `id` hold equal text, so their keys and values may be shared."""

    text: str
    role: Role = "user"
    kind: Kind = "text"
    id: str = ""  # such as a passage's id; empty where nothing names it
    tool_calls: tuple[ToolCall, ...] = ()  # kind "history" only, as in `Message`
    tool_call_id: str | None = None


@dataclass(frozen=True, slots=True)
class Prompt:
    """Parts in order. Neighbouring parts of one role become one message, joined by a blank line."""

    parts: tuple[Part, ...]

    @staticmethod
    def of(source: str | Prompt | Iterable[Message]) -> Prompt:
        """A question, a conversation or a prompt, as a prompt.

        Raises:
            RequestError: the conversation has no turn.
        """
        if isinstance(source, Prompt):
            return source
        if isinstance(source, str):
            return Prompt((Part(source, kind="question"),))
        parts = tuple(_part(message) for message in source)
        if not parts:
            raise RequestError("the conversation has no message, so there is nothing to answer; give at least one", param="messages")
        return Prompt(parts)

    @property
    def messages(self) -> tuple[Message, ...]:
        """The conversation that a chat model is given."""
        turns: list[list[Part]] = []
        for part in self.parts:
            if turns and _continues(turns[-1][-1], part):
                turns[-1].append(part)
            else:
                turns.append([part])
        return tuple(
            Message(turn[0].role, "\n\n".join(part.text for part in turn), turn[0].tool_calls, turn[0].tool_call_id) for turn in turns
        )

    def __str__(self) -> str:
        return "\n\n".join(f"[{message.role}]\n{message.text}" for message in self.messages)


def _part(message: Message) -> Part:
    kind: Kind = "system" if message.role == "system" else "history"
    return Part(message.text, message.role, kind, tool_calls=message.tool_calls, tool_call_id=message.tool_call_id)


def _continues(before: Part, after: Part) -> bool:
    """Whether two parts belong to one message. A turn of the history always stands alone."""
    return before.role == after.role and "history" not in (before.kind, after.kind)
