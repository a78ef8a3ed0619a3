"""What may look at a run, change it or stop it: before and after the model, and around each tool."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import anyio

from tripod.agents.turns import Called
from tripod.errors import AgentError, ConfigError
from tripod.messages import Message, Reply, ToolCall, tool_result

if TYPE_CHECKING:
    from tripod.agents.run import Run

Proceed = Callable[[ToolCall], Awaitable[Called]]


class Hook:
    """Override what you need. Of several hooks the first is the outermost."""

    async def before_model(self, run: Run[Any], messages: Sequence[Message]) -> Sequence[Message]:
        """What the model is to read instead of `messages`. The run keeps its own; assign `run.messages` to change the history itself."""
        return messages

    async def after_model(self, run: Run[Any], reply: Reply) -> Reply:
        """The reply that counts. When a run is streamed, its text has been shown already."""
        return reply

    async def around_tool(self, run: Run[Any], call: ToolCall, proceed: Proceed) -> Called:
        """Call `proceed`, once, several times or never, and say what came of it."""
        return await proceed(call)


@dataclass(frozen=True, slots=True)
class Budget(Hook):
    """Ends a run that has used up its tokens, those of agents and models inside tools included. The reply that goes beyond still counts."""

    tokens: int

    async def before_model(self, run: Run[Any], messages: Sequence[Message]) -> Sequence[Message]:
        if run.usage.total_tokens >= self.tokens:
            raise AgentError(f"the budget of {self.tokens} tokens is used up: {run.usage.total_tokens} were needed so far", run=run)
        return messages


@dataclass(frozen=True, slots=True)
class Approve(Hook):
    """Asks a person before a tool is called.

    Args:
        ask: True lets it be called; a text, or False, is told to the model instead.
        tools: the tools that need it; none named: all.
    """

    ask: Callable[[ToolCall], Awaitable[bool | str]]
    tools: frozenset[str] = frozenset()

    async def around_tool(self, run: Run[Any], call: ToolCall, proceed: Proceed) -> Called:
        if self.tools and call.name not in self.tools:
            return await proceed(call)
        answer = await self.ask(call)
        if answer is True:
            return await proceed(call)
        return Called(tool_result(call, f"A person refused this call{f': {answer}' if answer else ''}. Do not try it again."))


@dataclass(frozen=True, slots=True)
class RetryTools(Hook):
    """Calls a tool again that failed, before the model hears of it. For tools that may be called twice."""

    tools: frozenset[str]
    attempts: int = 3
    wait_s: float = 1.0  # after the first failure, and twice as long after each further

    async def around_tool(self, run: Run[Any], call: ToolCall, proceed: Proceed) -> Called:
        called = await proceed(call)
        for attempt in range(self.attempts - 1 if call.name in self.tools else 0):
            if not called.is_failed:
                break
            await anyio.sleep(self.wait_s * 2**attempt)
            called = await proceed(call)
        return called


SECRETS = {
    "email": r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+",
    "card": r"\b(?:\d[ -]?){13,19}\b",
    "key": r"\b(?:sk|pk|ghp|xox[abp])[-_][A-Za-z0-9_-]{16,}\b",
}


@dataclass(frozen=True, slots=True)
class Redact(Hook):
    """Hides from the model what it need not know: it reads "<email-1>", and where it writes so, tools and people get the real thing.

    The instructions are not changed, and the deltas of a streamed run show the marks.

    Args:
        patterns: a regular expression for each name of a mark.
    """

    patterns: Mapping[str, str] = field(default_factory=lambda: SECRETS)

    def __post_init__(self) -> None:
        for name, pattern in self.patterns.items():
            try:
                re.compile(pattern)
            except re.error as error:
                raise ConfigError(f"the pattern of {name!r} is no regular expression: {error}") from error

    async def before_model(self, run: Run[Any], messages: Sequence[Message]) -> Sequence[Message]:
        self._mark(run, (*run.messages, *messages))  # in the order of the history, whatever other hooks leave of it or add
        return [_with_texts(message, lambda text, is_json: _replaced(text, run.marks, is_json=is_json)) for message in messages]

    async def after_model(self, run: Run[Any], reply: Reply) -> Reply:
        real = {mark: secret for secret, mark in run.marks.items()}
        return replace(reply, message=_with_texts(reply.message, lambda text, is_json: _replaced(text, real, is_json=is_json)))

    def _mark(self, run: Run[Any], messages: Sequence[Message]) -> None:
        """Give each new secret a mark, which it keeps."""
        for message in messages:
            for text in (message.text, message.reasoning, *(call.arguments for call in message.tool_calls)):
                for name, pattern in self.patterns.items():
                    for found in re.finditer(pattern, text):
                        if found[0] and found[0] not in run.marks:
                            number = 1 + sum(mark.startswith(f"<{name}-") for mark in run.marks.values())
                            run.marks[found[0]] = f"<{name}-{number}>"


def _replaced(text: str, table: Mapping[str, str], *, is_json: bool) -> str:
    for old, new in sorted(table.items(), key=lambda item: -len(item[0])):  # a longer one may hold a shorter one
        if is_json:
            old, new = (json.dumps(one, ensure_ascii=False)[1:-1] for one in (old, new))
        text = text.replace(old, new)
    return text


def _with_texts(message: Message, change: Callable[[str, bool], str]) -> Message:
    """The message with each of its texts changed; the second argument says whether a text stands within JSON."""
    content = message.content
    changed = change(content, False) if isinstance(content, str) else tuple(change(p, False) if isinstance(p, str) else p for p in content)
    calls = tuple(replace(call, arguments=change(call.arguments, True)) for call in message.tool_calls)
    return replace(message, content=changed, tool_calls=calls, reasoning=change(message.reasoning, False))
