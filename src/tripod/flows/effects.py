"""A function that does something in the world, and where it stands in the execution that calls it, if one does."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Generic, ParamSpec, Protocol, TypeVar, cast, overload

from tripod.errors import ConfigError

P = ParamSpec("P")
T = TypeVar("T")

KEY = "idempotency_key"
"""The parameter by which a tool is told that a call is the same call again."""


class Performer(Protocol):
    """An execution at work: it journals an effect and calls it, or replays what it did."""

    async def perform(self, path: str, effect: Effect[..., Any], arguments: Mapping[str, Any]) -> Any: ...

    def unique(self, path: str) -> str: ...  # path, or path#2, path#3, ... where it was asked for before


execution: ContextVar[Performer | None] = ContextVar("tripod_execution", default=None)
scope: ContextVar[str] = ContextVar("tripod_scope", default="")


@dataclass(frozen=True, slots=True, init=False)
class Effect(Generic[P, T]):
    """A function whose calls an execution journals; outside of one it is called as it is. Made by `effect`.

    Inside of an execution a plain function runs in a thread. A parameter `idempotency_key: str = ""` gets a key that is the same whenever
    the same step runs again, unless the caller gives one.
    """

    function: Callable[P, Awaitable[T] | T]
    name: str
    repeatable: bool

    def __init__(self, function: Callable[P, Awaitable[T] | T], name: str | None = None, repeatable: bool = False) -> None:
        if not callable(function):
            raise ConfigError(f"{function!r} is no function, so it cannot be a step; give a function, a flow, or what step() made")
        object.__setattr__(self, "function", function)
        object.__setattr__(self, "name", name or getattr(function, "__name__", None) or type(function).__name__)
        object.__setattr__(self, "repeatable", repeatable)

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        at_work = execution.get()
        if at_work is None:
            found = self.function(*args, **kwargs)
            return cast(T, await found if inspect.isawaitable(found) else found)
        bound = inspect.signature(self.function).bind(*args, **kwargs)
        return cast(T, await at_work.perform(at_work.unique(within(self.name)), self, bound.arguments))

    @property
    def takes_key(self) -> bool:
        return KEY in inspect.signature(self.function).parameters

    @property
    def signed(self) -> Any:
        """What holds the type hints."""
        if inspect.isclass(self.function):
            return self.function.__init__
        return self.function if hasattr(self.function, "__name__") else type(self.function).__call__


@overload
def effect(function: Callable[P, Awaitable[T]], /) -> Effect[P, T]: ...
@overload
def effect(function: Callable[P, T], /) -> Effect[P, T]: ...
@overload
def effect(*, name: str | None = None, repeatable: bool = False) -> Callable[[Callable[P, Awaitable[T]]], Effect[P, T]]: ...
def effect(function: Any = None, /, *, name: str | None = None, repeatable: bool = False) -> Any:
    """Mark a function as one that does something in the world: `@effect`, or `@effect(repeatable=True)`.

    Args:
        function: plain or async, with type hints by which its arguments and its result are journalled.
        name: what the journal calls it; None: the function's name.
        repeatable: it may be called again without harm, as what only reads may; so its outcome is never in doubt.
    """
    if function is None:
        return lambda function: _made(function, name, repeatable)
    return _made(function, name, repeatable)


def _made(function: Callable[..., Any], name: str | None, repeatable: bool) -> Effect[..., Any]:
    made = Effect(function, name, repeatable)
    expect_names(f"effect {made.name!r}", function)
    return made


def expect_names(what: str, function: Callable[..., Any]) -> None:
    """
    Raises:
        ConfigError: an argument of the function cannot be given by a name of its own.
    """
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise ConfigError(f"{what} takes {parameter}; a journal keeps arguments by name: give each a name of its own")


def within(name: str) -> str:
    """The path of a step in the scope that is open here."""
    outer = scope.get()
    return f"{outer}/{name}" if outer else name


@contextmanager
def scoped(path: str) -> Iterator[None]:
    """Steps of the block stand below a path."""
    token = scope.set(path)
    try:
        yield
    finally:
        scope.reset(token)


async def invoke(effect: Effect[..., Any], arguments: Mapping[str, Any], suffix: str, is_effect: bool) -> Any:
    """Call what a composite step is made of. In an execution its path is that of the step, and the suffix.

    Args:
        effect: what to call.
        arguments: by name.
        suffix: such as "[3]" for the fourth item of a list.
        is_effect: False: it is made of steps that are journalled themselves.
    """
    at_work = execution.get()
    if at_work is None:
        found = effect.function(**arguments)
        return await found if inspect.isawaitable(found) else found
    path = scope.get() + suffix
    if is_effect:
        return await at_work.perform(path, effect, arguments)
    with scoped(path):
        return await effect.function(**arguments)
