"""A ChatModel that does not ask twice: a cache in memory or in a file, and what replays a recorded run in a test."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncGenerator
from dataclasses import asdict, replace
from pathlib import Path

from pydantic_core import to_jsonable_python

from tripod.chat.closing import closing
from tripod.chat.saved import REPLY
from tripod.errors import ConfigError
from tripod.messages import Reply
from tripod.prompts import Prompt
from tripod.protocols import ChatModel
from tripod.sampling import SamplingParams
from tripod.trace import Event, folded, unfolded


class Cached:
    """Gives again what was answered to the same request: the same messages, files, tools and sampling parameters, to the last digit.

    A reply drawn at random is kept like any other: to have another one, give another seed. Its usage is what it once cost;
    `Reply.mode` says "cached". A stream that was left early is not kept.

    Args:
        inner: who answers what is new; None refuses it, so that a test depends on nothing but its recording.
        name: of the model and its version; answers to other names in the same file are not given.
        path: a file to which each new reply is added, a line of JSON each; None keeps them in memory.

    Raises:
        ConfigError: the file holds something else.
    """

    def __init__(self, inner: ChatModel | None, name: str, *, path: str | Path | None = None) -> None:
        self.inner = inner
        self.name = name
        self._path = Path(path) if path is not None else None
        self._replies: dict[str, Reply] = {}
        if self._path is not None and self._path.exists():
            self._load(self._path)

    @property
    def constrains(self) -> bool:
        """Whether an answer can be held to a grammar."""
        return bool(getattr(self.inner, "constrains", self.inner is None))

    async def complete(self, prompt: Prompt, sampling: SamplingParams) -> Reply:
        """
        Raises:
            ConfigError: the request is new, and there is nobody to ask.
        """
        key = self._key(prompt, sampling)
        if key not in self._replies:
            self._keep(key, prompt, await self._other(prompt).complete(prompt, sampling))
            return self._replies[key]
        return self._again(key)

    async def stream(self, prompt: Prompt, sampling: SamplingParams) -> AsyncGenerator[Event, None]:
        """The events of the model inside; what is known comes in one piece."""
        key = self._key(prompt, sampling)
        if key in self._replies:
            for event in unfolded(self._again(key)):
                yield event
            return
        events: list[Event] = []
        async with closing(self._other(prompt).stream(prompt, sampling)) as stream:
            async for event in stream:
                events.append(event)
                yield event
        self._keep(key, prompt, folded(events))

    def _again(self, key: str) -> Reply:
        return replace(self._replies[key], mode="cached")

    def _other(self, prompt: Prompt) -> ChatModel:
        if self.inner is None:
            raise ConfigError(
                f"no reply of {self.name!r} to this prompt is recorded{f' in {self._path}' if self._path else ''}; give Cached a model to "
                f"record it. The prompt ends: {str(prompt)[-300:]!r}"
            )
        return self.inner

    def _key(self, prompt: Prompt, sampling: SamplingParams) -> str:
        asked = (self.name, prompt.messages, [tool.to_json() for tool in prompt.tools], prompt.tool_choice, asdict(sampling))
        return hashlib.sha256(json.dumps(to_jsonable_python(asked, bytes_mode="base64"), sort_keys=True).encode()).hexdigest()

    def _keep(self, key: str, prompt: Prompt, reply: Reply) -> None:
        self._replies[key] = reply
        if self._path is not None:
            line = {
                "key": key,
                "model": self.name,
                "prompt": str(prompt),
                "reply": json.loads(REPLY.dump_json(reply, exclude_defaults=True)),
            }
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(line, ensure_ascii=False) + "\n")

    def _load(self, path: Path) -> None:
        for number, line in enumerate(path.read_bytes().splitlines(), start=1):  # as bytes: in a text, U+2028 ends a line too
            try:
                entry = json.loads(line)
                self._replies[entry["key"]] = REPLY.validate_json(json.dumps(entry["reply"]))
            except (ValueError, KeyError, TypeError) as error:
                raise ConfigError(f"line {number} of {path} is no recorded reply: {error}; remove it, or give another file") from error
