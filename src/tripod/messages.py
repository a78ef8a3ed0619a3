"""What is said to a model and what it says back: plain frozen values that travel through all floors."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias

from tripod.errors import ConfigError

Role = Literal["system", "user", "assistant", "tool"]
FinishReason = Literal["stop", "length", "abort"]

# How pydantic writes the bytes in a value, and what is no number, as JSON.
AS_BASE64 = {"ser_json_bytes": "base64", "val_json_bytes": "base64", "ser_json_inf_nan": "constants"}


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A model asks for a tool. `arguments` is the JSON text as the model wrote it."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """What a model is told of a tool that it may call."""

    name: str
    description: str
    parameters: Mapping[str, Any] = field(hash=False)  # JSON schema of the arguments

    def to_json(self) -> dict[str, Any]:
        """As chat templates and the OpenAI API know it."""
        function = {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": function}


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """An image, a PDF or another file inside a message: its bytes, or the address where the server finds them.

    Raises:
        ConfigError: neither bytes nor an address are given, or both.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = AS_BASE64
    media_type: str  # such as "image/png"; of an address it may be a guess
    data: bytes = b""
    url: str = ""
    name: str = ""

    def __post_init__(self) -> None:
        if bool(self.data) == bool(self.url):
            raise ConfigError(f"a file of type {self.media_type!r} has {'both' if self.url else 'neither'} of data and url; give one")

    @staticmethod
    def read(path: str | Path) -> File:
        """The file at `path`; its type is known by its name.

        Raises:
            ConfigError: the name tells no type, or the file is empty.
        """
        from mimetypes import guess_type

        media_type, _ = guess_type(str(path))
        if media_type is None:
            raise ConfigError(f"the name of {path} does not tell what kind of file it is; give File(media_type=..., data=...)")
        return File(media_type=media_type, data=Path(path).read_bytes(), name=Path(path).name)

    @property
    def is_image(self) -> bool:
        return self.media_type.startswith("image/")

    @property
    def data_url(self) -> str:
        """The address, or one that holds the bytes (RFC 2397)."""
        return self.url or f"data:{self.media_type};base64,{b64encode(self.data).decode()}"

    def __str__(self) -> str:
        return f"<{self.name or self.url or 'file'}: {self.media_type}{f', {len(self.data)} bytes' if self.data else ''}>"


Content: TypeAlias = str | tuple[str | File, ...]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: Content  # text, or text and files in the order in which they are to be read
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None  # role "tool": the call that this answers
    reasoning: str = ""  # what a model thought before it answered
    signature: str = ""  # of the reasoning, which the vendor who made it wants back with it

    @property
    def text(self) -> str:
        """The words, without files and reasoning."""
        if isinstance(self.content, str):
            return self.content
        return "".join(piece for piece in self.content if isinstance(piece, str))

    @property
    def files(self) -> tuple[File, ...]:
        return () if isinstance(self.content, str) else tuple(piece for piece in self.content if isinstance(piece, File))


def system(text: str) -> Message:
    """An instruction that stands above the conversation."""
    return Message("system", text)


def user(*content: str | File) -> Message:
    """A turn of the person asking: a text, or texts and files."""
    return Message("user", content[0] if len(content) == 1 and isinstance(content[0], str) else content)


def assistant(text: str) -> Message:
    """A turn of the model."""
    return Message("assistant", text)


def tool_result(call: ToolCall, *content: str | File) -> Message:
    """What a tool gave back to the call."""
    return Message("tool", content[0] if len(content) == 1 and isinstance(content[0], str) else content, tool_call_id=call.id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens counted by whoever ran the model."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0  # of the prompt tokens, those whose keys and values were reused

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
            cached_tokens=self.cached_tokens + other.cached_tokens,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Seconds that one request spent in each phase, on one process's monotonic clock."""

    queue_s: float = 0.0  # arrival to first step
    prefill_s: float = 0.0  # first step to first token
    decode_s: float = 0.0  # first token to last


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token with its natural-log probability under the model's unmodified distribution (temperature 1, no penalties)."""

    __pydantic_config__: ClassVar[dict[str, str]] = AS_BASE64
    token_id: int
    token: str
    token_bytes: bytes
    logprob: float
    top: tuple[TokenLogprob, ...] = ()  # the most likely alternatives, best first; their own `top` is empty


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A model's whole answer: the fold over its events."""

    message: Message
    finish_reason: FinishReason
    usage: Usage
    timings: Timings = Timings()
    model: str = ""
    mode: str = ""  # how it was computed; empty where a server does not tell
    token_ids: tuple[int, ...] = ()  # empty where a server does not tell
    logprobs: tuple[TokenLogprob, ...] = ()  # empty unless asked for
    step_ids: tuple[int, ...] = ()  # the engine's step that chose each of the tokens; empty where a server does not tell
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)  # what a server said beyond the standard

    @property
    def text(self) -> str:
        return self.message.text

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        return self.message.tool_calls
