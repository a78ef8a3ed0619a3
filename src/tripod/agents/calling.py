"""Carrying out the tool calls of one reply."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio

from tripod.agents.context import Context
from tripod.agents.turns import Called
from tripod.errors import AgentError, ToolError
from tripod.messages import ToolCall, tool_result
from tripod.trace import span

if TYPE_CHECKING:
    from tripod.agents.hooks import Hook
    from tripod.agents.run import Run
    from tripod.protocols import Tool


async def carry_out(calls: Sequence[ToolCall], run: Run[Any], tools: Mapping[str, Tool], hooks: Sequence[Hook]) -> list[Called]:
    """Their results, in the order of the calls. What a tool raises is a result that says so; only a hook ends the run."""
    if len(calls) == 1:
        return [await _one(calls[0], run, tools, hooks)]
    results: dict[int, Called] = {}
    limiter = anyio.CapacityLimiter(run.limits.parallel)

    async def limited(place: int, call: ToolCall) -> None:
        async with limiter:
            results[place] = await _one(call, run, tools, hooks)

    try:
        async with anyio.create_task_group() as group:
            for place, call in enumerate(calls):
                group.start_soon(limited, place, call)
    except BaseExceptionGroup as errors:  # raised by hooks; the caller expects the error itself, not a group of one
        if len(errors.exceptions) == 1:
            raise errors.exceptions[0] from None
        raise
    return [results[place] for place in range(len(calls))]


async def _one(call: ToolCall, run: Run[Any], tools: Mapping[str, Tool], hooks: Sequence[Hook]) -> Called:
    context = Context(run.deps, run.messages, run.spend)
    proceed: Callable[[ToolCall], Awaitable[Called]] = partial(_call, context=context, tools=tools, limit=run.limits.result_chars)
    for hook in reversed(hooks):
        proceed = partial(hook.around_tool, run, proceed=proceed)
    with span("tool", run.spans.append, name=call.name, arguments=call.arguments) as told:
        called = await proceed(call)
        told["error" if called.is_failed else "result"] = called.message.text
        return called


async def _call(call: ToolCall, *, context: Context[Any], tools: Mapping[str, Tool], limit: int) -> Called:
    from pydantic_core import from_json

    try:
        arguments = from_json(call.arguments or "{}")
    except ValueError as error:
        return _failed(call, f"the arguments are not valid JSON: {error}", limit)
    if not isinstance(arguments, dict):
        return _failed(call, f"the arguments are {type(arguments).__name__}, not an object", limit)
    return await call_tool(call, arguments, context=context, tools=tools, limit=limit)


async def call_tool(
    call: ToolCall, arguments: Mapping[str, Any], *, context: Context[Any], tools: Mapping[str, Tool], limit: int
) -> Called:
    """What a tool gives back; whatever it raises is a failed result that says so. A result of more than `limit` characters is cut."""
    tool = tools.get(call.name)
    if tool is None:
        return _failed(call, f"there is no tool {call.name!r}; the tools are: {', '.join(tools) or 'none'}", limit)
    try:
        content = await tool.call(arguments, context)
    except (ToolError, AgentError) as error:  # AgentError: of an agent that is a tool
        return _failed(call, str(error), limit)
    except TimeoutError:
        return _failed(call, f"{call.name} took too long and was stopped", limit)
    except Exception as error:
        return _failed(call, f"{call.name} failed: {type(error).__name__}: {error}", limit)
    pieces = (content,) if isinstance(content, str) else content
    return Called(tool_result(call, *(_cut(piece, limit) if isinstance(piece, str) else piece for piece in pieces)))


def _failed(call: ToolCall, reason: str, limit: int) -> Called:
    return Called(tool_result(call, "Error: " + _cut(reason, limit)), is_failed=True)


def _cut(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    return f"{text[:limit]}\n[cut: {limit} of {len(text)} characters; ask for less at once]"
