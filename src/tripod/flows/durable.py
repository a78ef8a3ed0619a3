"""`@durable`: a function that goes on where it was when its process ended; what it may wait for."""

from __future__ import annotations

import inspect
import os
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, cast, overload

import anyio

from tripod.errors import ConfigError
from tripod.flows.code import fingerprint
from tripod.flows.effects import execution, expect_names, scoped, within
from tripod.flows.flow import Flow
from tripod.flows.hints import hints_of
from tripod.flows.working import Working

if TYPE_CHECKING:
    from tripod.flows.journal import Journal

P = ParamSpec("P")
T = TypeVar("T")


class Durable(Generic[P, T]):
    """A function, or a flow, that a journal can run. Made by `durable`.

    Called directly it runs in its journal, under a new id, and returns its result; `Journal.run` gives it an id and tells where it stands.
    Only effects (`@effect`) are journalled: all other code runs again when an execution is resumed, and must do the same again.
    """

    def __init__(self, function: Any, journal: str | Path | None = None) -> None:
        self.__wrapped__ = function
        self.journal = journal
        self.name: str = function.name if isinstance(function, Flow) else function.__name__
        self.fingerprint: str
        if isinstance(function, Flow):
            self.hints: Mapping[str, Any] = {**{name: one.hint for name, one in function.inputs.items()}, "return": function.whole}
            self.fingerprint = function.fingerprint
        else:
            self.hints = hints_of(function)
            self.fingerprint = fingerprint(function)

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run it to its end in its journal; a sleep is slept.

        Raises:
            JournalError: it waits for a person, or an effect is in doubt.
        """
        from tripod.flows.journal import Journal

        at_work = execution.get()
        if at_work is not None:  # a part of another execution
            with scoped(at_work.unique(within(self.name))):
                return cast(T, await self.inside(**self.bind(args, kwargs)))
        async with Journal(self.journal or default_journal()) as journal:
            return cast(T, await finished(journal, self, args, kwargs))

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments by name."""
        if isinstance(self.__wrapped__, Flow):
            if args:
                raise ConfigError(f"flow {self.name!r} takes its inputs by name: {', '.join(self.__wrapped__.inputs)}")
            return dict(kwargs)
        try:
            return dict(inspect.signature(self.__wrapped__).bind(*args, **kwargs).arguments)
        except TypeError as error:
            raise ConfigError(f"{self.name!r}: {error}") from None

    @property
    def inside(self) -> Callable[..., Awaitable[Any]]:
        """The function itself, for an execution to run."""
        return self.__wrapped__.inside if isinstance(self.__wrapped__, Flow) else self.__wrapped__


@overload
def durable(function: Flow, /) -> Durable[..., Any]: ...
@overload
def durable(function: Callable[P, Awaitable[T]], /) -> Durable[P, T]: ...
@overload
def durable(*, journal: str | Path) -> Callable[[Callable[P, Awaitable[T]]], Durable[P, T]]: ...
def durable(function: Any = None, /, *, journal: str | Path | None = None) -> Any:
    """Make an async function, or a flow, durable: `@durable`, or `@durable(journal="work.db")`.

    Args:
        function: its arguments and its result are journalled by their type hints.
        journal: where it runs when it is called directly; None: `TRIPOD_JOURNAL`, or a file in the user's data folder.

    Raises:
        ConfigError: it is no async function.
    """
    if function is None:
        return lambda function: _made(function, journal)
    return _made(function, journal)


def as_durable(function: Any) -> Durable[..., Any]:
    """What a journal is given, as what it can run."""
    return function if isinstance(function, Durable) else _made(function, None)


async def wait_for(name: str, returns: type[T], *, question: str = "", timeout_s: float | None = None) -> T:
    """A person's answer. The execution ends here until `journal.answer(id, name, ...)` was called and it is resumed, in whatever process.

    Args:
        name: of the step.
        returns: type of the answer.
        question: for the person.
        timeout_s: how long the question stands; None: for ever.

    Raises:
        ConfigError: not inside of an execution.
        TimeoutError: nobody answered in time.
    """
    at_work = _at_work("wait_for")
    return cast(T, await at_work.wait(at_work.unique(within(name)), question, returns, timeout_s))


async def sleep(seconds: float, *, name: str = "sleep") -> None:
    """Let time go by, days if need be: the execution ends here, and may be resumed when it is over.

    Raises:
        ConfigError: not inside of an execution.
    """
    at_work = _at_work("sleep")
    await at_work.sleep(at_work.unique(within(name)), seconds)


async def finished(journal: Journal, function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The result of an execution; what it sleeps is waited for.

    Raises:
        JournalError: it waits for a person, or an effect is in doubt.
    """
    found = await journal.run(function, *args, **kwargs)
    while found.state == "sleeping" and found.wake_at_s is not None:
        await anyio.sleep(max(0.0, found.wake_at_s - journal.clock()))
        found = await journal.resume(found.id, function)
    return found.result


def default_journal() -> Path:
    """`TRIPOD_JOURNAL`, or `journal.db` in the user's data folder."""
    if told := os.environ.get("TRIPOD_JOURNAL"):
        return Path(told)
    from platformdirs import user_data_path

    return user_data_path("tripod", ensure_exists=True) / "journal.db"


def _made(function: Any, journal: str | Path | None) -> Durable[..., Any]:
    if not isinstance(function, Flow) and not inspect.iscoroutinefunction(function):
        raise ConfigError(f"{getattr(function, '__name__', function)!r} is no async function, so it cannot be durable; write 'async def'")
    if not isinstance(function, Flow):
        expect_names(f"durable {function.__name__!r}", function)
    return Durable(function, journal)


def _at_work(what: str) -> Working:
    at_work = execution.get()
    if not isinstance(at_work, Working):
        raise ConfigError(f"{what} was called outside of an execution; call it in a function that a journal runs")
    return at_work
