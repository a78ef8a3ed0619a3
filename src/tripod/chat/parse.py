"""An answer as a value of a type: held to the type's grammar where the model can be, checked and asked again everywhere."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from tripod.chat.closing import closing
from tripod.chat.shape import Shape, WrongValueError
from tripod.errors import EngineError
from tripod.messages import Message, Reply, Usage, user
from tripod.prompts import Prompt
from tripod.protocols import ChatModel
from tripod.sampling import Grammar, SamplingParams
from tripod.trace import Delta, Event, folded

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parsed(Generic[T]):
    """A value that a model wrote."""

    value: T
    reply: Reply  # the one that held it
    usage: Usage  # of all replies that it took


@dataclass(frozen=True, slots=True)
class Partial:
    """What the answer holds so far, as plain JSON values; the last text in it may be unfinished, and nothing of it is checked yet."""

    value: Any


async def parse(
    model: ChatModel,
    prompt: str | Prompt | Iterable[Message],
    returns: type[T],
    sampling: SamplingParams = SamplingParams(),
    *,
    attempts: int = 3,
) -> Parsed[T]:
    """Ask for a value: of a dataclass, a TypedDict, a pydantic model, or any type that JSON can hold.

    The schema goes to the model as a grammar, which our engine enforces and servers honour as `response_format`. What comes back is
    checked in any case; when it is wrong, the model is told why and asked again.

    Args:
        attempts: how often the model may be asked in all.

    Raises:
        ConfigError: no JSON schema can be made of the type.
        EngineError: no answer was of the type; the message says what was wrong with the last one.
    """
    async with closing(parse_stream(model, prompt, returns, sampling, attempts=attempts, is_streamed=False)) as events:
        async for event in events:
            if isinstance(event, Parsed):
                return event
    raise AssertionError("it ends with a value or an error")


async def parse_stream(
    model: ChatModel,
    prompt: str | Prompt | Iterable[Message],
    returns: type[T],
    sampling: SamplingParams = SamplingParams(),
    *,
    attempts: int = 3,
    is_streamed: bool = True,
) -> AsyncGenerator[Partial | Parsed[T], None]:
    """The same as it comes: `Partial` values that grow (and begin anew when the model is asked again), then the `Parsed` one."""
    shape: Shape[T] = Shape(returns)
    sampling = replace(sampling, grammar=Grammar.json_schema(shape.schema))
    asked = Prompt.of(prompt)
    usage = Usage()
    for attempt in range(1, attempts + 1):
        if is_streamed:
            events: list[Event] = []
            text, shown = "", None
            async with closing(model.stream(asked, sampling)) as stream:
                async for event in stream:
                    events.append(event)
                    if isinstance(event, Delta) and event.text:
                        text += event.text
                        if (begun := shape.begun(text)) is not None and begun != shown:
                            shown = begun
                            yield Partial(begun)
            reply = folded(events)
        else:
            reply = await model.complete(asked, sampling)
        usage += reply.usage
        try:
            yield Parsed(value=shape.read(reply.text), reply=reply, usage=usage)
            return
        except WrongValueError as error:
            cut = ": the text was cut, so allow more tokens" if reply.finish_reason == "length" else ""
            if attempt == attempts:
                raise EngineError(f"no answer of {attempts} was a {shape.name}{cut}: {error}\nThe last one: {reply.text[:500]}") from error
            complaint = f"That is not what was asked for{cut}.\n{error}\nAnswer again, with nothing but JSON."
            asked = replace(asked, parts=(*asked.parts, *Prompt.of([reply.message, user(complaint)]).parts))
