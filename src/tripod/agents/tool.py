"""A typed function as a tool: its schema comes from its hints and its docstring."""

from __future__ import annotations

import inspect
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Generic,
    NotRequired,
    ParamSpec,
    TypeVar,
    cast,
    get_args,
    get_origin,
    get_type_hints,
    overload,
)

import anyio

from tripod.agents.context import Context
from tripod.chat.shape import described, rewritten
from tripod.errors import ConfigError, ToolError
from tripod.flows.effects import KEY, Effect
from tripod.messages import Content, File, ToolSpec

if TYPE_CHECKING:
    from pydantic import TypeAdapter

    from tripod.protocols import Tool, ToolContext

P = ParamSpec("P")
R = TypeVar("R")

_TIMEOUT_S = 60.0
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")  # what servers take
_SECTION = re.compile(r"^(Args|Arguments|Parameters|Returns|Raises|Yields|Examples?|Notes?):\s*$", re.MULTILINE)
_ARGUMENT = re.compile(r"^\s+\*{0,2}(\w+)(?:\s*\([^)]*\))?:\s*(.*)$")


@dataclass(frozen=True, slots=True, eq=False)
class FunctionTool(Generic[P, R]):
    """A function that a model can call, and that Python can call as before."""

    function: Callable[P, R]
    spec: ToolSpec
    arguments: TypeAdapter[dict[str, Any]]
    result: TypeAdapter[Any] | type[str] | None  # None: the function does not say what it returns
    context: str | None = None  # the parameter that takes the run's Context
    deps_type: Any = None  # what the Context must hold
    timeout_s: float | None = _TIMEOUT_S
    is_async: bool = True

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.function(*args, **kwargs)

    async def call(self, arguments: Mapping[str, Any], context: ToolContext) -> Content:
        """
        Raises:
            ToolError: the arguments are not what the function takes, or the result is not what it says to return.
            TimeoutError: it took longer than `timeout_s`.
        """
        try:
            given = self.arguments.validate_python(arguments)
        except ValueError as error:  # pydantic's ValidationError, which is imported where a tool is made
            raise ToolError(f"the arguments are wrong:\n{described(error)}") from error
        if self.context is not None:
            given[self.context] = context
        function: Callable[..., Any] = self.function
        with anyio.move_on_after(self.timeout_s) as scope:  # half the cost of fail_after
            if self.is_async:
                return self._content(await function(**given))
            return self._content(await _in_thread(partial(function, **given), scope))
        raise TimeoutError

    def _content(self, result: Any) -> Content:
        if isinstance(result, str) and self.result in (None, str):
            return result
        if isinstance(result, File):
            return (result,)
        if (
            isinstance(result, tuple)
            and any(isinstance(piece, File) for piece in result)
            and all(isinstance(p, str | File) for p in result)
        ):
            return result
        name = self.spec.name
        if self.result is str:
            raise ToolError(f"{name} did not return what it says to return: a {type(result).__name__} is no text")
        adapter = cast("TypeAdapter[Any] | None", self.result)
        try:
            result = result if adapter is None else adapter.validate_python(result, strict=True)
        except ValueError as error:
            raise ToolError(f"{name} did not return what it says to return:\n{described(error)}") from error
        if isinstance(result, str):
            return result
        try:
            return _json(result) if adapter is None else adapter.dump_json(result).decode()
        except (ValueError, TypeError) as error:  # pydantic's PydanticSerializationError is a ValueError
            raise ToolError(f"{name} returned a {type(result).__name__}, which JSON cannot hold") from error


@overload
def tool(function: Callable[P, R]) -> FunctionTool[P, R]: ...
@overload
def tool(*, name: str | None = None, timeout_s: float | None = _TIMEOUT_S) -> Callable[[Callable[P, R]], FunctionTool[P, R]]: ...
def tool(function: Callable[..., Any] | None = None, *, name: str | None = None, timeout_s: float | None = _TIMEOUT_S) -> Any:
    """Make a tool of a function: `@tool`, or `@tool(timeout_s=5)`.

    A model reads the docstring: its beginning describes the tool, its "Args:" the parameters. A parameter annotated `Context[Deps]` is
    filled by the run and not shown to the model. A plain `def` runs in a thread; at its time limit the run goes on without it, and the
    thread ends when the function does, because a thread cannot be stopped. The calls of an `@effect` are journalled by the execution in
    which the agent runs.

    Args:
        timeout_s: how long a call may take; None for as long as it likes.

    Raises:
        ConfigError: a parameter has no type, or one that JSON cannot hold.
    """
    if function is None:
        return partial(tool, name=name, timeout_s=timeout_s)
    from pydantic import PydanticUserError, TypeAdapter

    signed: Any = function.function if isinstance(function, Effect) else function
    name = str(name or getattr(function, "name", None) or getattr(function, "__name__", type(function).__name__))
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{name!r} cannot name a tool; give tool(name=...) of letters, digits, _ and -")
    hints = _hints(signed, name)
    description, described_arguments = _docstring(inspect.getdoc(signed) or "")
    fields: dict[str, Any] = {}
    context, deps_type = None, None
    for parameter in inspect.signature(signed).parameters.values():
        hint = hints.get(parameter.name)
        if parameter.name == KEY and isinstance(function, Effect):
            continue  # the execution gives it
        if hint is Context or get_origin(hint) is Context:
            context, deps_type = parameter.name, next(iter(get_args(hint)), Any)
            continue
        if hint is None or parameter.kind in (parameter.POSITIONAL_ONLY, parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise ConfigError(
                f"the parameter {parameter} of the tool {name} cannot be given by name with a type; annotate it, like 'city: str'"
            )
        fields[parameter.name] = _field(parameter, hint, described_arguments.get(parameter.name))
    try:
        arguments = TypeAdapter(_typed_dict(name, fields))
        result = _result(hints["return"]) if "return" in hints else None
        parameters = rewritten(arguments.json_schema(), _without_title)
    except PydanticUserError as error:
        raise ConfigError(f"JSON cannot hold all types of the tool {name}: {str(error).splitlines()[0]}") from error
    return FunctionTool(
        function=function,
        spec=ToolSpec(name, description, parameters),
        arguments=arguments,
        result=result,
        context=context,
        deps_type=deps_type,
        timeout_s=timeout_s,
        is_async=isinstance(function, Effect)
        or inspect.iscoroutinefunction(function)
        or inspect.iscoroutinefunction(type(function).__call__),
    )


def as_tool(given: Tool | Callable[..., Any]) -> Tool:
    """A tool as it is; of a function or an agent one is made."""
    if hasattr(given, "spec"):
        return given  # type: ignore[return-value]
    convert = getattr(given, "as_tool", None)
    return convert() if convert is not None else tool(given)


def repeated_name(specs: Iterable[ToolSpec]) -> str | None:
    """A name that two tools have, the first in the alphabet; None: there is none."""
    counts = Counter(spec.name for spec in specs)
    return min((name for name, count in counts.items() if count > 1), default=None)


async def _in_thread(function: Callable[[], R], scope: anyio.CancelScope) -> R:
    """At the scope's deadline the thread is let go; when the run is cancelled it is waited for, so that none outlives it."""
    is_running = False

    def work() -> R:
        nonlocal is_running
        is_running = True
        try:
            return function()
        finally:
            is_running = False

    try:
        return await anyio.to_thread.run_sync(work, abandon_on_cancel=True)
    except anyio.get_cancelled_exc_class():
        with anyio.CancelScope(shield=True):
            while is_running and not scope.cancel_called:
                await anyio.sleep(0.005)
        raise


def _json(value: Any) -> str:
    from pydantic_core import to_json

    return to_json(value).decode()


def _result(hint: Any) -> TypeAdapter[Any] | type[str] | None:
    from pydantic import TypeAdapter

    if hint is Any:
        return None
    return str if hint is str else TypeAdapter(hint)


def _hints(function: Callable[..., Any], name: str) -> dict[str, Any]:
    try:
        return get_type_hints(function if inspect.isroutine(function) else type(function).__call__, include_extras=True)
    except (NameError, TypeError) as error:
        raise ConfigError(f"the types of the tool {name} cannot be read: {error}; import them where the function is written") from error


def _field(parameter: inspect.Parameter, hint: Any, description: str | None) -> Any:
    from pydantic import Field, PydanticUserError, TypeAdapter

    extra = {}
    if parameter.default is not parameter.empty:
        with suppress(ValueError, PydanticUserError):  # a default that JSON cannot hold is not shown
            extra["default"] = TypeAdapter(hint).dump_python(parameter.default, mode="json")
    annotated = Annotated[hint, Field(description=description, json_schema_extra=extra or None)] if description or extra else hint
    return annotated if parameter.default is parameter.empty else NotRequired[annotated]


def _typed_dict(name: str, fields: dict[str, Any]) -> Any:
    from pydantic import ConfigDict, with_config
    from typing_extensions import TypedDict  # pydantic cannot use that of Python 3.11

    return with_config(ConfigDict(extra="forbid"))(TypedDict(name, fields))  # type: ignore[operator]


def _without_title(schema: dict[str, Any]) -> dict[str, Any]:
    """A title only repeats a name, and each costs tokens."""
    return {key: value for key, value in schema.items() if key != "title"}


def _docstring(text: str) -> tuple[str, dict[str, str]]:
    """The description, and what the section "Args:" says of each parameter (Google's style)."""
    pieces = _SECTION.split(text)
    sections = dict(zip(pieces[1::2], pieces[2::2], strict=True))
    arguments: dict[str, str] = {}
    body = next((sections[title] for title in ("Args", "Arguments", "Parameters") if title in sections), "")
    lines = [line for line in body.splitlines() if line.strip()]
    indent = min((len(line) - len(line.lstrip()) for line in lines), default=0)
    current = None
    for line in lines:
        begins = _ARGUMENT.match(line) if len(line) - len(line.lstrip()) == indent else None
        if begins:
            current = begins[1]
            arguments[current] = begins[2]
        elif current is not None:
            arguments[current] += " " + line.strip()
    return pieces[0].strip(), arguments
