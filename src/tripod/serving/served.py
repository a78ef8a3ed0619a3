"""What one server offers, in one value that every endpoint reads."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ParamSpec, Protocol, TypeVar

from starlette.applications import Starlette
from starlette.requests import Request

from tripod.chat.asked import Asked
from tripod.chat.wire.structured import in_field
from tripod.errors import RequestError
from tripod.sampling import SamplingParams
from tripod.serving.admission import Admission
from tripod.serving.apps import App
from tripod.serving.auth import ApiKeys
from tripod.serving.config import ServerConfig
from tripod.serving.errors import UnknownModelError
from tripod.serving.lifecycle import Lifecycle
from tripod.serving.metrics import Metrics
from tripod.serving.progress import Progress
from tripod.serving.telemetry import Telemetry

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

    from tripod.engine.engine import Engine
    from tripod.serving.visit import Visit

P = ParamSpec("P")
T = TypeVar("T")
Tokens = TypeVar("Tokens", bound=Sequence[int] | Asked)

_LONG_TEXT = 1024  # characters; a longer text is tokenized off the event loop, where it would hold up the others
_TELLING_TEXT = 256  # characters; of a shorter one, the tokens are mostly those of its template


class TextEncoder(Protocol):
    """What /v1/embeddings asks of an encoder. Called off the event loop."""

    @property
    def dim(self) -> int: ...

    @property
    def max_tokens(self) -> int: ...  # of one text, special tokens included

    def count_tokens(self, texts: Sequence[str]) -> list[int]: ...  # special tokens included

    def encode(self, texts: Sequence[str]) -> NDArray[numpy.float32]: ...  # [N, dim], unit vectors


@dataclass(slots=True)
class RunningMean:
    """Of numbers as they come, the last hundred or so counting most."""

    value: float

    def note(self, number: float) -> None:
        self.value += 0.01 * (number - self.value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """An engine, an encoder, or both, under the names that requests use."""

    engine: Engine | None
    encoder: TextEncoder | None
    encoder_name: str
    apps: Mapping[str, App]
    chat_template: str | None  # "plain", or None: the one beside the model
    tool_format: str | None  # a name of TOOL_FORMATS, or None: what the template shows
    config: ServerConfig
    api_keys: ApiKeys
    metrics: Metrics
    admission: Admission
    progress: Progress
    lifecycle: Lifecycle = field(default_factory=Lifecycle)
    telemetry: Telemetry = field(default_factory=Telemetry)
    tokens_per_character: RunningMean = field(default_factory=lambda: RunningMean(0.25))
    encoding: asyncio.Lock = field(default_factory=asyncio.Lock)  # one piece of text is encoded at a time
    created_s: int = field(default_factory=lambda: int(time.time()))

    @staticmethod
    def of(request: Request) -> Served:
        return Served.in_app(request.app)

    @staticmethod
    def in_app(app: Starlette) -> Served:
        served = app.state.served
        assert isinstance(served, Served)
        return served

    @property
    def names(self) -> list[str]:
        return [
            *([self.engine.name] if self.engine is not None else []),
            *([self.encoder_name] if self.encoder is not None else []),
            *self.apps,
        ]

    def source_for(self, model: str) -> Engine | App:
        """Who answers the conversation, by the name in the request; errors as for `engine_for`."""
        return self.apps.get(model) or self.engine_for(model)

    def engine_for(self, model: str) -> Engine:
        """The engine that the request names.

        Raises:
            UnknownModelError: nothing here has this name.
            RequestError: it names the encoder.
        """
        if self.engine is not None and model == self.engine.name:
            return self.engine
        if self.encoder is not None and model == self.encoder_name:
            raise RequestError(f"{model!r} is an encoder: it embeds text and writes none; POST to /v1/embeddings", param="model")
        if model in self.apps:
            raise RequestError(f"{model!r} is an application: it answers conversations; POST to /v1/chat/completions", param="model")
        raise self.unknown(model)

    def unknown(self, model: str) -> UnknownModelError:
        return UnknownModelError(
            f"the model {model!r} does not exist here; this server has: {', '.join(map(repr, self.names))}", param="model"
        )


class Asker(Protocol):
    """What a request says of itself, whichever API it speaks."""

    @property
    def model(self) -> str: ...

    @property
    def user(self) -> str | None: ...

    @property
    def timeout(self) -> float | None: ...  # seconds

    @property
    def priority(self) -> int | None: ...

    @property
    def num_choices(self) -> int: ...


def admit(visit: Visit, body: Asker, prompts: Sequence[int | list[int]]) -> None:
    """Let a request for text in.

    Args:
        prompts: of each, its length in characters, or its token ids.

    Raises:
        OverloadedError: there is no place for it now.
        RequestError: it is more than ever fits.
    """
    per_character = visit.served.tokens_per_character.value
    num_tokens = sum(len(prompt) if isinstance(prompt, list) else prompt * per_character for prompt in prompts)
    visit.attributes["gen_ai.request.model"] = body.model
    visit.admit(
        user=body.user,
        timeout_s=body.timeout,
        priority=body.priority or 0,
        num_requests=len(prompts) * body.num_choices,
        num_tokens=num_tokens * body.num_choices,
    )


async def tokenize(engine: Engine, prompts: Sequence[str | list[int]], visit: Visit) -> list[tuple[int, ...]]:
    """The token ids of each prompt.

    Raises:
        RequestError: ids were sent that are not in the vocabulary.
    """
    vocab_size = engine.tokenizer.vocab_size
    ids: list[tuple[int, ...]] = []
    for prompt in prompts:
        if isinstance(prompt, str):
            engine.check_length(len(prompt))
            ids.append(tuple(await timed(visit, len(prompt), engine.tokenizer.encode, prompt)))
        else:
            for token_id in prompt:
                if not 0 <= token_id < vocab_size:
                    raise RequestError(f"prompt holds the token id {token_id}; this model has ids 0 to {vocab_size - 1}", param="prompt")
            ids.append(tuple(prompt))
    return ids


async def timed(visit: Visit, num_characters: int, function: Callable[P, Tokens], *args: P.args, **kwargs: P.kwargs) -> Tokens:
    """The token ids that the function makes of so many characters, here, or off the event loop where there are many.

    Raises:
        DeadlineError: the request's time is over before they are made.
    """
    started_s = time.monotonic()
    try:
        async with asyncio.timeout(visit.remaining_s):
            ids = await in_thread_if_long(num_characters, function, *args, **kwargs)
    except TimeoutError:
        raise visit.deadline_error() from None
    took_s = time.monotonic() - started_s
    visit.tokenize_s += took_s
    visit.served.metrics.tokenize.observe(took_s)
    if num_characters >= _TELLING_TEXT:
        visit.served.tokens_per_character.note((len(ids.ids) if isinstance(ids, Asked) else len(ids)) / num_characters)
    return ids


async def check_grammar(engine: Engine, sampling: SamplingParams, field: str | None) -> None:
    """Compile what the answer must be before anything is queued.

    Raises:
        RequestError: it has a mistake, or cannot be enforced; `param` is `field`, which asked for it.
    """
    if sampling.grammar is not None:
        try:
            await engine.check_grammar(sampling.grammar)
        except RequestError as error:
            raise in_field(error, field) from error


async def in_thread_if_long(num_characters: int, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Calls the function here, or off the event loop where the text is long."""
    if num_characters <= _LONG_TEXT:
        return function(*args, **kwargs)
    return await asyncio.to_thread(function, *args, **kwargs)
