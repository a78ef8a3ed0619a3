"""The response bodies of the OpenAI API, as the server writes and the client reads them.

The server sets every field that it means to send, null included, because strict clients look for the keys; `to_json`
sends those and no others. The client forgives what other servers leave out or add.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import ConfigDict, Field

from tripod.chat.wire.body import ReplyBody as _Reply
from tripod.messages import FinishReason, Message, TokenLogprob, ToolCall
from tripod.messages import Usage as UsageValue
from tripod.trace import Delta, ToolCallDelta


class PromptTokensDetails(_Reply):
    cached_tokens: int | None = None


class Usage(_Reply):
    prompt_tokens: int = 0
    completion_tokens: int | None = None  # absent from embeddings
    total_tokens: int = 0
    prompt_tokens_details: PromptTokensDetails | None = None

    @classmethod
    def of(cls, usage: UsageValue) -> Usage:
        return cls(
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            total_tokens=usage.total_tokens,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=usage.cached_tokens),
        )

    def to_usage(self) -> UsageValue:
        details = self.prompt_tokens_details
        cached = details.cached_tokens if details is not None else None
        return UsageValue(prompt_tokens=self.prompt_tokens, completion_tokens=self.completion_tokens or 0, cached_tokens=cached or 0)


class Made(_Reply):
    """Beyond the OpenAI API, under the key `tripod`: how an answer was made. With several choices, times are the longest of any."""

    queue_s: float  # arrival at the engine to its first step
    prefill_s: float  # first step to first token
    decode_s: float  # first token to last
    tokenize_s: float
    total_s: float  # arrival of the HTTP request to here
    cached_tokens: int  # of the prompt, those whose keys and values were reused
    cache_miss: str | None  # why not more of them were
    step_ids: list[int]  # the engine's steps that computed it; /debug/steps has the last of them
    batch_invariant: bool  # the tokens do not depend on what else was in the batch


class TopLogprob(_Reply):
    token: str
    logprob: float
    bytes: list[int] | None = None


class ChatTokenLogprob(_Reply):
    token: str
    logprob: float
    bytes: list[int] | None = None
    top_logprobs: list[TopLogprob] = Field(default_factory=list)


class ChatLogprobs(_Reply):
    content: list[ChatTokenLogprob] | None = None
    refusal: None = None

    @classmethod
    def of(cls, logprobs: Sequence[TokenLogprob]) -> ChatLogprobs:
        return cls(
            content=[
                ChatTokenLogprob(
                    token=token_name(entry),
                    logprob=_finite(entry.logprob),
                    bytes=list(entry.token_bytes),
                    top_logprobs=[
                        TopLogprob(token=token_name(t), logprob=_finite(t.logprob), bytes=list(t.token_bytes)) for t in entry.top
                    ],
                )
                for entry in logprobs
            ],
            refusal=None,
        )

    def to_logprobs(self) -> tuple[TokenLogprob, ...]:
        """The wire has no token ids; they are -1."""
        return tuple(
            TokenLogprob(-1, t.token, _bytes(t), t.logprob, tuple(TokenLogprob(-1, o.token, _bytes(o), o.logprob) for o in t.top_logprobs))
            for t in self.content or ()
        )


class FunctionReply(_Reply):
    name: str | None = None
    arguments: str | None = None


class ToolCallReply(_Reply):
    """A tool call, or in a stream a piece of one."""

    index: int | None = None  # in a stream only
    id: str | None = None
    type: str | None = None
    function: FunctionReply = FunctionReply()


class ReplyMessage(_Reply):
    """What a model said, or in a stream a piece of it."""

    model_config = ConfigDict(extra="allow")

    role: str | None = None
    content: str | None = None
    refusal: str | None = None
    tool_calls: list[ToolCallReply] | None = None
    reasoning_content: str | None = None  # beyond the OpenAI API, as DeepSeek, vLLM and llama.cpp name it
    reasoning: str | None = None  # the same, as OpenRouter, Groq and newer vLLM do

    def to_message(self) -> Message:
        calls = tuple(ToolCall(c.id or "", c.function.name or "", c.function.arguments or "") for c in self.tool_calls or ())
        return Message("assistant", self._text, calls, reasoning=self._reasoning)

    def to_delta(self, logprobs: tuple[TokenLogprob, ...]) -> Delta:
        pieces = tuple(
            ToolCallDelta(
                index=place if c.index is None else c.index, id=c.id or "", name=c.function.name or "", arguments=c.function.arguments or ""
            )
            for place, c in enumerate(self.tool_calls or ())  # some servers send whole calls, and no index
        )
        return Delta(text=self._text, reasoning=self._reasoning, tool_calls=pieces, logprobs=logprobs)

    @property
    def _text(self) -> str:
        return self.content or self.refusal or ""

    @property
    def _reasoning(self) -> str:
        return self.reasoning_content or self.reasoning or ""


class ChatChoice(_Reply):
    index: int = 0
    message: ReplyMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None


class ChatCompletion(_Reply):
    model_config = ConfigDict(extra="allow")

    id: str = ""
    object: Literal["chat.completion"] = "chat.completion"
    created: int = 0
    model: str = ""
    choices: list[ChatChoice]
    usage: Usage | None = None
    tripod: Made | None = None


class ChunkChoice(_Reply):
    index: int = 0
    delta: ReplyMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None


class ChatChunk(_Reply):
    id: str = ""
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int = 0
    model: str = ""
    choices: list[ChunkChoice] = Field(default_factory=list)
    usage: Usage | None = None
    tripod: Made | None = None  # in the chunk that ends the last choice


class CompletionLogprobs(_Reply):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(_Reply):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str | None


class Completion(_Reply):
    """A whole text completion, and each chunk of a streamed one."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None
    tripod: Made | None = None  # in a stream: in the chunk that ends the last choice


class ModelCard(_Reply):
    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = ""
    max_model_len: int | None = None  # tokens of prompt and answer together; the name that vLLM gave it


class ModelList(_Reply):
    object: Literal["list"] = "list"
    data: list[ModelCard]


class Tokens(_Reply):
    """The answer of /tokenize; shape of vLLM."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class Detokenized(_Reply):
    """The answer of /detokenize; shape of vLLM."""

    prompt: str


class Health(_Reply):
    status: str  # "ok", or what is wrong


class StepBody(_Reply):
    """One step of the engine; seconds follow each other: plan, prepare, model, sample, deliver."""

    id: int
    started_s: float  # monotonic clock of the server
    plan_s: float
    prepare_s: float
    model_s: float
    sample_s: float
    deliver_s: float
    total_s: float
    num_requests: int
    num_waiting: int
    num_prefill_tokens: int
    num_decode_tokens: int
    num_cached_tokens: int
    num_preemptions: int
    num_failed: int


class StepList(_Reply):
    steps: list[StepBody]


class Embedding(_Reply):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str  # numbers, or little-endian float32 in base64


class EmbeddingList(_Reply):
    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: Usage


class ErrorDetail(_Reply):
    message: str = ""
    type: str | None = None
    param: str | None = None
    code: str | int | None = None


class ErrorBody(_Reply):
    error: ErrorDetail


def completion_logprobs(entries: Sequence[TokenLogprob], offsets: Sequence[int], *, follows_nothing: bool = False) -> CompletionLogprobs:
    """The parallel lists of /v1/completions.

    Args:
        entries: one a token.
        offsets: where each token begins, in characters of the text.
        follows_nothing: the first entry is the first token of a prompt, so its probability means nothing and is sent as null.
    """
    unknown = int(follows_nothing)
    return CompletionLogprobs(
        tokens=[token_name(entry) for entry in entries],
        token_logprobs=[*[None] * unknown, *(_finite(entry.logprob) for entry in entries[unknown:])],
        # The chosen token is always among them, so there may be one more than asked for, as in the OpenAI API.
        top_logprobs=[*[None] * unknown, *({token_name(t): _finite(t.logprob) for t in (*e.top, e)} for e in entries[unknown:])],
        text_offset=list(offsets),
    )


def token_name(entry: TokenLogprob) -> str:
    r"""The token's text; where it is only a piece of a character, its bytes, as the OpenAI API writes them: "bytes:\xe2\x80".

    So two tokens that would both print as a replacement mark keep two names.
    """
    try:
        entry.token_bytes.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in entry.token_bytes)
    return entry.token


def finish_reason(reason: str | None) -> FinishReason:
    """A server's word for why it stopped, in ours. What was cut by somebody else's decision counts as aborted."""
    match reason:
        case "length":
            return "length"
        case "content_filter" | "abort":
            return "abort"
        case _:
            return "stop"


def _bytes(entry: ChatTokenLogprob | TopLogprob) -> bytes:
    return bytes(entry.bytes) if entry.bytes is not None else entry.token.encode()


def _finite(logprob: float) -> float:
    """JSON has no -inf; the OpenAI API writes -9999 for the impossible."""
    return max(logprob, -9999.0)
