"""An application under a model's name: whoever speaks to models over HTTP can speak to an `ask`, an agent or a flow."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

from pydantic_core import to_jsonable_python

from tripod.agents.agent import Agent
from tripod.agents.run import Result as RunResult
from tripod.chat.closing import closing
from tripod.errors import ConfigError, EngineError, RequestError, TripodError
from tripod.messages import Reply, Usage
from tripod.prompts import Prompt
from tripod.protocols import ChatModel
from tripod.sampling import SamplingParams
from tripod.trace import Delta, Event, Finished, unfolded

Answering: TypeAlias = ChatModel | Agent[Any] | Callable[[Prompt], Awaitable[object] | AsyncIterator[object]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Result(Finished):
    """The end of an answer that was more than a text, such as one with citations."""

    value: Any  # as JSON


class App:
    """Answers prompts by a ChatModel, an agent, or a function of the prompt.

    The function is a coroutine, whose result is the answer, or an async generator of its pieces. A text stands for itself, an event for
    what it says; of anything else the `text` is taken, with its `usage`, or it is written as JSON. What an agent asks of its tools, the
    client does not see: they are the agent's own.
    """

    def __init__(self, name: str, answer: Answering) -> None:
        """
        Raises:
            ConfigError: it is neither of these.
        """
        if not callable(answer) and not hasattr(answer, "stream"):
            raise ConfigError(
                f"the application {name!r} is a {type(answer).__name__}; give a function of the prompt, an agent or a ChatModel"
            )
        self.name = name
        self._answer = partial(_run, answer) if isinstance(answer, Agent) else answer

    async def stream(self, prompt: Prompt, sampling: SamplingParams) -> AsyncGenerator[Event, None]:
        """The answer as events. `sampling` is for models; a function decides itself, and an agent has tools of its own.

        Raises:
            RequestError: a function or an agent is given tools, or a grammar for its answer.
            EngineError: the application failed in a way of its own; what Tripod raises goes through as it is.
        """
        try:
            async with closing(self._stream(prompt, sampling)) as events:
                async for event in events:
                    yield event
        except TripodError:
            raise
        except Exception as error:  # any program may stand here
            raise EngineError(f"the application {self.name!r} failed") from error

    async def _stream(self, prompt: Prompt, sampling: SamplingParams) -> AsyncGenerator[Event, None]:
        if not callable(self._answer):
            async with closing(self._answer.stream(prompt, sampling)) as events:
                async for event in events:
                    yield event
            return
        if prompt.tools or sampling.grammar is not None:
            param = "tools" if prompt.tools else "response_format"
            raise RequestError(
                f"{self.name!r} is an application, which has its own tools and form of answer; leave {param} out", param=param
            )
        answer = self._answer(prompt)
        usage = Usage()
        if isinstance(answer, AsyncIterator):
            async with closing(answer) as pieces:
                async for piece in pieces:
                    if isinstance(piece, Finished):
                        yield piece
                        return
                    usage += _usage(piece)
                    yield piece if isinstance(piece, Delta) else Delta(text=_text(piece))
        else:
            result = await answer
            if isinstance(result, Reply):
                for event in unfolded(result):
                    yield event
                return
            yield Delta(text=_text(result))
            yield Result(finish_reason="stop", usage=_usage(result), model=self.name, value=_json(result))
            return
        yield Finished(finish_reason="stop", usage=usage, model=self.name)


async def _run(agent: Agent[Any], prompt: Prompt) -> AsyncGenerator[Event, None]:
    """A run of an agent as the answer of a model."""
    *history, question = prompt.messages
    async with closing(agent.stream(question, history=history)) as events:
        async for event in events:
            if isinstance(event, Delta):
                yield Delta(text=event.text, reasoning=event.reasoning, token_ids=event.token_ids)
            elif isinstance(event, RunResult):
                if not isinstance(event.value, str):  # a text was said already
                    yield Delta(text=_text(event.value))
                yield Result(finish_reason="stop", usage=event.usage, model=agent.name, value=_json(event.value))


def _usage(value: object) -> Usage:
    usage = getattr(value, "usage", None)
    return usage if isinstance(usage, Usage) else Usage()


def _text(value: object) -> str:
    text = value if isinstance(value, str) else getattr(value, "text", None)
    return text if isinstance(text, str) else json.dumps(_json(value), ensure_ascii=False)


def _json(value: object) -> Any:
    return to_jsonable_python(value, fallback=str)
