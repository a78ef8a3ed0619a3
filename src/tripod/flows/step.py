"""The steps of a flow: a typed function, one mapped over a list, one repeated until it is content, one of two by a condition."""

from __future__ import annotations

import inspect
import types
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import anyio

from tripod.errors import ConfigError, FlowError
from tripod.flows.effects import KEY, Effect, invoke
from tripod.flows.hints import fits, hints_of, list_of, show, union

REQUIRED: Any = inspect.Parameter.empty
Wire: TypeAlias = "str | Callable[..., Any] | Sequence[str | Callable[..., Any]]"
Kind: TypeAlias = Literal["call", "each", "loop", "branch", "flow"]


@dataclass(frozen=True, slots=True)
class Input:
    """What a step, or a flow, must be given under one name."""

    hint: Any
    default: Any = REQUIRED


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Step:
    """One node of a flow. Made by `step`, `each`, `loop` and `branch`; a plain function is made one where it is given to a flow."""

    name: str
    effect: Effect[..., Any]  # what is called
    inputs: Mapping[str, Input]  # by parameter, in the order of the signature
    returns: Any
    kind: Kind = "call"
    parts: Mapping[str, Any] = field(default_factory=dict)  # what it is made of, by the words of the YAML form
    takes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # parameter -> the steps or the input that it is wired to

    def __post_init__(self) -> None:
        unknown = [parameter for parameter in self.takes if parameter not in self.inputs]
        if unknown:
            raise ConfigError(f"step {self.name!r} has no parameter {unknown[0]!r}; it takes {', '.join(self.inputs) or 'nothing'}")

    @property
    def is_stream(self) -> bool:
        return inspect.isasyncgenfunction(self.effect.function)


@runtime_checkable
class FlowLike(Protocol):
    """A flow, which may be a step of another."""

    name: str

    @property
    def inputs(self) -> Mapping[str, Input]: ...

    @property
    def returns(self) -> Any: ...

    def inside(self, **inputs: Any) -> Awaitable[Any]: ...


Stepped: TypeAlias = "Step | FlowLike | Callable[..., Any]"


def as_step(given: Stepped) -> Step:
    """A function, an effect, a flow or a step, as a step."""
    if isinstance(given, Step):
        return given
    if isinstance(given, FlowLike):

        async def run(**inputs: Any) -> Any:
            return await given.inside(**inputs)

        run.__name__ = given.name
        return Step(name=given.name, effect=Effect(run), inputs=given.inputs, returns=given.returns, kind="flow", parts={"flow": given})
    effect = given if isinstance(given, Effect) else Effect(given)
    return Step(name=effect.name, effect=effect, inputs=_inputs(effect), returns=_returned(effect), parts={"call": effect.function})


def step(
    function: Stepped, /, *, name: str | None = None, repeatable: bool | None = None, takes: Mapping[str, Wire] | None = None, **wires: Wire
) -> Step:
    """A step under a name of its own, or with inputs that come from named steps: `step(clean, text=load)`.

    Args:
        function: a typed function, plain or async; an async generator is a stream.
        name: None: the function's.
        repeatable: whether a durable run may call it again when it does not know whether it was called; None: as the function says.
        takes: the same as `wires`, for a parameter whose name is taken here.
        wires: parameter -> the step, or the name of the step or of the input of the flow, that it comes from; several, of which exactly
            one runs, make a join.
    """
    made = as_step(function)
    wired = {parameter: _names(wire) for parameter, wire in {**(takes or {}), **wires}.items()}
    effect = made.effect if repeatable is None else replace(made.effect, repeatable=repeatable)
    return replace(made, name=name or made.name, effect=effect, takes={**made.takes, **wired})


def each(function: Stepped, /, *, over: str | None = None, limit: int = 8, name: str | None = None, **wires: Wire) -> Step:
    """A step that calls a function for every item of a list, and returns the results in the order of the items.

    Args:
        function: what is called.
        over: the parameter that takes an item; None: the first. All other parameters are the same for all items.
        limit: so many at the same time at most; they are begun in order.
        name: None: the function's.
        wires: as in `step`.
    """
    inner = as_step(function)
    over = over or _first(inner, "each")
    _expect_parameter(inner, over, "over")
    expect_positive("limit", limit)
    call, is_effect = inner.effect, inner.kind == "call"

    async def mapped(**arguments: Any) -> list[Any]:
        items = list(arguments.pop(over))
        results: list[Any] = [None] * len(items)
        numbers = iter(range(len(items)))

        async def work() -> None:
            for number in numbers:
                results[number] = await invoke(call, {**arguments, over: items[number]}, f"[{number}]", is_effect)

        if limit == 1 or len(items) < 2:
            await work()
        else:
            await at_once(*[work] * min(limit, len(items)))
        return results

    inputs = {**inner.inputs, over: Input(types.GenericAlias(Sequence, (inner.inputs[over].hint,)))}
    parts = {"each": inner, "over": over, "limit": limit}
    made = Step(
        name=inner.name, effect=_composite(mapped, inner.name), inputs=inputs, returns=list_of(inner.returns), kind="each", parts=parts
    )
    return step(made, name=name, takes={**inner.takes, **wires})


def loop(
    function: Stepped,
    /,
    *,
    until: Callable[[Any], bool],
    at_most: int,
    over: str | None = None,
    name: str | None = None,
    **wires: Wire,
) -> Step:
    """A step that gives a function its own result again, until the result is good.

    Args:
        function: what is called; its result must fit the parameter that takes it.
        until: whether a result is good.
        at_most: so many calls; FlowError if the last result is still not good.
        over: the parameter that takes the result; None: the first.
        name: None: the function's.
        wires: as in `step`.
    """
    inner = as_step(function)
    over = over or _first(inner, "loop")
    _expect_parameter(inner, over, "over")
    expect_positive("at_most", at_most)
    if not fits(inner.returns, inner.inputs[over].hint):
        raise ConfigError(
            f"loop({inner.name}): it returns {show(inner.returns)}, which its parameter {over!r} ({show(inner.inputs[over].hint)}) "
            "does not take; name with over= the parameter that takes the last result"
        )
    call, is_effect = inner.effect, inner.kind == "call"

    async def repeated(**arguments: Any) -> Any:
        for turn in range(at_most):
            arguments[over] = await invoke(call, arguments, f"[{turn}]", is_effect)
            if until(arguments[over]):
                return arguments[over]
        raise FlowError(
            f"loop {inner.name!r} is not done after at_most={at_most} calls; raise the bound, or look at what 'until' waits for"
        )

    parts = {"loop": inner, "until": until, "at_most": at_most, "over": over}
    made = Step(
        name=inner.name, effect=_composite(repeated, inner.name), inputs=inner.inputs, returns=inner.returns, kind="loop", parts=parts
    )
    return step(made, name=name, takes={**inner.takes, **wires})


def branch(condition: Callable[..., bool], /, *, then: Stepped, otherwise: Stepped, name: str | None = None, **wires: Wire) -> Step:
    """A step that is one of two, by a condition on what both are given. Where the two go on differently, let a step return `A | B` instead.

    Args:
        condition: decides; pure, since a resumed run decides again.
        then: runs where the condition holds.
        otherwise: runs where it does not.
        name: None: the condition's.
        wires: as in `step`.
    """
    decides, yes, no = as_step(condition), as_step(then), as_step(otherwise)
    inputs: dict[str, Input] = {}
    for one in (decides, yes, no):
        for parameter, needed in one.inputs.items():
            known = inputs.setdefault(parameter, needed)
            if not fits(known.hint, needed.hint) and not fits(needed.hint, known.hint):
                raise ConfigError(
                    f"branch({decides.name}): {parameter!r} is {show(known.hint)} in one of its functions and {show(needed.hint)} in "
                    f"{one.name!r}; give them different names"
                )
            if fits(needed.hint, known.hint):
                inputs[parameter] = needed

    async def chosen(**arguments: Any) -> Any:
        taken = yes if decides.effect.function(**{key: arguments[key] for key in decides.inputs if key in arguments}) else no
        given = {key: arguments[key] for key in taken.inputs if key in arguments}
        return await invoke(taken.effect, given, f".{taken.name}", taken.kind == "call")

    returns = union([yes.returns, no.returns])
    parts = {"branch": condition, "then": yes, "otherwise": no}
    made = Step(name=decides.name, effect=_composite(chosen, decides.name), inputs=inputs, returns=returns, kind="branch", parts=parts)
    return step(made, name=name, takes={**yes.takes, **no.takes, **wires})


async def at_once(*functions: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run functions at the same time; the first error stops the others, and rises as itself."""
    try:
        async with anyio.create_task_group() as group:
            for function in functions:
                group.start_soon(function)
    except BaseExceptionGroup as errors:
        raise first_error(errors) from None


def first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    first = group.exceptions[0]
    return first_error(first) if isinstance(first, BaseExceptionGroup) else first


def wired_name(wire: str | Callable[..., Any] | Step) -> str:
    return wire if isinstance(wire, str) else as_step(wire).name


def _names(wire: Wire | Step) -> tuple[str, ...]:
    return tuple(map(wired_name, wire)) if isinstance(wire, Sequence) and not isinstance(wire, str) else (wired_name(wire),)


def _composite(function: Callable[..., Awaitable[Any]], name: str) -> Effect[..., Any]:
    function.__name__ = name
    return Effect(function)


def _inputs(effect: Effect[..., Any]) -> dict[str, Input]:
    hints = hints_of(effect.signed)
    found = {}
    try:
        signature = inspect.signature(effect.function)
    except ValueError:
        raise ConfigError(f"step {effect.name!r} tells no signature, as some built-in functions do not; wrap it in a function") from None
    for parameter in signature.parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise ConfigError(f"step {effect.name!r} takes {parameter}; a flow must know its inputs: write a function that names them")
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise ConfigError(f"step {effect.name!r} takes {parameter.name!r} by position only; a flow gives inputs by name: drop the '/'")
        if parameter.name != KEY:
            found[parameter.name] = Input(hints.get(parameter.name, Any), parameter.default)
    return found


def _returned(effect: Effect[..., Any]) -> Any:
    returns = hints_of(effect.signed).get("return", effect.function if inspect.isclass(effect.function) else Any)
    return type(None) if returns is None else returns


def _first(inner: Step, what: str) -> str:
    if not inner.inputs:
        raise ConfigError(f"{what}({inner.name}): the function takes nothing, so there is nothing to give it")
    return next(iter(inner.inputs))


def _expect_parameter(inner: Step, parameter: str, option: str) -> None:
    if parameter not in inner.inputs:
        raise ConfigError(f"{option}={parameter!r}: {inner.name!r} has no such parameter; it takes {', '.join(inner.inputs)}")


def expect_positive(option: str, number: int) -> None:
    if not isinstance(number, int) or number < 1:
        raise ConfigError(f"{option}={number!r} is no number of times; give a whole number, at least 1")
