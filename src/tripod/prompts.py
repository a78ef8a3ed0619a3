"""A prompt is a value: parts that keep their identity from the application down to the engine's cache.

A function returns a `Prompt`; it prints as text before anyone pays for it, and `str(prompt)` hides nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from tripod.errors import RequestError
from tripod.messages import Content, File, Message, Role, ToolSpec

Kind = Literal["system", "tool", "passage", "history", "question", "text"]


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of a prompt. Parts with equal `id` hold equal text, so their keys and values may be shared."""

    text: str = ""
    role: Role = "user"
    kind: Kind = "text"
    id: str = ""  # such as a passage's id; empty where nothing names it
    file: File | None = None  # read after the text
    message: Message | None = None  # the turn itself, where this is one of a conversation


@dataclass(frozen=True, slots=True)
class Prompt:
    """Parts in order. Neighbouring parts of one role become one message, joined by a blank line.

    The tools belong to the prompt, because a model reads their descriptions in it: they cost tokens and can be cached like other parts.
    """

    parts: tuple[Part, ...]
    tools: tuple[ToolSpec, ...] = ()
    tool_choice: str = "auto"  # "none", "auto", "required", or the name of the tool that must be called

    def __post_init__(self) -> None:
        if self.tool_choice not in ("none", "auto") and not (self.tools if self.tool_choice == "required" else self._offers_chosen()):
            names = ", ".join(tool.name for tool in self.tools) or "none"
            raise RequestError(f"tool_choice={self.tool_choice!r} fits none of the tools, which are: {names}", param="tool_choice")

    def _offers_chosen(self) -> bool:
        return any(tool.name == self.tool_choice for tool in self.tools)

    @staticmethod
    def of(source: str | Prompt | Iterable[Message], *, tools: tuple[ToolSpec, ...] = (), tool_choice: str = "auto") -> Prompt:
        """A question, a conversation or a prompt, as a prompt. Tools are added to those of a prompt.

        Raises:
            RequestError: the conversation has no turn.
        """
        if isinstance(source, Prompt):
            is_same = not tools and tool_choice == "auto"
            return source if is_same else replace(source, tools=(*source.tools, *tools), tool_choice=tool_choice)
        if isinstance(source, str):
            return Prompt((Part(source, kind="question"),), tools, tool_choice)
        parts = tuple(_part(message) for message in source)
        if not parts:
            raise RequestError("the conversation has no message, so there is nothing to answer; give at least one", param="messages")
        return Prompt(parts, tools, tool_choice)

    @property
    def messages(self) -> tuple[Message, ...]:
        """The conversation that a chat model is given."""
        turns: list[list[Part]] = []
        for part in self.parts:
            if turns and _continues(turns[-1][-1], part):
                turns[-1].append(part)
            else:
                turns.append([part])
        return tuple(turn[0].message or Message(turn[0].role, _content(turn)) for turn in turns)

    def __str__(self) -> str:
        tools = [f"[tool {tool.name}]\n{tool.description}\n{json.dumps(tool.parameters, ensure_ascii=False)}" for tool in self.tools]
        return "\n\n".join(tools + [f"[{message.role}]\n{_shown(message)}" for message in self.messages])


def _part(message: Message) -> Part:
    kind: Kind = "system" if message.role == "system" else "history"
    return Part(message.text, message.role, kind, message=message)


def _content(turn: Sequence[Part]) -> Content:
    """The parts of one turn, with a blank line between two texts."""
    pieces: list[str | File] = []
    for part in turn:
        if part.text or part.file is None:
            before = pieces.pop() if pieces and isinstance(pieces[-1], str) else None
            pieces.append(part.text if before is None else f"{before}\n\n{part.text}")
        if part.file is not None:
            pieces.append(part.file)
    return pieces[0] if len(pieces) == 1 and isinstance(pieces[0], str) else tuple(pieces)


def _shown(message: Message) -> str:
    content = message.content if isinstance(message.content, str) else "".join(map(str, message.content))
    reasoning = f"<reasoning>{message.reasoning}</reasoning>\n" if message.reasoning else ""
    return reasoning + "\n".join(filter(None, (content, *(f"{call.name}({call.arguments})" for call in message.tool_calls))))


def _continues(before: Part, after: Part) -> bool:
    """Whether two parts belong to one message. A turn of the history always stands alone."""
    return before.role == after.role and before.message is None and after.message is None
