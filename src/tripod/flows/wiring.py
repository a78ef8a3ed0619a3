"""Which step's result goes where: inferred from names and types, told where that is ambiguous, checked before anything runs."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from tripod.errors import ConfigError
from tripod.flows.hints import alternatives, fits, is_telling, list_of, show, streamed, union
from tripod.flows.step import REQUIRED, Input, Step

Conditions: TypeAlias = dict[str, frozenset[int]]  # step that decides -> which of the alternatives of its result


@dataclass(frozen=True, slots=True)
class Edge:
    """What one parameter is given."""

    sources: tuple[str, ...]  # an input of the flow, or a step; or several steps, of which one runs
    is_input: bool = False
    is_partial: bool = False  # a source may return something else too, and then the step does not run
    is_folded: bool = False  # a stream is collected into a list first


class Wiring:
    """The edges of a flow, its inputs, the order of its steps, and the steps that its result comes from.

    For each parameter, in this order: what it is wired to; the declared input, or the step, of its name; the one step whose result is of
    its type, if that type tells what a value is for (`Passage` does, `str` does not); an input of the flow. None of it depends on the
    order in which steps were given.

    Raises:
        ConfigError: two steps of one name; a missing, ambiguous or mistyped input; a cycle; a result that nothing takes.
    """

    def __init__(self, flow: str, steps: Sequence[Step], declared: Mapping[str, Any] | None, returns: str | None) -> None:
        self.flow = flow
        self.steps = {step.name: step for step in sorted(steps, key=lambda step: step.name)}
        if not steps:
            raise ConfigError(f"flow {flow!r} has no step; give at least one function")
        if len(self.steps) < len(steps):
            names = [step.name for step in steps]
            twice = next(name for name in names if names.count(name) > 1)
            raise ConfigError(f"flow {flow!r} has two steps named {twice!r}; give one of them another with step(function, name=...)")
        self.declared = declared
        self.inputs: dict[str, Input] = {}
        self._needed_by: dict[str, str] = {}
        self._conditions: dict[str, Conditions] = {}
        self._resolving: list[str] = []
        self.edges: dict[str, dict[str, Edge]] = {}
        for name in self.steps:
            self._resolve(name)
        unused = [name for name in declared or () if name not in self.inputs]
        if unused:
            raise ConfigError(f"flow {flow!r} declares the input {unused[0]!r}, which no step takes; drop it, or name a parameter so")
        self.order = self._sorted()
        self.results = self._results(returns)
        self.returns = self._returned()

    def needs(self, name: str) -> str:
        """Who wants an input, and why nobody makes it."""
        hint = self.inputs[name].hint
        why = f"; no step returns {show(hint)}" if is_telling(hint) else ""
        return f"{name!r} ({show(hint)}) of step {self._needed_by[name]!r}{why}"

    def _resolve(self, name: str) -> Conditions:
        """The edges into a step, and with them under which conditions it runs."""
        if name in self._conditions:
            return self._conditions[name]
        if name in self._resolving:
            cycle = " -> ".join([*self._resolving[self._resolving.index(name) :], name])
            raise ConfigError(
                f"flow {self.flow!r} goes in a circle without a bound (each needs the next: {cycle}); repeat a step with "
                "loop(function, until=..., at_most=...), or wire an input by hand"
            )
        self._resolving.append(name)
        step, conditions = self.steps[name], Conditions()
        self.edges[name] = {}
        for parameter, needed in step.inputs.items():
            edge = self._edge(step, parameter, needed)
            if edge is None:
                continue
            self.edges[name][parameter] = edge
            if not edge.is_input and needed.default is REQUIRED:
                _require(conditions, self._conditions_of(edge, needed.hint))
        self._resolving.pop()
        self._conditions[name] = conditions
        return conditions

    def _edge(self, step: Step, parameter: str, needed: Input) -> Edge | None:
        if parameter in step.takes:
            told = step.takes[parameter]
            for source in told:
                if source not in self.steps and (len(told) > 1 or (self.declared is not None and source not in self.declared)):
                    known = ", ".join([*self.steps, *(self.declared or ())])
                    raise ConfigError(f"step {step.name!r} takes {parameter!r} from {source!r}, which is not there; there are: {known}")
            if told[0] not in self.steps:
                return self._input(step, told[0], needed)
            return self._checked(step, parameter, needed, told)
        if self.declared is not None and parameter in self.declared:
            return self._input(step, parameter, needed)
        if parameter in self.steps and parameter != step.name:
            return self._checked(step, parameter, needed, (parameter,))
        if is_telling(needed.hint):
            found = tuple(other.name for other in self.steps.values() if other is not step and _makes(other.returns, needed.hint))
            if len(found) == 1 or (found and self._are_exclusive(found)):
                return self._checked(step, parameter, needed, found)
            if found:
                raise ConfigError(
                    f"step {step.name!r}: its input {parameter!r} ({show(needed.hint)}) is ambiguous, since {' and '.join(found)} return "
                    f"it; say which: step({step.name}, {parameter}={found[0]!r})"
                )
        if self.declared is not None:
            if needed.default is not REQUIRED:
                return None
            raise ConfigError(
                f"step {step.name!r}: its input {parameter!r} ({show(needed.hint)}) is missing; no step returns it, and the flow takes "
                f"only {', '.join(self.declared) or 'nothing'}"
            )
        return self._input(step, parameter, needed)

    def _input(self, step: Step, name: str, needed: Input) -> Edge:
        declared = Input((self.declared or {}).get(name, needed.hint), needed.default)
        known = self.inputs.get(name, declared)
        if not fits(known.hint, needed.hint):
            if not fits(needed.hint, known.hint):
                other = f"step {self._needed_by[name]!r}" if name in self._needed_by else "the flow's declaration"
                raise ConfigError(
                    f"input {name!r} is {show(needed.hint)} for step {step.name!r} and {show(known.hint)} for {other}; "
                    "give them different names"
                )
            declared = Input(needed.hint, declared.default)
        else:
            declared = Input(known.hint, declared.default)
        if REQUIRED in (known.default, needed.default):
            declared = Input(declared.hint)
        self.inputs[name] = declared
        if needed.default is REQUIRED or name not in self._needed_by:
            self._needed_by[name] = step.name
        return Edge((name,), is_input=True)

    def _checked(self, step: Step, parameter: str, needed: Input, sources: tuple[str, ...]) -> Edge:
        is_partial = is_folded = False
        for source in sources:
            produced = self.steps[source].returns
            if fits(produced, needed.hint):
                continue
            if streamed(produced) is not None and fits(list_of(streamed(produced)), needed.hint):
                is_folded = True
            elif any(fits(one, needed.hint) for one in alternatives(produced)):
                is_partial = True
            else:
                raise ConfigError(
                    f"step {step.name!r}: its input {parameter!r} is {show(needed.hint)}, but {source!r} returns {show(produced)}; "
                    "wire it to another step, or put one between them"
                )
        if len(sources) > 1 and not self._are_exclusive(sources):
            raise ConfigError(f"step {step.name!r}: {parameter!r} comes from {' and '.join(sources)}, which may both run; take one of them")
        return Edge(sources, is_partial=is_partial or len(sources) > 1, is_folded=is_folded)

    def _conditions_of(self, edge: Edge, hint: Any) -> Conditions:
        """Under which conditions an edge carries something."""
        found = []
        for source in edge.sources:
            conditions = dict(self._resolve(source))
            members = alternatives(self.steps[source].returns)
            taken = frozenset(number for number, member in enumerate(members) if fits(member, hint))
            if len(members) > 1 and len(taken) < len(members) and not edge.is_folded:
                _require(conditions, {source: taken})
            found.append(conditions)
        joined: Conditions = {}
        for router in set.intersection(*map(set, found)):
            either = frozenset[int]().union(*(conditions[router] for conditions in found))
            if len(either) < len(alternatives(self.steps[router].returns)):
                joined[router] = either
        return joined

    def _are_exclusive(self, names: Sequence[str]) -> bool:
        """Whether at most one of some steps runs, whatever the inputs."""
        conditions = [self._resolve(name) for name in names]
        return all(
            any(not one[router] & other[router] for router in one.keys() & other.keys())
            for number, one in enumerate(conditions)
            for other in conditions[:number]
        )

    def _sorted(self) -> tuple[Step, ...]:
        """Every step after those that it takes from; of those that may run next, the first by name."""
        before = {
            name: {source for edge in edges.values() if not edge.is_input for source in edge.sources} for name, edges in self.edges.items()
        }
        ready = [name for name, sources in before.items() if not sources]
        heapq.heapify(ready)
        order = []
        while ready:
            done = heapq.heappop(ready)
            order.append(self.steps[done])
            for name, sources in before.items():
                if done in sources:
                    sources.remove(done)
                    if not sources:
                        heapq.heappush(ready, name)
        return tuple(order)

    def _results(self, returns: str | None) -> tuple[str, ...]:
        takers: dict[str, list[Any]] = {name: [] for name in self.steps}
        for name, edges in self.edges.items():
            for parameter, edge in edges.items():
                for source in () if edge.is_input else edge.sources:
                    takers[source].append(self.steps[name].inputs[parameter].hint)
        for name, hints in takers.items():
            step = self.steps[name]
            if step.is_stream and len(hints) > 1:
                raise ConfigError(
                    f"the stream of {name!r} can be taken once, and {len(hints)} steps take it; collect it in a step of its own"
                )
            dropped = [one for one in alternatives(step.returns) if one is not type(None) and not any(fits(one, hint) for hint in hints)]
            if hints and dropped and len(alternatives(step.returns)) > 1:
                raise ConfigError(
                    f"{name!r} may return {show(dropped[0])}, which no step takes; add a step for it, or return something else"
                )
        if returns is not None:
            if returns not in self.steps:
                raise ConfigError(f"returns={returns!r} is no step of flow {self.flow!r}; there are: {', '.join(self.steps)}")
            return (returns,)
        ends = [step.name for step in self.order if not takers[step.name]]
        told = [name for name in ends if self.steps[name].returns is not type(None)] or ends
        if len(told) > 1 and not self._are_exclusive(told):
            raise ConfigError(f"flow {self.flow!r} ends in {' and '.join(told)}; say with returns= which of them is its result")
        return tuple(told)

    def _returned(self) -> Any:
        hints = [self.steps[name].returns for name in self.results]
        may_be_skipped = self._conditions_of(Edge(self.results), Any)
        return union([*hints, type(None)] if may_be_skipped else hints)


def _makes(produced: Any, wanted: Any) -> bool:
    """Whether a step is where a value of this type comes from."""
    if produced is Any:
        return False
    inner = streamed(produced)
    if inner is not None and streamed(wanted) is None:
        return inner is not Any and fits(list_of(inner), wanted)
    return any(one is not Any and one is not type(None) and fits(one, wanted) for one in alternatives(produced))


def _require(conditions: Conditions, more: Conditions) -> Conditions:
    """Both must hold."""
    for router, taken in more.items():
        conditions[router] = conditions[router] & taken if router in conditions else taken
    return conditions
