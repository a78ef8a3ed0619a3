"""A pipeline as data: typed functions whose edges come from their type hints, checked before they run."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from tripod.bridge import run
from tripod.errors import ConfigError, FlowError
from tripod.flows.effects import execution, scoped, within
from tripod.flows.hints import list_of, show, streamed
from tripod.flows.plan import ABSENT, Walk, compile_plan, walk_all
from tripod.flows.step import Input, Step, Stepped, as_step, expect_positive, step
from tripod.flows.wiring import Wiring
from tripod.trace import attach, span, timed


@dataclass(frozen=True, slots=True)
class Item:
    """What `Flow.stream` yields: a step that ended, a piece of the result where that is a stream, and at the end the result."""

    step: str
    value: Any
    is_result: bool = False


class Flow:
    """Typed functions as one function: `await flow(question="...")`.

    What a function takes comes from the step of the parameter's name, or from the one step whose result is of the parameter's type; what
    no step makes is an input of the flow. Where that is not plain, `step(function, parameter="where from")` says it. A step that returns
    `A | B` is a branch: of the steps after it, those that take `A` run if it returned an `A`. Steps run one after the other, in an order
    that depends on names and edges alone.

    Args:
        steps: functions, `step(...)`, `each(...)`, `loop(...)`, `branch(...)`, or other flows.
        name: what traces, drawings and journals call it.
        inputs: names and types of its inputs; a parameter of another name that no step makes is then an error. None: whatever is needed.
        returns: the step whose result is the flow's; None: the one at the end.
        max_concurrency: above 1, steps that do not wait for each other run at the same time; they are begun in order.

    Raises:
        ConfigError: two steps of one name; a missing, ambiguous or mistyped input; a circle; a result that nothing takes.
    """

    def __init__(
        self,
        *steps: Stepped,
        name: str = "flow",
        inputs: Mapping[str, Any] | None = None,
        returns: str | None = None,
        max_concurrency: int = 1,
    ) -> None:
        expect_positive("max_concurrency", max_concurrency)
        self.name = name
        self.max_concurrency = max_concurrency
        self.wiring = Wiring(name, [as_step(one) for one in steps], inputs, returns)
        self.plan = compile_plan(self.wiring)
        self.asked_returns = returns

    @classmethod
    def chain(cls, *steps: Stepped, name: str = "flow", max_concurrency: int = 1) -> Flow:
        """Each step's first parameter, unless it is wired already, takes the result of the step before."""
        made = [as_step(one) for one in steps]
        for number, (before, after) in enumerate(pairwise(made), start=1):
            first = next((parameter for parameter in after.inputs if parameter not in after.takes), None)
            if first is None:
                raise ConfigError(f"step {after.name!r} has no free parameter to take the result of {before.name!r}")
            made[number] = step(after, takes={first: before.name})
        return cls(*made, name=name, returns=made[-1].name if made else None, max_concurrency=max_concurrency)

    @property
    def inputs(self) -> Mapping[str, Input]:
        """What it must be given."""
        return self.wiring.inputs

    @property
    def returns(self) -> Any:
        """The type of its result."""
        return self.wiring.returns

    @property
    def whole(self) -> Any:
        """The type of its result once a stream is collected."""
        item = streamed(self.returns)
        return self.returns if item is None else list_of(item)

    @property
    def fingerprint(self) -> str:
        """Names its steps and wires."""
        wires = {name: {parameter: edge.sources for parameter, edge in edges.items()} for name, edges in self.wiring.edges.items()}
        return hashlib.sha256(repr((sorted((one.name, one.kind) for one in self.steps), wires, self.wiring.results)).encode()).hexdigest()[
            :16
        ]

    @property
    def steps(self) -> tuple[Step, ...]:
        """In the order in which they run."""
        return self.wiring.order

    async def __call__(self, **inputs: Any) -> Any:
        """Run it, and return its result; a stream is collected into a list.

        Raises:
            ConfigError: an input is missing, unknown or of another type; named before anything runs.
            FlowError: a step returned what it does not promise, or a loop did not end within its bound.
        """
        at_work = execution.get()
        with span(self.name), scoped(at_work.unique(within(self.name))) if at_work is not None else nullcontext():
            return await self.inside(**inputs)

    async def inside(self, **inputs: Any) -> Any:
        """As `__call__`, but as a step of a flow or as an execution runs it: in the span and the scope that are open."""
        walk = self._begin(inputs)
        try:
            await walk_all(walk, self.max_concurrency)
            return await walk.finish()
        finally:
            if walk.streams:
                await walk.close()
            attach(*walk.spans)

    def run(self, **inputs: Any) -> Any:
        """The same from synchronous code. A flow of plain functions runs at once, on this thread; any other goes over `tripod.run`."""
        if not self.plan.is_plain or execution.get() is not None:
            return run(self(**inputs))
        walked = self(**inputs)
        try:
            walked.send(None)
        except StopIteration as ended:
            return ended.value
        walked.close()
        raise FlowError(f"flow {self.name!r}: a plain function returned something to wait for; make it 'async def', or await the flow")

    async def stream(self, **inputs: Any) -> AsyncGenerator[Item, None]:
        """Run it step by step: an `Item` as each step ends, one for every piece of the result where that is a stream, and the result."""
        walk = self._begin(inputs)
        with timed(attach, self.name, walk.spans):
            try:
                for node in self.plan.nodes:
                    await walk.take(node)
                    if not node.step.is_stream and walk.values[node.slot] is not ABSENT:
                        yield Item(node.name, walk.values[node.slot])
                found, name = walk.result(), self.wiring.results[0]
                if walk.is_stream(found):
                    pieces = []
                    async for piece in found:
                        pieces.append(piece)
                        yield Item(name, piece)
                    found = pieces
                yield Item(name, found, is_result=True)
            finally:
                await walk.close()

    @asynccontextmanager
    async def until(self, *breakpoints: str, **inputs: Any) -> AsyncIterator[Paused]:
        """Run it up to the first of some steps, and stop there: `async with flow.until("prompt", question=...) as paused`."""
        unknown = [name for name in breakpoints if name not in self.wiring.steps]
        if unknown or not breakpoints:
            raise ConfigError(f"no step of flow {self.name!r} is named {(unknown or [''])[0]!r}; there are: {', '.join(self.wiring.steps)}")
        walk = self._begin(inputs)
        paused = Paused(self, walk, frozenset(breakpoints))
        with timed(attach, self.name, walk.spans):
            try:
                await paused.resume()
                yield paused
            finally:
                await paused.close()

    def mermaid(self) -> str:
        """A drawing as Mermaid's text."""
        from tripod.flows.drawing import mermaid

        return mermaid(self)

    def svg(self) -> str:
        """A drawing as SVG."""
        from tripod.flows.drawing import svg

        return svg(self)

    def to_yaml(self) -> str:
        """Its steps and wires as YAML. Functions are named, so whoever reads it must know them: `Flow.from_yaml(text, allow=[...])`."""
        from tripod.flows.yaml_form import to_yaml

        return to_yaml(self)

    @staticmethod
    def from_yaml(text: str, *, allow: Collection[Any]) -> Flow:
        """A flow from YAML. A name in it is one of the functions, effects and flows of `allow`, and nothing else is ever looked up.

        Raises:
            ConfigError: it is no YAML of a flow, or names what is not allowed.
        """
        from tripod.flows.yaml_form import from_yaml

        return from_yaml(text, allow)

    def __repr__(self) -> str:
        given = ", ".join(f"{name}: {show(wanted.hint)}" for name, wanted in self.inputs.items())
        return f"{self.name}({given}) -> {show(self.returns)}: {' -> '.join(one.name for one in self.steps)}"

    def _begin(self, inputs: Mapping[str, Any]) -> Walk:
        values = list(self.plan.start)
        wanted = self.plan.inputs
        for name, value in inputs.items():
            if name not in wanted:
                raise ConfigError(f"flow {self.name!r} has no input {name!r}; it takes {', '.join(wanted) or 'nothing'}")
            slot, kinds = wanted[name]
            if kinds is not None and not isinstance(value, kinds):
                raise ConfigError(
                    f"flow {self.name!r}: input {name!r} is {show(self.inputs[name].hint)}, and {value!r:.200} is a {type(value).__name__}"
                )
            values[slot] = value
        if len(inputs) < len(wanted):
            missing = [self.wiring.needs(name) for name, (slot, _) in wanted.items() if values[slot] is ABSENT]
            if missing:
                raise ConfigError(f"flow {self.name!r} is not given {' and '.join(missing)}")
        return Walk(self.plan, values, execution.get())


class Paused:
    """A flow that stopped before a step. What is known may be looked at and changed, and then it goes on."""

    def __init__(self, flow: Flow, walk: Walk, breakpoints: Collection[str]) -> None:
        self._flow, self._walk, self._breakpoints = flow, walk, breakpoints
        self._left = list(flow.plan.nodes)

    @property
    def before(self) -> str | None:
        """The step that it stands before; None: it is at its end."""
        return self._left[0].name if self._left else None

    @property
    def values(self) -> dict[str, Any]:
        """What is known: inputs, and results of steps, by name."""
        places = {name: slot for name, (slot, _) in self._flow.plan.inputs.items()} | {
            node.name: node.slot for node in self._flow.plan.nodes
        }
        return {name: self._walk.values[slot] for name, slot in places.items() if self._walk.values[slot] is not ABSENT}

    async def resume(self, **changes: Any) -> Any:
        """Go on to the next breakpoint, or to the end; returns the result there, and None before.

        Args:
            changes: other values for inputs and results that are known.
        """
        known = self.values
        for name, value in changes.items():
            if name not in known:
                raise ConfigError(f"{name!r} is not known at this point, so it cannot be changed; known are: {', '.join(known)}")
            slots = {node.name: node.slot for node in self._flow.plan.nodes}
            self._walk.values[slots[name] if name in slots else self._flow.plan.inputs[name][0]] = value
        is_first = True
        while self._left:
            if self._left[0].name in self._breakpoints and not (is_first and self._walk.spans):
                return None
            await self._walk.take(self._left.pop(0))
            is_first = False
        return await self._walk.finish()

    async def close(self) -> None:
        await self._walk.close()
