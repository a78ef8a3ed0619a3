"""A conversation as token ids, by the template that came with the model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tripod.errors import ConfigError, RequestError
from tripod.messages import Message, ToolCall, ToolSpec, assistant, system, user
from tripod.text.tool_format import ToolFormat

if TYPE_CHECKING:
    from tripod.text.tokenizer import Tokenizer

PLAIN = "plain"


def check_chat_template(name: str | None) -> None:
    """
    Raises:
        ConfigError: it names no template that we have.
    """
    if name not in (None, PLAIN):
        raise ConfigError(f"chat_template={name!r} is unknown; give 'plain', or None for the template beside the model")


def template_file(chat_template: str | None) -> Path | None:
    """The Jinja file that is meant; None for the template beside the model and for "plain".

    Raises:
        ConfigError: it is neither "plain" nor a file.
    """
    if chat_template in (None, PLAIN):
        return None
    if not Path(chat_template).is_file():
        raise ConfigError(f"chat_template={chat_template!r} is neither 'plain' nor a file; give one of them, or None for the model's own")
    return Path(chat_template)


def prompt_ids(messages: Sequence[Message], tokenizer: Tokenizer, chat_template: str | None = None) -> list[int]:
    """The prompt that asks for the next turn.

    Args:
        chat_template: None for the model's own; "plain" for `role: text` lines, which any model reads as text.

    Raises:
        ConfigError: the model has no template, and none was chosen.
        RequestError: the model's template refuses this conversation, or a message holds a file.
    """
    return encoded(render(messages, tokenizer, chat_template), tokenizer, chat_template)


def encoded(text: str, tokenizer: Tokenizer, chat_template: str | None) -> list[int]:
    """The token ids of what `render` wrote."""
    # The template writes the beginning-of-sequence token itself where the model wants one.
    return tokenizer.encode(text, add_special_tokens=chat_template == PLAIN)


def render(
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    chat_template: str | None = None,
    *,
    tools: Sequence[ToolSpec] = (),
    form: ToolFormat | None = None,
) -> str:
    """The same as text, with the tools that the model may call.

    Args:
        form: how the model writes calls, where the template tells it nothing of tools; None where the template does.
    """
    for message in messages:
        if message.files:
            raise RequestError(f"this model reads text; the {message.role} message holds {message.files[0]}", param="messages")
    if form is not None:
        messages = _with_tools(messages, tools, form)
        tools = ()
    if chat_template == PLAIN:
        return "".join(f"{message.role}: {message.text}\n" for message in messages) + "assistant:"
    if tokenizer.chat_template is None:
        raise ConfigError(
            "this model has no chat template, so it was probably not trained on conversations; "
            "give chat_template='plain' (--chat-template plain) to write them as plain 'role: text' lines, or a Jinja file"
        )
    return tokenizer.chat_template.render(messages, tools=[tool.to_json() for tool in tools])


def _with_tools(messages: Sequence[Message], tools: Sequence[ToolSpec], form: ToolFormat) -> list[Message]:
    """The conversation in turns of text alone: the tools in the system's, calls as the model writes them, results in the user's."""
    turns: list[Message] = []
    for message in messages:
        if message.role == "tool":
            result = f"<tool_response>\n{message.text}\n</tool_response>"
            if turns and turns[-1].role == "user" and turns[-1].text.endswith("</tool_response>"):
                result = f"{turns.pop().text}\n{result}"
            turns.append(user(result))
        elif message.tool_calls:
            turns.append(assistant("\n".join(filter(None, (message.text, form.write(message.tool_calls))))))
        else:
            turns.append(message)
    if tools:
        told = "You may call tools. A call is written as\n" + form.write([ToolCall("", "NAME", "ARGUMENTS")]) + "\nThe tools:\n"
        told += "\n".join(json.dumps(tool.to_json()["function"], ensure_ascii=False) for tool in tools)
        first = turns.pop(0).text if turns and turns[0].role == "system" else ""
        turns.insert(0, system("\n\n".join(filter(None, (first, told)))))
    return turns
