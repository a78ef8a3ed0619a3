"""From a conversation with tools to what is generated, for every endpoint that has conversations."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TypeVar

from starlette.requests import Request

from tripod.chat.asked import ask_engine
from tripod.chat.wire.anthropic import MessagesBody
from tripod.chat.wire.openai import ChatBody
from tripod.chat.wire.responses import ResponseBody
from tripod.chat.wire.structured import in_field
from tripod.errors import ConfigError, RequestError
from tripod.prompts import Prompt
from tripod.sampling import SamplingParams
from tripod.serving.apps import App
from tripod.serving.bodies import read_body
from tripod.serving.generation import Choice, Source, choices_of
from tripod.serving.served import Asker, admit, check_grammar, timed
from tripod.serving.visit import Visit

Conversation = TypeVar("Conversation", ChatBody, ResponseBody, MessagesBody)


async def conversation(request: Request, kind: type[Conversation]) -> tuple[Conversation, Source, list[Choice]]:
    """The checked body, who answers it, and what is to be answered; errors as for `read_body`, `source_for` and `choices_for`."""
    visit = Visit.of(request)
    body = await read_body(request, kind, visit.served.config)
    source = visit.served.source_for(body.model)
    asked = body.to_prompt(), body.to_sampling()
    choices = await choices_for(visit, body, source, *asked, is_single=body.is_single, grammar_field=body.grammar_field)
    return body, source, choices


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """What a request says of itself, where its body does not say it in these words."""

    model: str
    user: str | None = None
    timeout: float | None = None
    priority: int | None = 0
    num_choices: int = 1


async def choices_for(
    visit: Visit,
    body: Asker,
    source: Source,
    prompt: Prompt,
    sampling: SamplingParams,
    *,
    is_single: bool,
    grammar_field: str | None = None,
) -> list[Choice]:
    """Admits the request and makes it ready.

    Args:
        is_single: at most one call of a tool.
        grammar_field: which field says what the text must be, for errors.

    Raises:
        OverloadedError: there is no place for it now.
        RequestError: the conversation cannot be written, or a schema cannot be enforced.
    """
    length = num_characters(prompt)
    if isinstance(source, App):
        admit(visit, body, [length])
        return choices_of([prompt], sampling, body.num_choices)
    source.check_length(length)
    admit(visit, body, [length])
    served = visit.served
    try:
        asked = await timed(
            visit,
            length,
            ask_engine,
            prompt,
            sampling,
            source.tokenizer,
            chat_template=served.chat_template,
            tool_format_name=served.tool_format,
            is_single=is_single,
        )
    except ConfigError as error:  # whoever started the server can repair it; whoever asks can use the other endpoint
        raise RequestError(f"{error}; or POST to /v1/completions", param="messages") from error
    except RequestError as error:
        raise in_field(error, grammar_field) from error
    await check_grammar(source, asked.sampling, "tools" if asked.form is not None else grammar_field)
    return choices_of([asked.ids], asked.sampling, body.num_choices, read=asked.read)


def num_characters(prompt: Prompt) -> int:
    """Of the conversation and its tools."""
    tools = len(json.dumps([tool.to_json() for tool in prompt.tools])) if prompt.tools else 0
    return tools + sum(len(message.text) for message in prompt.messages)
