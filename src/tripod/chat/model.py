"""`Model(address)`: whatever answers messages, under one type."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable
from contextlib import AsyncExitStack, aclosing
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self, TypeAlias, TypeVar

from tripod.chat.closing import closing
from tripod.chat.parse import Parsed, Partial, parse, parse_stream
from tripod.chat.render import PLAIN, template_file
from tripod.errors import ConfigError, MissingExtraError
from tripod.messages import Message, Reply
from tripod.prompts import Prompt
from tripod.sampling import SamplingParams
from tripod.trace import Event

if TYPE_CHECKING:
    from tripod.chat.anthropic import AnthropicChatModel
    from tripod.chat.http import HttpChatModel
    from tripod.chat.local import LocalChatModel
    from tripod.engine.engine import EngineConfig


T = TypeVar("T")
_Opened: TypeAlias = "HttpChatModel | AnthropicChatModel | LocalChatModel"


class Model:
    """A language model by its address. It opens on first use, and `async with` closes it.

    Args:
        address: a folder, "runs/x@step512", "org/name@revision" (run in this process), or "http(s)://host/v1" (asked there).
        model: the name that the server at the URL knows; None takes its only one.
        api: what the server at the URL speaks: "openai" (most do) or "anthropic".
        api_key: for the server at the URL.
        api_key_env: the environment variable that holds the key.
        chat_template: for a model in this process: "plain" where it has no template of its own, or the path of a Jinja file.
        config: for a model in this process: how the engine runs it.

    Raises:
        ConfigError: an option does not belong to this kind of address.
    """

    def __init__(
        self,
        address: str | Path,
        *,
        model: str | None = None,
        api: Literal["openai", "anthropic"] | None = None,
        api_key: str | None = None,
        api_key_env: str | None = None,
        chat_template: str | None = None,
        config: EngineConfig | None = None,
    ) -> None:
        self.address = str(address)
        self._is_remote = self.address.startswith(("http://", "https://"))
        options: dict[str, object] = (
            {"chat_template": chat_template, "config": config}
            if self._is_remote
            else {"model": model, "api": api, "api_key": api_key, "api_key_env": api_key_env}
        )
        for name, value in options.items():
            if value is not None:
                kind = "a server at a URL" if self._is_remote else "a model in this process"
                shown = name if name == "api_key" else f"{name}={value!r}"
                raise ConfigError(f"{shown} does not apply to {kind} ({address}); leave it out")
        self._template_file = template_file(chat_template)
        self._model = model
        self._api = api
        self._api_key = api_key
        self._api_key_env = api_key_env
        self._chat_template = PLAIN if chat_template == PLAIN else None
        self._config = config
        self._inner: _Opened | None = None
        self._loading: asyncio.Future[_Opened] | None = None  # goes on when whoever began it gives up
        self._opening = asyncio.Lock()
        self._resources = AsyncExitStack()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    @property
    def constrains(self) -> bool:
        """Whether an answer can be held to a grammar. Only a model in this process is sure to do that."""
        return not self._is_remote and find_spec("llguidance") is not None

    async def aclose(self) -> None:
        """Stops the engine or closes the connections. The next use opens it again."""
        async with self._opening:
            self._inner = None
            if self._loading is not None:
                await asyncio.gather(self._loading, return_exceptions=True)
                self._loading = None
            await self._resources.aclose()

    async def complete(self, prompt: str | Prompt | Iterable[Message], sampling: SamplingParams = SamplingParams()) -> Reply:
        """The whole answer to a question, a conversation or a prompt."""
        inner = await self._open()
        return await inner.complete(Prompt.of(prompt), sampling)

    async def stream(
        self, prompt: str | Prompt | Iterable[Message], sampling: SamplingParams = SamplingParams()
    ) -> AsyncGenerator[Event, None]:
        """The answer as it comes; closing the iterator stops the work."""
        inner = await self._open()
        async with closing(inner.stream(Prompt.of(prompt), sampling)) as events:
            async for event in events:
                yield event

    async def parse(
        self, prompt: str | Prompt | Iterable[Message], returns: type[T], sampling: SamplingParams = SamplingParams()
    ) -> Parsed[T]:
        """The answer as a value of `returns`: a dataclass, a TypedDict, a pydantic model, or any type that JSON can hold.

        Raises:
            ConfigError: no JSON schema can be made of the type.
            EngineError: the model wrote something else, three times.
        """
        return await parse(self, prompt, returns, sampling)

    async def parse_stream(
        self, prompt: str | Prompt | Iterable[Message], returns: type[T], sampling: SamplingParams = SamplingParams()
    ) -> AsyncGenerator[Partial | Parsed[T], None]:
        """What the answer holds so far, again and again, and at the end the value."""
        async with aclosing(parse_stream(self, prompt, returns, sampling)) as events:
            async for event in events:
                yield event

    async def _open(self) -> _Opened:
        async with self._opening:
            if self._inner is None:
                if self._loading is None:
                    self._loading = asyncio.ensure_future(self._open_http() if self._is_remote else self._open_engine())
                try:
                    self._inner = await asyncio.shield(self._loading)
                finally:
                    if self._loading.done():
                        self._loading = None
            return self._inner

    async def _open_http(self) -> HttpChatModel | AnthropicChatModel:
        from tripod.chat.anthropic import AnthropicChatModel  # when a server is asked: their wire formats take long to import
        from tripod.chat.http import HttpChatModel

        kind = AnthropicChatModel if self._api == "anthropic" else HttpChatModel
        client = kind(self.address, model=self._model, api_key=self._api_key, api_key_env=self._api_key_env)
        return await self._resources.enter_async_context(client)

    async def _open_engine(self) -> LocalChatModel:
        try:
            from tripod.chat.local import LocalChatModel
            from tripod.engine.engine import Engine, EngineConfig
        except ModuleNotFoundError as error:
            raise MissingExtraError(error.name or "torch", "engine", f"running {self.address} in this process") from error
        config = self._config or EngineConfig()
        engine = await asyncio.to_thread(Engine.load, self.address, config=config, chat_template=self._template_file)
        await self._resources.enter_async_context(engine)
        return LocalChatModel(engine, chat_template=self._chat_template)
