"""A flow as it runs: a list of steps with the places of what they take, made once, and the few lines that walk along it."""

from __future__ import annotations

import inspect
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, cast

import anyio
from anyio.abc import TaskStatus

from tripod.errors import FlowError
from tripod.flows.effects import Effect, Performer, scoped, within
from tripod.flows.hints import classes, hints_of, list_of, show, streamed
from tripod.flows.step import REQUIRED, Step, first_error
from tripod.flows.wiring import Wiring
from tripod.trace import Span, open_children

ABSENT: Any = type("Absent", (), {"__repr__": lambda self: "ABSENT", "__bool__": lambda self: False})()
"""Stands for what a step that did not run would have returned."""


@dataclass(frozen=True, slots=True)
class Take:
    """Where one argument is found."""

    parameter: str
    slots: tuple[int, ...]
    default: Any
    classes: tuple[type, ...] | None  # of what is taken; others are for other steps. None: whatever is there
    is_folded: bool


@dataclass(frozen=True, slots=True)
class Node:
    """One step with its places."""

    step: Step
    name: str
    function: Callable[..., Any]
    slot: int
    slots: tuple[int, ...]  # of the arguments, where each is simply there
    is_simple: bool
    is_async: bool
    returns: tuple[type, ...]  # what the result must be; empty where nothing can be checked
    takes: tuple[Take, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """Compiled from a wiring."""

    flow: str
    inputs: Mapping[str, tuple[int, tuple[type, ...] | None]]  # slot, and what it must be
    start: tuple[Any, ...]  # the values before a run: defaults, and ABSENT
    nodes: tuple[Node, ...]
    results: tuple[int, ...]
    is_plain: bool  # whether no step ever waits


def compile_plan(wiring: Wiring) -> Plan:
    """The steps in order, with a place for every input and every result."""
    slots = {name: number for number, name in enumerate([*sorted(wiring.inputs), *(step.name for step in wiring.order)])}
    nodes: list[Node] = []
    for step in wiring.order:
        edges = wiring.edges[step.name]
        takes = []
        for parameter, edge in edges.items():
            needed = step.inputs[parameter]
            only = classes(needed.hint) if edge.is_partial else None
            takes.append(Take(parameter, tuple(slots[source] for source in edge.sources), needed.default, only, edge.is_folded))
        may_be_absent = any(take.classes is not None or len(take.slots) > 1 or take.is_folded for take in takes)
        after_absent = any(not node.is_simple for node in nodes)
        function = step.effect.function
        first = list(inspect.signature(function).parameters.values())[: len(edges)]
        by_position = [one.name for one in first] == list(edges) and all(one.kind is one.POSITIONAL_OR_KEYWORD for one in first)
        nodes.append(
            Node(
                step=step,
                name=step.name,
                function=function,
                slot=slots[step.name],
                slots=tuple(take.slots[0] for take in takes),
                is_simple=by_position and not may_be_absent and not after_absent and all(take.default is REQUIRED for take in takes),
                is_async=step.kind != "call" or inspect.iscoroutinefunction(function),
                returns=classes(step.returns) or (),
                takes=tuple(takes),
            )
        )
    start: list[Any] = [ABSENT] * len(slots)
    for name, wanted in wiring.inputs.items():
        if wanted.default is not REQUIRED:
            start[slots[name]] = wanted.default
    return Plan(
        flow=wiring.flow,
        inputs={name: (slots[name], classes(wanted.hint)) for name, wanted in wiring.inputs.items()},
        start=tuple(start),
        nodes=tuple(nodes),
        results=tuple(slots[name] for name in wiring.results),
        is_plain=not any(node.is_async or node.step.is_stream for node in nodes),
    )


@dataclass(slots=True, eq=False)
class Walk:
    """One run of a plan: what is known so far, and the spans of what was done."""

    plan: Plan
    values: list[Any]
    performer: Performer | None
    spans: list[Span] = field(default_factory=list)
    streams: list[Any] = field(default_factory=list)  # opened, and to be closed

    async def take(self, node: Node) -> None:
        """Run one step, unless what it takes is absent."""
        values = self.values
        arguments: list[Any] = []
        named: dict[str, Any] = {}
        if node.is_simple:
            arguments = [values[slot] for slot in node.slots]
        elif not await self._fill(node, named):
            return
        children: list[Span] = []
        token = open_children.set(children)
        start_s = time.monotonic()
        try:
            if self.performer is not None:
                given = named or dict(zip(node.step.inputs, arguments, strict=False))
                result = await self._performed(node, given, self.performer)
            else:
                result = node.function(*arguments, **named)
                if node.is_async or inspect.isawaitable(result):
                    result = await result
            if node.returns and not isinstance(result, node.returns):
                raise FlowError(
                    f"step {node.name!r} of flow {self.plan.flow!r} promises {show(node.step.returns)} and returned "
                    f"{type(result).__name__}; mend the step, or its hint"
                )
        except BaseException as error:
            open_children.reset(token)
            attributes = {"error": f"{type(error).__name__}: {error}"}
            self.spans.append(Span(node.name, start_s, time.monotonic() - start_s, attributes, tuple(children)))
            if isinstance(error, Exception):
                error.add_note(f"in step {node.name!r} of flow {self.plan.flow!r}")
            raise
        open_children.reset(token)
        self.spans.append(Span(node.name, start_s, time.monotonic() - start_s, {}, tuple(children)))
        if node.step.is_stream:
            self.streams.append(result)
        values[node.slot] = result

    async def finish(self) -> Any:
        """The result; a stream is collected, and None stands for that of a step that did not run."""
        found = self.result()
        return [item async for item in found] if self.is_stream(found) else found

    def is_stream(self, value: Any) -> bool:
        return any(value is stream for stream in self.streams)

    def result(self) -> Any:
        return next((self.values[slot] for slot in self.plan.results if self.values[slot] is not ABSENT), None)

    async def close(self) -> None:
        """Close the streams, the last first."""
        with anyio.CancelScope(shield=True):
            for stream in reversed(self.streams):
                await stream.aclose()

    async def _fill(self, node: Node, named: dict[str, Any]) -> bool:
        """Put the arguments in by name; False if the step does not run."""
        for take in node.takes:
            found = next((self.values[slot] for slot in take.slots if self.values[slot] is not ABSENT), ABSENT)
            if found is not ABSENT and take.is_folded:
                found = [item async for item in found]
            if found is not ABSENT and (take.classes is None or isinstance(found, take.classes)):
                named[take.parameter] = found
            elif take.default is REQUIRED:
                return False
        return True

    async def _performed(self, node: Node, given: Mapping[str, Any], performer: Performer) -> Any:
        """A step of an execution: journalled, or made of steps that are."""
        path = within(node.name)
        if node.step.kind != "call":
            with scoped(path):
                return await node.function(**given)
        if not node.step.is_stream:
            return await performer.perform(path, node.step.effect, given)
        return _replayed(
            await performer.perform(path, _collected(node.step.effect), {name: await _whole(one) for name, one in given.items()})
        )


async def walk_all(walk: Walk, max_concurrency: int) -> None:
    """All steps in order; with a bound above 1, steps that wait for nothing more run at the same time, and are begun in order."""
    if max_concurrency == 1:
        for node in walk.plan.nodes:
            await walk.take(node)
        return
    waits = {node.slot: {slot for take in node.takes for slot in take.slots if slot >= len(walk.plan.inputs)} for node in walk.plan.nodes}
    send, receive = anyio.create_memory_object_stream[int](len(waits))
    left, running = list(walk.plan.nodes), 0

    async def one(node: Node, *, task_status: TaskStatus[None]) -> None:
        task_status.started()  # whoever begins the steps goes on when this one waits, so that they begin in order on any event loop
        await walk.take(node)
        send.send_nowait(node.slot)

    try:
        async with send, receive, anyio.create_task_group() as group:
            while left or running:
                for node in [node for node in left if not waits[node.slot]][: max_concurrency - running]:
                    left.remove(node)
                    running += 1
                    await group.start(one, node)
                done = await receive.receive()
                running -= 1
                for slots in waits.values():
                    slots.discard(done)
    except BaseExceptionGroup as errors:
        raise first_error(errors) from None


def _collected(effect: Effect[..., Any]) -> Effect[..., Any]:
    """A stream as an effect that is done when it has ended."""

    async def collect(**arguments: Any) -> Any:
        async with aclosing(cast(AsyncGenerator[Any, None], effect.function(**arguments))) as items:
            return [item async for item in items]

    hints = hints_of(effect.function)
    collect.__annotations__ = {**hints, "return": list_of(streamed(hints.get("return")))}
    collect.__signature__ = inspect.signature(effect.function)  # type: ignore[attr-defined]

    return Effect(collect, effect.name, effect.repeatable)


async def _whole(value: Any) -> Any:
    return [item async for item in value] if isinstance(value, AsyncIterator) else value


async def _replayed(items: list[Any]) -> AsyncIterator[Any]:
    for item in items:
        yield item
