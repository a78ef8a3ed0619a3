"""An answer as a value: the schema that a model is given, the check of what it wrote, and what is shown meanwhile."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import sys
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date
from itertools import pairwise
from typing import Any, Literal

import pytest
from jsonschema import Draft202012Validator
from pydantic import BaseModel, Field
from typing_extensions import TypedDict

from tests.serving.tiny import open_tiny, write_tiny
from tripod.chat.local import LocalChatModel
from tripod.chat.parse import Parsed, Partial, parse, parse_stream
from tripod.chat.scripted import ScriptedModel
from tripod.chat.shape import Shape, WrongValueError
from tripod.engine.engine import Engine, EngineConfig
from tripod.errors import ConfigError, EngineError
from tripod.prompts import Prompt
from tripod.sampling import Grammar, SamplingParams


@dataclass
class Stop:
    city: str
    nights: int = 1


@dataclass
class Trip:
    title: str
    stops: list[Stop] = field(default_factory=list)
    mood: Literal["calm", "wild"] | None = None


class Row(TypedDict):
    default: str  # names that are keywords of JSON schemas too
    title: int


class Strict(BaseModel, strict=True):
    on: date


class Invoice(BaseModel):
    total: float = Field(gt=0, description="in euros")


@dataclass
class Tree:
    children: list[Tree]


@pytest.mark.parametrize(
    ("returns", "text", "value"),
    [
        (Trip, '{"title": "N", "stops": [{"city": "Oslo", "nights": 2}], "mood": null}', Trip("N", [Stop("Oslo", 2)])),
        (Row, '{"default": "a", "title": 3}', {"default": "a", "title": 3}),
        (list[Strict], '{"value": [{"on": "2026-11-26"}]}', [Strict(on=date(2026, 11, 26))]),
        (Invoice, '{"total": 3.5}', Invoice(total=3.5)),
        (Tree, '{"children": [{"children": []}]}', Tree([Tree([])])),
        (list[Stop], '{"value": [{"city": "Oslo", "nights": 2}]}', [Stop("Oslo", 2)]),
        (Stop | Invoice, '{"value": {"total": 1}}', Invoice(total=1)),
        (dict[str, int], '{"value": {"a": 1}}', {"a": 1}),
        (Literal["yes", "no"], '{"value": "no"}', "no"),
    ],
)
def test_what_the_schema_allows_is_what_is_read(returns: Any, text: str, value: object) -> None:
    """`jsonschema` says independently that the schema is one, and that the text is valid by it."""
    shape: Shape[Any] = Shape(returns)
    Draft202012Validator.check_schema(shape.schema)
    assert Draft202012Validator(shape.schema).is_valid(json.loads(text))
    assert shape.read(text) == value
    assert not Draft202012Validator(shape.schema).is_valid({})


def test_every_object_requires_all_of_its_properties_and_allows_no_others() -> None:
    schema = Shape(Trip).schema
    assert schema["required"] == ["title", "stops", "mood"]
    assert schema["$defs"]["Stop"] == {
        "type": "object",
        "properties": {"city": {"type": "string"}, "nights": {"type": "integer"}},
        "required": ["city", "nights"],
        "additionalProperties": False,
    }
    assert list(Shape(Row).schema["properties"]) == ["default", "title"]
    assert Shape(Invoice).schema["properties"]["total"] == {"type": "number", "exclusiveMinimum": 0, "description": "in euros"}


@pytest.mark.parametrize(
    ("returns", "text", "complaint"),
    [
        (Trip, "Sure! Here it is", "Invalid JSON"),
        (Trip, '{"title": 3}', "title: Input should be a valid string"),
        (Trip, '{"title": "N", "stops": [{"nights": 1}]}', r"stops\.0\.city: Field required"),
        (Invoice, '{"total": -1}', "total: Input should be greater than 0"),
        (int, "3", "one property 'value'"),
        (int, '{"value": "three"}', "the whole: Input should be a valid integer"),
        (int, '{"value"', "not valid JSON"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(returns: type[Any], text: str, complaint: str) -> None:
    with pytest.raises(WrongValueError, match=complaint):
        Shape(returns).read(text)


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="pydantic reads typing.TypedDict from Python 3.12 on")
def test_a_typed_dict_that_this_python_cannot_tell_enough_of_is_refused_with_the_one_that_it_can() -> None:
    class Plain(typing.TypedDict):
        city: str

    for returns in (Plain, list[Plain]):
        with pytest.raises(ConfigError, match=r"cannot be written as a JSON schema: .*use `typing_extensions.TypedDict` instead"):
            Shape(returns)


def test_a_type_that_json_cannot_hold_is_refused() -> None:
    with pytest.raises(ConfigError, match="Engine cannot be written as a JSON schema"):
        Shape(Engine)


def test_a_model_that_wrote_something_else_is_told_why_and_asked_again() -> None:
    model = ScriptedModel(["Oslo, two nights", '{"city": "Oslo", "nights": "two"}', '{"city": "Oslo", "nights": 2}'])
    parsed = asyncio.run(parse(model, "Where?", Stop))
    assert parsed.value == Stop("Oslo", 2)
    assert parsed.reply.text == '{"city": "Oslo", "nights": 2}'
    turns = model.prompts[2].messages
    assert [message.role for message in turns] == ["user", "assistant", "user", "assistant", "user"]
    assert turns[3].text == '{"city": "Oslo", "nights": "two"}'
    assert "nights: Input should be a valid integer" in turns[4].text
    assert parsed.usage.prompt_tokens == sum(len(str(prompt).split()) for prompt in model.prompts)


def test_a_model_that_never_does_is_an_error_with_its_last_words() -> None:
    with pytest.raises(EngineError, match=r"no answer of 2 was a Stop: .*\nThe last one: second"):
        asyncio.run(parse(ScriptedModel(["first", "second", "third"]), "Where?", Stop, attempts=2))


def test_an_answer_that_was_cut_says_so() -> None:
    with pytest.raises(EngineError, match="the text was cut, so allow more tokens"):
        asyncio.run(parse(ScriptedModel(['{"city": "Oslo"}']), "Where?", Stop, SamplingParams(max_tokens=1), attempts=1))


def test_what_has_come_so_far_is_shown_while_it_grows() -> None:
    async def events() -> list[Partial | Parsed[Trip]]:
        model = ScriptedModel(
            ['{"title": "North", "stops": [{"city": "Oslo", "nights": 2}, {"city": "Bergen", "nights": 1}], "mood": null}']
        )
        return [event async for event in parse_stream(model, "Where?", Trip)]

    *partials, parsed = asyncio.run(events())
    values = [partial.value for partial in partials if isinstance(partial, Partial)]
    assert values[0] == {}
    assert {"title": "North", "stops": [{"city": "Oslo", "nights": 2}, {}]} in values
    assert all(len(str(a)) < len(str(b)) for a, b in pairwise(values))
    assert isinstance(parsed, Parsed)
    assert parsed.value == Trip("North", [Stop("Oslo", 2), Stop("Bergen", 1)])


def test_the_schema_travels_as_the_grammar_of_the_request() -> None:
    seen: list[SamplingParams] = []

    class Watched(ScriptedModel):
        async def complete(self, prompt: Prompt, sampling: SamplingParams) -> Any:
            seen.append(sampling)
            return await super().complete(prompt, sampling)

    asyncio.run(parse(Watched(['{"city": "Oslo", "nights": 2}']), "Where?", Stop, SamplingParams(temperature=0.5)))
    assert seen == [SamplingParams(temperature=0.5, grammar=Grammar.json_schema(Shape(Stop).schema))]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    if importlib.util.find_spec("llguidance") is None:
        pytest.skip("llguidance is not installed")
    engine = open_tiny(write_tiny(tmp_path_factory.mktemp("models") / "tiny"), EngineConfig())
    yield engine
    asyncio.run(engine.aclose())


def test_a_model_of_random_weights_writes_a_valid_value_at_the_first_attempt(engine: Engine) -> None:
    @dataclass
    class Choice:
        color: Literal["red", "green"]
        is_sure: bool

    parsed = asyncio.run(parse(LocalChatModel(engine), "Which?", Choice, SamplingParams(seed=3), attempts=1))
    assert parsed.value.color in ("red", "green")
    assert isinstance(parsed.value.is_sure, bool)
