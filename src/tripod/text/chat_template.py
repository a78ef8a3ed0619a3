"""A conversation to the one string that a chat model was trained on: Jinja templates, in a sandbox, by Hugging Face's conventions."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from tripod.errors import ConfigError, MissingExtraError, RequestError
from tripod.messages import Message

if TYPE_CHECKING:
    from jinja2 import Template
    from jinja2.sandbox import ImmutableSandboxedEnvironment


class ChatTemplate:
    """A model's own way to write a conversation.

    A template comes with downloaded weights, so it is untrusted: it runs in Jinja's immutable sandbox and can reach
    neither Python's attributes nor files. It sees `messages`, `tools`, `documents`, `add_generation_prompt`, the special
    tokens by name (`bos_token`, ...), and the functions `raise_exception` and `strftime_now`.

    Args:
        source: the Jinja template.
        special_tokens: name to content, such as `{"bos_token": "<s>"}`.
        tool_use: the template to use instead when tools are given; models that name several call it so.
        now: the clock of `strftime_now`.
    """

    def __init__(
        self,
        source: str,
        *,
        special_tokens: Mapping[str, str] | None = None,
        tool_use: str | None = None,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        self.source = source
        self.tool_use = tool_use
        self._special_tokens = dict(special_tokens or {})
        self._now = now

    @staticmethod
    def read(file: Path, *, special_tokens: Mapping[str, str] | None = None) -> ChatTemplate:
        """Read a template from a file, such as the one given with `--chat-template`.

        Raises:
            ConfigError: the file cannot be read, or is not a valid template.
        """
        try:
            source = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"the chat template {file} cannot be read: {error}; give a Jinja file in UTF-8") from error
        template = ChatTemplate(source, special_tokens=special_tokens)
        template.check()
        return template

    def check(self) -> None:
        """Compile now, so that a broken template is known before the first request.

        Raises:
            ConfigError: it is not valid Jinja; the message names the line.
        """
        _ = self._default
        if self.tool_use is not None:
            _ = self._for_tools

    def render(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = True, tools: Sequence[Mapping[str, Any]] | None = None
    ) -> str:
        """The prompt as text. It holds its special tokens already: encode it with `add_special_tokens=False`.

        Args:
            messages: the conversation.
            add_generation_prompt: end with the opening of the assistant's turn.
            tools: descriptions in OpenAI's form, `{"type": "function", "function": {"name", "description", "parameters"}}`.

        Raises:
            RequestError: the template refuses this conversation (`raise_exception`), say because roles do not alternate.
            ConfigError: the template is broken, or tries what the sandbox forbids.
        """
        from jinja2.exceptions import SecurityError

        template = self._for_tools if tools and self.tool_use is not None else self._default
        try:
            return template.render(
                messages=[_as_mapping(message) for message in messages],
                tools=[dict(tool) for tool in tools] if tools else None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._special_tokens,
            )
        except RequestError:
            raise
        except SecurityError as error:
            raise ConfigError(
                f"the chat template was stopped by the sandbox: {error}; use a template from a source that you trust"
            ) from error
        except Exception as error:  # a template is a program of its own: it can fail in any way
            raise ConfigError(
                f"the chat template failed on {len(messages)} messages: {type(error).__name__}: {error}; "
                "pass one that fits with --chat-template FILE"
            ) from error

    @cached_property
    def _default(self) -> Template:
        return self._compile(self.source)

    @cached_property
    def _for_tools(self) -> Template:
        assert self.tool_use is not None
        return self._compile(self.tool_use)

    def _compile(self, source: str) -> Template:
        environment = _environment()
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda form: self._now().strftime(form)
        from jinja2.exceptions import TemplateSyntaxError

        try:
            return environment.from_string(source)
        except TemplateSyntaxError as error:
            raise ConfigError(f"the chat template is not valid Jinja at line {error.lineno}: {error.message}") from error


def _environment() -> ImmutableSandboxedEnvironment:
    try:
        from jinja2 import nodes
        from jinja2.ext import Extension, loopcontrols
        from jinja2.parser import Parser
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ModuleNotFoundError as error:
        raise MissingExtraError("jinja2", "engine", "rendering a chat template") from error

    class Generation(Extension):
        """`{% generation %}...{% endgeneration %}` marks the assistant's words for training; here it only prints them."""

        tags = {"generation"}  # noqa: RUF012 - Jinja's own form

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    environment.filters["tojson"] = _to_json
    return environment


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter escapes characters of HTML, which a model was not trained on."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> NoReturn:
    raise RequestError(f"the model's chat template refuses these messages: {message}", param="messages")


def _as_mapping(message: Message) -> dict[str, Any]:
    """A message as templates expect it: arguments of a tool call as a value where they are JSON."""
    mapping: dict[str, Any] = {"role": message.role, "content": message.text}
    if message.tool_calls:
        mapping["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": _arguments(call.arguments)}}
            for call in message.tool_calls
        ]
    if message.reasoning:
        mapping["reasoning_content"] = message.reasoning
    if message.tool_call_id is not None:
        mapping["tool_call_id"] = message.tool_call_id
    return mapping


def _arguments(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text  # a model may write what is no JSON; the template shows it as it is
