"""`Agent(model, tools, returns=T)`: a model that calls tools until it has the answer."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, get_origin, overload

from tripod.agents.calling import carry_out
from tripod.agents.hooks import Hook
from tripod.agents.run import AgentEvent, Result, Run, ToolFinished, ToolStarted
from tripod.agents.tool import as_tool, repeated_name
from tripod.agents.turns import Ask, Limits, answer_tool, turns
from tripod.chat.closing import closing
from tripod.chat.shape import Shape
from tripod.errors import AgentError, ConfigError, ToolError
from tripod.messages import Message, ToolSpec, system, user
from tripod.prompts import Prompt
from tripod.protocols import ChatModel, Tool, ToolContext
from tripod.sampling import SamplingParams
from tripod.trace import Delta, Event, Span, attach, folded, recording, timed

T = TypeVar("T")


class Agent(Generic[T]):
    """A model that calls tools until it has the answer. It holds no state: one agent can run many times at once.

    Args:
        model: any ChatModel; wrap it to retry, to fall back, to cache (`tripod.chat.wrappers`).
        tools: functions, tools and other agents.
        returns: the type of the result. A text is what the model says at the end; anything else it hands over by the tool "answer".
        instructions: the system message.
        name: by which other agents call this one.
        description: what other agents are told of it.
        hooks: what looks at each step; the first is the outermost.
        handoffs: agents of the same result to whom the model may give the conversation.
        limits: what ends a run that does not end by itself.
        sampling: for every request to the model.

    Raises:
        ConfigError: two tools have one name, or a tool cannot be made.
    """

    @overload
    def __init__(
        self: Agent[str],
        model: ChatModel,
        tools: Iterable[Tool | Agent[Any] | Callable[..., Any]] = (),
        *,
        instructions: str = "",
        name: str = "agent",
        description: str = "",
        hooks: Sequence[Hook] = (),
        handoffs: Sequence[Agent[str]] = (),
        limits: Limits = Limits(),
        sampling: SamplingParams = SamplingParams(),
    ) -> None: ...

    @overload
    def __init__(
        self,
        model: ChatModel,
        tools: Iterable[Tool | Agent[Any] | Callable[..., Any]] = (),
        *,
        returns: type[T],
        instructions: str = "",
        name: str = "agent",
        description: str = "",
        hooks: Sequence[Hook] = (),
        handoffs: Sequence[Agent[T]] = (),
        limits: Limits = Limits(),
        sampling: SamplingParams = SamplingParams(),
    ) -> None: ...

    def __init__(
        self,
        model: ChatModel,
        tools: Iterable[Tool | Agent[Any] | Callable[..., Any]] = (),
        *,
        returns: Any = str,
        instructions: str = "",
        name: str = "agent",
        description: str = "",
        hooks: Sequence[Hook] = (),
        handoffs: Sequence[Agent[Any]] = (),
        limits: Limits = Limits(),
        sampling: SamplingParams = SamplingParams(),
    ) -> None:
        self.model = model
        self.name = name
        self.description = description or instructions
        self.instructions = instructions
        self.hooks = tuple(hooks)
        self.limits = limits
        self.sampling = sampling
        self.returns = returns
        self.shape: Shape[T] | None = None if returns is str else Shape(returns)
        self.handoffs = {f"hand_over_to_{agent.name}": agent for agent in handoffs}
        made = [as_tool(given) for given in tools]
        self.tools = {tool.spec.name: tool for tool in made}
        specs = [tool.spec for tool in made]
        specs += [ToolSpec(to, f"Give the conversation to {a.name}. {a.description}", _NO_ARGUMENTS) for to, a in self.handoffs.items()]
        if self.shape is not None:
            specs.append(answer_tool(self.shape))
        self.specs = tuple(specs)
        if others := [agent.name for agent in handoffs if agent.returns != returns]:
            raise ConfigError(f"{name} returns {returns}, and {others[0]}, to whom it may hand over, something else; give both the same")
        if (twice := repeated_name(specs)) is not None:
            raise ConfigError(f"two tools of {name} have the name {twice!r}; give one another with tool(name=...)")

    async def __call__(self, question: str | Message, *, deps: object = None, history: Sequence[Message] = ()) -> Result[T]:
        """One run, from the question to its result.

        Args:
            deps: what tools find in their `Context`, such as a connection, or the user who asks.
            history: what was said before, such as `result.messages` of the last run.

        Raises:
            AgentError: the limits or a budget are used up; its `run` has what was done.
            ConfigError: a tool needs other `deps`.
            TripodError: the model failed.
        """
        async with aclosing(self._events(question, deps, history, is_streamed=False)) as events:
            async for event in events:
                if isinstance(event, Result):
                    return event
        raise AssertionError("a run ends with its result")

    async def stream(
        self, question: str | Message, *, deps: object = None, history: Sequence[Message] = ()
    ) -> AsyncGenerator[AgentEvent[T], None]:
        """The run as it goes: Delta, ToolStarted and ToolFinished, and at the end its Result. Closing the iterator stops the work."""
        async with aclosing(self._events(question, deps, history, is_streamed=True)) as events:
            async for event in events:
                yield event

    def as_tool(self) -> Tool:
        """This agent as a tool of another, which gives it a task and is told its result."""
        return AgentTool(self, ToolSpec(self.name, self.description, _TASK))

    def prompt(self, messages: Sequence[Message]) -> Prompt:
        """What the model is asked: it prints before anyone pays for it."""
        opening = (system(self.instructions),) if self.instructions else ()
        return Prompt.of((*opening, *messages), tools=self.specs, tool_choice="auto" if self.shape is None else "required")

    async def _events(
        self, question: str | Message, deps: object, history: Sequence[Message], *, is_streamed: bool
    ) -> AsyncGenerator[AgentEvent[T], None]:
        self._check(deps)
        run = Run(self, [*history, user(question) if isinstance(question, str) else question], self.limits, deps)
        loop = turns(run)
        start_s = time.monotonic()
        attributes: dict[str, Any] = {"name": self.name}
        try:
            want = next(loop)
            while True:
                if isinstance(want, Ask):
                    agent, below = run.active, list[Span]()
                    prompt = await agent._prompt(run)
                    with timed(run.spans.append, "model", below, prompt=prompt, sampling=agent.sampling) as told:
                        if is_streamed:
                            events: list[Event] = []
                            async with closing(agent.model.stream(prompt, agent.sampling)) as stream:
                                async for event in stream:
                                    events.append(event)
                                    if isinstance(event, Delta):
                                        yield event
                            reply = folded(events)
                        else:
                            with recording(below):
                                reply = await agent.model.complete(prompt, agent.sampling)
                        told["reply"] = reply
                    run.spend(reply.usage)
                    for hook in reversed(agent.hooks):
                        reply = await hook.after_model(run, reply)
                    run.reply = reply
                    want = loop.send(reply)
                else:
                    for call in want.calls:
                        yield ToolStarted(call=call)
                    results = await carry_out(want.calls, run, run.active.tools, run.active.hooks)
                    for call, called in zip(want.calls, results, strict=True):
                        yield ToolFinished(call=call, message=called.message, is_failed=called.is_failed)
                    want = loop.send(results)
        except StopIteration as end:
            value: T = end.value
        except BaseException as error:
            attributes["error"] = f"{type(error).__name__}: {error}"
            raise
        finally:
            span = Span("agent", start_s, time.monotonic() - start_s, attributes | {"usage": run.usage}, tuple(run.spans))
            attach(span)
        assert run.reply is not None
        yield Result(value=value, messages=tuple(run.messages), usage=run.usage, reply=run.reply, trace=(span,))

    async def _prompt(self, run: Run[T]) -> Prompt:
        messages: Sequence[Message] = run.messages
        for hook in self.hooks:
            messages = await hook.before_model(run, messages)
        return self.prompt(messages)

    def _check(self, deps: object) -> None:
        for tool in self.tools.values():
            expected = getattr(tool, "deps_type", None)
            expected = get_origin(expected) or expected
            if isinstance(expected, type) and not isinstance(deps, expected):
                raise ConfigError(
                    f"the tool {tool.spec.name} needs deps of type {expected.__name__}, and was given {type(deps).__name__}; "
                    f"run the agent with deps=..."
                )
        for agent in (*self.handoffs.values(), *(tool.agent for tool in self.tools.values() if isinstance(tool, AgentTool))):
            agent._check(deps)


@dataclass(frozen=True, slots=True)
class AgentTool:
    """An agent that another may call. What it spends counts as the caller's, and its trace is part of the caller's."""

    agent: Agent[Any]
    spec: ToolSpec

    async def call(self, arguments: Mapping[str, Any], context: ToolContext) -> str:
        """
        Raises:
            ToolError: no task was given.
            AgentError: the agent came to no result.
        """
        task = arguments.get("task")
        if not isinstance(task, str):
            raise ToolError('give the task as text: {"task": "..."}')
        try:
            result = await self.agent(task, deps=context.deps)
        except AgentError as error:
            if isinstance(error.run, Run):
                context.spend(error.run.usage)
            raise
        context.spend(result.usage)
        return result.value if self.agent.shape is None else self.agent.shape.write(result.value)


_NO_ARGUMENTS = {"type": "object", "properties": {}, "additionalProperties": False}
_TASK = {
    "type": "object",
    "properties": {"task": {"type": "string", "description": "What to do, with everything that must be known for it."}},
    "required": ["task"],
    "additionalProperties": False,
}
