"""A typed function is a tool: what a model is told of it, what it takes, and what it gives back."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from enum import Enum
from typing import Any, Literal

import anyio
import pytest
from jsonschema import Draft202012Validator

from tripod.agents.context import Context
from tripod.agents.tool import FunctionTool, tool
from tripod.errors import ConfigError, ToolError
from tripod.messages import Content, File


class Unit(Enum):
    CELSIUS = "C"
    FAHRENHEIT = "F"


@dataclass
class Place:
    city: str
    country: str = "NO"


@dataclass
class Database:
    rows: dict[str, int]


@tool
async def forecast(place: Place, day: date, unit: Unit = Unit.CELSIUS, *, detail: Literal["low", "high"] | None = None) -> list[float]:
    """The weather to come.

    It is only a guess.

    Args:
        place: where;
            a town is enough.
        day: not more than a week ahead.

    Returns:
        Temperatures, hour by hour.
    """
    assert isinstance(place, Place)
    assert isinstance(day, date)
    assert isinstance(unit, Unit)
    return [float(day.day), len(place.country), 0.5]


def called(given: FunctionTool[..., Any], arguments: dict[str, Any], context: Context[Any] | None = None) -> Content:
    async def call() -> Content:
        return await given.call(arguments, context or Context(None))

    return anyio.run(call)


def test_the_schema_comes_from_the_hints_and_the_words_from_the_docstring() -> None:
    spec = forecast.spec
    assert (spec.name, spec.description) == ("forecast", "The weather to come.\n\nIt is only a guess.")
    properties = spec.parameters["properties"]
    assert properties["place"]["description"] == "where; a town is enough."
    assert properties["day"] == {"type": "string", "format": "date", "description": "not more than a week ahead."}
    assert properties["unit"]["default"] == "C"
    assert spec.parameters["required"] == ["place", "day"]
    assert "Temperatures" not in str(spec.parameters)
    Draft202012Validator.check_schema(spec.parameters)


def test_the_schema_accepts_what_the_function_takes_and_nothing_else() -> None:
    """`jsonschema` decides, independently of pydantic."""
    validator = Draft202012Validator(forecast.spec.parameters)
    assert validator.is_valid({"place": {"city": "Oslo"}, "day": "2026-11-26", "unit": "F", "detail": None})
    assert not validator.is_valid({"place": {"city": "Oslo"}})
    assert not validator.is_valid({"place": {"city": "Oslo"}, "day": "2026-11-26", "unit": "K"})
    assert not validator.is_valid({"place": {"city": "Oslo"}, "day": "2026-11-26", "country": "NO"})


def test_arguments_become_what_the_hints_say_and_results_become_json() -> None:
    assert called(forecast, {"place": {"city": "Oslo"}, "day": "2026-11-26", "unit": "F"}) == "[26.0,2.0,0.5]"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"day": "2026-11-26"}, "place: Field required"),
        ({"place": {"city": "Oslo"}, "day": "soon"}, "day: Input should be a valid date"),
        ({"place": {"city": "Oslo"}, "day": "2026-11-26", "wind": 3}, "wind: Extra inputs are not permitted"),
    ],
)
def test_wrong_arguments_are_refused_with_their_place_before_the_function_runs(arguments: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ToolError, match=complaint):
        called(forecast, arguments)


def test_a_context_is_filled_in_and_not_shown_to_the_model() -> None:
    @tool
    async def rows(name: str, context: Context[Database]) -> int:
        """Count rows."""
        return context.deps.rows[name]

    assert list(rows.spec.parameters["properties"]) == ["name"]
    assert called(rows, {"name": "a"}, Context(Database({"a": 3}))) == "3"


def test_a_tool_is_still_a_function() -> None:
    @tool
    def double(x: int) -> int:
        """Twice x."""
        return 2 * x

    assert double(4) == 8
    assert called(double, {"x": 4}) == "8"


def test_a_plain_function_does_not_hold_up_the_loop() -> None:
    @tool
    def slow() -> str:
        """Sleep."""
        time.sleep(0.1)
        return threading.current_thread().name

    async def both() -> tuple[Content, int]:
        ticks = 0
        async with anyio.create_task_group() as group:

            async def tick() -> None:
                nonlocal ticks
                while True:
                    await anyio.sleep(0.005)
                    ticks += 1

            group.start_soon(tick)
            name = await slow.call({}, Context(None))
            group.cancel_scope.cancel()
        return name, ticks

    name, ticks = anyio.run(both)
    assert name != threading.main_thread().name
    assert ticks > 3


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_tool_that_hangs_is_stopped_and_a_thread_that_hangs_is_let_go(backend: str) -> None:
    release = threading.Event()

    @tool(timeout_s=0.05)
    def blocked() -> None:
        """Never returns by itself."""
        release.wait()

    @tool(timeout_s=0.05)
    async def asleep() -> None:
        """Never returns."""
        await anyio.sleep_forever()

    async def call() -> None:
        for given in (blocked, asleep):
            with pytest.raises(TimeoutError):
                await given.call({}, Context(None))
        release.set()

    anyio.run(call, backend=backend)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_cancelled_call_waits_for_its_thread_so_that_none_outlives_it(backend: str) -> None:
    begun, is_done = threading.Event(), False

    @tool
    def writes() -> None:
        """Takes a while."""
        nonlocal is_done
        begun.set()
        time.sleep(0.1)
        is_done = True

    async def cancel() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(writes.call, {}, Context(None))
            while not begun.is_set():
                await anyio.sleep(0.001)
            group.cancel_scope.cancel()

    anyio.run(cancel, backend=backend)
    assert is_done


def returning(value: object, hint: Any) -> FunctionTool[..., Any]:
    async def give() -> Any:
        """Give it."""
        return value

    give.__annotations__["return"] = hint
    return tool(give)


PICTURE = File(media_type="image/png", data=b"\x89PNG")


@pytest.mark.parametrize(
    ("value", "hint", "content"),
    [
        ("plain text", str, "plain text"),
        ({"a": [1, None]}, Any, '{"a":[1,null]}'),
        (Place("Oslo"), Place, '{"city":"Oslo","country":"NO"}'),
        (None, None, "null"),
        (PICTURE, File, (PICTURE,)),
        (("see", PICTURE), tuple[str, File], ("see", PICTURE)),
    ],
)
def test_results_are_what_a_model_can_read(value: object, hint: Any, content: Content) -> None:
    assert called(returning(value, hint), {}) == content


@pytest.mark.parametrize(
    ("value", "hint", "complaint"),
    [
        (3, str, "give did not return what it says to return"),
        (["a", 3], list[str], "1: Input should be a valid string"),
        ({"city": 3}, Place, "did not return"),
        (object(), Any, "returned a object, which JSON cannot hold"),
    ],
)
def test_a_result_of_a_wrong_type_is_an_error_and_not_shown_as_if_it_were_right(value: object, hint: Any, complaint: str) -> None:
    with pytest.raises(ToolError, match=complaint):
        called(returning(value, hint), {})


def _untyped(city) -> str:  # type: ignore[no-untyped-def]
    return str(city)


def _starred(*cities: str) -> str:
    return "".join(cities)


def _a_socket(connection: threading.Thread) -> str:
    return str(connection)


@pytest.mark.parametrize(
    ("function", "complaint"),
    [
        (_untyped, "the parameter city of the tool _untyped"),
        (_starred, r"the parameter \*cities"),
        (_a_socket, "JSON cannot hold all types of the tool _a_socket"),
        (lambda: "x", "'<lambda>' cannot name a tool"),
    ],
)
def test_a_function_that_no_model_could_call_is_refused_where_it_is_written(function: Callable[..., Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        tool(function)
