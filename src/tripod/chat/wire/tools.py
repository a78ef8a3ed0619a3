"""Tools as requests describe them, and which of them must be called."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Tag

from tripod.chat.wire.body import BY_SHAPE, WireBody, only
from tripod.errors import RequestError
from tripod.messages import Message, ToolSpec

MAX_TOOLS = 512
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")  # the OpenAI API knows no dots
_WORDS = ("none", "auto", "required")  # of `tool_choice`


IS_FUNCTION = only("function", default="function", what="is a tool of type")  # others run on their vendor's machines


class FunctionSpec(WireBody):
    """`strict` changes nothing: arguments are always held to the schema, or the schema is refused."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class _ToolBody(WireBody):
    type: Literal["function"]
    function: FunctionSpec


class FunctionName(WireBody):
    name: str


class NamedTool(WireBody):
    type: Literal["function"]
    function: FunctionName


ToolBody = Annotated[_ToolBody, IS_FUNCTION]
ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("<text>")] | Annotated[NamedTool, Tag("<object>")], BY_SHAPE, IS_FUNCTION
]


def tool_choice(choice: Literal["none", "auto", "required"] | NamedTool | None) -> str:
    """As `Prompt.tool_choice` has it."""
    return choice.function.name if isinstance(choice, NamedTool) else choice or "auto"


def tool_specs(tools: Sequence[tuple[str, str | None, dict[str, Any] | None]]) -> tuple[ToolSpec, ...]:
    """
    Args:
        tools: name, description and schema of the arguments of each.

    Raises:
        RequestError: a name is none, or stands twice, or the arguments are no object.
    """
    seen: set[str] = set()
    for i, (name, _, parameters) in enumerate(tools):
        if not _NAME.fullmatch(name) or name in _WORDS:
            message = f"tools[{i}] has the name {name[:80]!r}; give up to 64 letters, digits, '_', '-' and '.', and no word of tool_choice"
            raise RequestError(message, param="tools")
        if name in seen:
            raise RequestError(f"tools[{i}] has the name {name!r}, as another before it; names must differ", param="tools")
        seen.add(name)
        if parameters is not None and parameters.get("type", "object") != "object":
            raise RequestError(f"tools[{i}].parameters has type {str(parameters['type'])[:40]!r}; arguments are an object", param="tools")
    return tuple(ToolSpec(name, description or "", parameters or {}) for name, description, parameters in tools)


def check_results(messages: Sequence[Message], place: str) -> None:
    """
    Args:
        place: names a message in errors, by its number, such as "messages[{}].tool_call_id".

    Raises:
        RequestError: a message answers a call that stands nowhere before it.
    """
    made: set[str] = set()
    for i, message in enumerate(messages):
        if message.role == "tool" and message.tool_call_id not in made:
            where = place.format(i)
            raise RequestError(f"{where} is {str(message.tool_call_id)[:80]!r}, and no message before it makes that call", param=where)
        made.update(call.id for call in message.tool_calls)
