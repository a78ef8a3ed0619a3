"""Tools for a model that has none: they stand in the prompt, and a grammar holds the answer to a call or a text."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tripod.chat.wrappers import Around
from tripod.errors import RequestError
from tripod.messages import Message, Reply, ToolCall, ToolSpec, system, user
from tripod.prompts import Prompt
from tripod.sampling import Grammar, SamplingParams
from tripod.trace import Event, unfolded


def tools_prompt(tools: Sequence[ToolSpec]) -> str:
    """What a model is told of its tools."""
    shown = "\n".join(json.dumps(tool.to_json()["function"], ensure_ascii=False) for tool in tools)
    return (
        'You can use tools. Answer with one JSON object: {"next": {"tool": NAME, "arguments": {...}}} to use one, '
        f'or {{"next": {{"text": TEXT}}}} to say something to the user. The tools:\n{shown}'
    )


@dataclass(frozen=True, slots=True)
class PromptedTools(Around):
    """A ChatModel that calls tools, around one that only writes text. It makes one call at a time; a stream comes when it is whole.

    The model inside should keep to a JSON schema (`SamplingParams.grammar`): our engine does, and so do most servers.
    """

    async def complete(self, prompt: Prompt, sampling: SamplingParams) -> Reply:
        """
        Raises:
            RequestError: a grammar is asked for beside tools.
        """
        choices = [tool for tool in prompt.tools if prompt.tool_choice in ("auto", "required", tool.name)]
        if not choices:
            return await self.inner.complete(_without_tools(prompt), sampling)
        if sampling.grammar is not None:
            raise RequestError("a grammar and tools cannot be asked for at once: the tools are a grammar themselves", param="grammar")
        schema = _schema(choices, may_say=prompt.tool_choice == "auto")
        reply = await self.inner.complete(_without_tools(prompt), replace(sampling, grammar=Grammar.json_schema(schema)))
        return replace(reply, message=_read(reply.message))

    async def stream(self, prompt: Prompt, sampling: SamplingParams) -> AsyncGenerator[Event, None]:
        for event in unfolded(await self.complete(prompt, sampling)):
            yield event


def _schema(tools: Sequence[ToolSpec], *, may_say: bool) -> dict[str, Any]:
    definitions: dict[str, Any] = {}
    ways = [_object(tool={"const": tool.name}, arguments=_arguments(tool, definitions)) for tool in tools]
    schema = _object(next={"anyOf": [*ways, _object(text={"type": "string"})] if may_say else ways})
    return schema | ({"$defs": definitions} if definitions else {})


def _arguments(tool: ToolSpec, definitions: dict[str, Any]) -> dict[str, Any]:
    """The schema of a tool's arguments. What it defines goes to the top, where references look, under names that no other tool has."""
    schema: dict[str, Any] = json.loads(json.dumps(dict(tool.parameters)).replace('"#/$defs/', f'"#/$defs/{tool.name}.'))
    definitions |= {f"{tool.name}.{name}": one for name, one in schema.pop("$defs", {}).items()}
    return schema


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _without_tools(prompt: Prompt) -> Prompt:
    """The same conversation in words: calls as the JSON that asked for them, and results as turns of the user."""
    told = (system(tools_prompt(prompt.tools)),) if prompt.tools and prompt.tool_choice != "none" else ()
    return Prompt.of([*told, *(_in_words(message) for message in prompt.messages)])


def _in_words(message: Message) -> Message:
    if message.role == "tool":
        return user(f"Result: {message.text}", *message.files) if message.files else user(f"Result: {message.text}")
    if not message.tool_calls:
        return message
    calls = [f'{{"next": {{"tool": {json.dumps(call.name)}, "arguments": {call.arguments or "{}"}}}}}' for call in message.tool_calls]
    return Message("assistant", "\n".join([*filter(None, [message.text]), *calls]))


def _read(message: Message) -> Message:
    """The message as a call; what is none of the two forms is what the model says."""
    try:
        step = json.loads(message.text)["next"]
    except (ValueError, KeyError, TypeError):
        return message
    match step:
        case {"tool": str(name), "arguments": arguments}:
            return replace(
                message, content="", tool_calls=(ToolCall(uuid.uuid4().hex[:9], name, json.dumps(arguments, ensure_ascii=False)),)
            )
        case {"text": str(text)}:
            return replace(message, content=text)
        case _:
            return message
