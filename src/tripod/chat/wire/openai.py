"""The request bodies of the OpenAI API, as the client writes and the server reads them.

Source: the OpenAI API reference (completions, chat completions, embeddings), with the sampling fields that vLLM added.
A field that we do not honour is refused by name; a field that changes nothing about the answer is accepted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BeforeValidator, Field, Tag, ValidationError, WrapValidator
from pydantic_core import PydanticCustomError

from tripod.chat.wire.body import BY_SHAPE, Unsupported, WireBody, request_error
from tripod.chat.wire.structured import ResponseFormat, Structured, StructuredOutputs
from tripod.chat.wire.tools import MAX_TOOLS, ToolBody, ToolChoice, check_results, tool_choice, tool_specs
from tripod.errors import RequestError
from tripod.messages import Message, ToolCall
from tripod.prompts import Prompt
from tripod.sampling import SamplingParams

T = TypeVar("T")

_MAX_CHOICES = 128  # the limit of the OpenAI API for `n`
_MAX_STOPS = 64  # the OpenAI API takes 4
_MAX_LOGPROBS = 20  # the limit of the OpenAI API for `top_logprobs`
_MAX_INPUTS = 2048  # prompts or texts in one request
_INT64 = 2**63


def _stops(value: object) -> object:
    if isinstance(value, list) and len(value) > _MAX_STOPS:
        raise PydanticCustomError("too_many", "takes at most {limit} strings", {"limit": _MAX_STOPS})
    return [value] if isinstance(value, str) else value


def _token_bias(value: object) -> object:
    """JSON has only strings as keys; ours are token ids."""
    if not isinstance(value, dict):
        return value
    try:
        return {int(key): bias for key, bias in value.items()}
    except ValueError as error:
        raise PydanticCustomError("token_id", "takes token ids (integers, as strings) as its keys") from error


def _is_ids(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, int) and not isinstance(item, bool) for item in value)


def _inputs(value: object) -> object:
    """One error, where pydantic would keep four for every token id, one for each shape: gigabytes of them for a long prompt."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and (_is_ids(value) or all(isinstance(item, str) or (item and _is_ids(item)) for item in value)):
        if not isinstance(value[0], int) and len(value) > _MAX_INPUTS:
            raise PydanticCustomError("too_many", "takes at most {limit} entries in one request", {"limit": _MAX_INPUTS})
        return value
    raise PydanticCustomError(
        "shape", "must be a string, a list of strings, a list of token ids or a list of lists of token ids, not empty"
    )


def _content(value: object) -> object:
    """Text, or a list of text parts; images, audio and files are refused where they stand."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise PydanticCustomError("shape", "must be a string or a list of text parts")
    for part in value:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text":
            raise PydanticCustomError(
                "unsupported", "holds a part of type {kind}; this server takes parts of type 'text'", {"kind": repr(kind)[:100]}
            )
    return value


TokenBias = Annotated[dict[int, Annotated[float, Field(ge=-100.0, le=100.0)]], BeforeValidator(_token_bias)]
Inputs = Annotated[str | list[str | list[int]] | list[int], WrapValidator(lambda value, _: _inputs(value))]


class StreamOptions(WireBody):
    include_usage: bool = False
    include_obfuscation: bool = False  # asks for padding against traffic analysis, which only the vendor's servers add


class OneAnswer(WireBody):
    """Of the newer APIs: one answer to a request, and what we add to them as to the older."""

    model: str
    stream: bool | None = False
    seed: int | None = Field(default=None, ge=-_INT64, lt=_INT64)
    logit_bias: TokenBias | None = None
    priority: int | None = Field(default=0, ge=-_INT64, lt=_INT64)
    timeout: float | None = Field(default=None, gt=0.0, le=1e9)

    @property
    def num_choices(self) -> int:
        return 1


class _Generation(WireBody, Structured):
    """What a completion and a chat completion have in common."""

    model: str
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    n: int | None = Field(default=1, ge=1, le=_MAX_CHOICES)
    temperature: float | None = Field(default=1.0, ge=0.0, le=2.0)
    top_p: float | None = Field(default=1.0, gt=0.0, le=1.0)
    presence_penalty: float | None = Field(default=0.0, ge=-2.0, le=2.0)
    frequency_penalty: float | None = Field(default=0.0, ge=-2.0, le=2.0)
    logit_bias: TokenBias | None = None
    stop: Annotated[list[Annotated[str, Field(min_length=1)]] | None, BeforeValidator(_stops)] = None
    seed: int | None = Field(default=None, ge=-_INT64, lt=_INT64)
    # Beyond the OpenAI API, named as in vLLM.
    top_k: int | None = Field(default=0, ge=-1, lt=_INT64)  # 0 and -1 keep all
    min_p: float | None = Field(default=0.0, ge=0.0, le=1.0)
    repetition_penalty: float | None = Field(default=1.0, gt=0.0)
    min_tokens: int | None = Field(default=0, ge=0, lt=_INT64)
    ignore_eos: bool | None = False
    stop_token_ids: Annotated[list[int], Field(max_length=_MAX_STOPS)] | None = None
    priority: int | None = Field(default=0, ge=-_INT64, lt=_INT64)  # lower runs first
    timeout: float | None = Field(default=None, gt=0.0, le=1e9)  # ours: seconds for the whole answer, then 504
    # Harmless: they say who asks, not what.
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    metadata: dict[str, str] | None = None
    store: Unsupported = None
    service_tier: Literal["auto", "default"] | None = None

    def _sampling(self, *, max_tokens: int | None, logprobs: int | None, prompt_logprobs: int | None = None) -> SamplingParams:
        return SamplingParams(
            logit_bias=self.logit_bias or {},
            repetition_penalty=_or(self.repetition_penalty, 1.0),
            presence_penalty=_or(self.presence_penalty, 0.0),
            frequency_penalty=_or(self.frequency_penalty, 0.0),
            temperature=_or(self.temperature, 1.0),
            top_k=max(0, _or(self.top_k, 0)),
            top_p=_or(self.top_p, 1.0),
            min_p=_or(self.min_p, 0.0),
            seed=self.seed,
            max_tokens=max_tokens,
            min_tokens=_or(self.min_tokens, 0),
            stop=tuple(self.stop or ()),
            stop_token_ids=tuple(self.stop_token_ids or ()),
            ignore_eos=bool(self.ignore_eos),
            grammar=self.to_grammar(),
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
        )

    @property
    def num_choices(self) -> int:
        return _or(self.n, 1)

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    def _check_stream_options(self) -> None:
        if self.stream_options is not None and not self.stream:
            raise RequestError("stream_options only means something with stream=true; leave it out", param="stream_options")


class CompletionBody(_Generation):
    """POST /v1/completions."""

    prompt: Inputs
    max_tokens: int | None = Field(default=16, ge=0, lt=_INT64)
    logprobs: int | None = Field(default=None, ge=0, le=_MAX_LOGPROBS)
    echo: bool | None = False
    best_of: int | None = Field(default=None, ge=1, le=_MAX_CHOICES)
    suffix: Unsupported = None

    def to_sampling(self) -> SamplingParams:
        """The checked values; with `echo`, the prompt's log-probabilities are asked for like those of the output.

        Raises:
            RequestError: two fields contradict each other.
        """
        self._check_stream_options()
        if (self.best_of or 1) > 1:
            raise RequestError(f"best_of={self.best_of} is not supported; ask for n choices and pick one", param="best_of")
        max_tokens = _or(self.max_tokens, 16)
        if max_tokens == 0 and not self.echo:
            raise RequestError("max_tokens=0 asks for nothing; give at least 1, or echo=true to score the prompt", param="max_tokens")
        return self._sampling(max_tokens=max_tokens, logprobs=self.logprobs, prompt_logprobs=self.logprobs if self.echo else None)

    @property
    def prompts(self) -> list[str | list[int]]:
        """One entry a prompt, whichever of the four shapes was sent."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [[item for item in self.prompt if isinstance(item, int)]]
        return [item for item in self.prompt if not isinstance(item, int)]


class FunctionBody(WireBody):
    name: str
    arguments: str


class ToolCallBody(WireBody):
    id: str
    type: Literal["function"] = "function"
    function: FunctionBody


class TextPart(WireBody):
    type: Literal["text"]
    text: str


Content = Annotated[
    Annotated[str, Tag("<text>")] | Annotated[list[TextPart], Field(fail_fast=True), Tag("<list>")], BY_SHAPE, BeforeValidator(_content)
]


class MessageBody(WireBody):
    """One turn as it is sent. The fields of a reply may come back empty, as the SDK sends them."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = None
    tool_calls: Annotated[list[ToolCallBody], Field(fail_fast=True)] | None = None
    tool_call_id: str | None = None
    name: str | None = None
    reasoning_content: str | None = None  # beyond the OpenAI API, under both names by which replies have it
    reasoning: str | None = None
    refusal: Unsupported = None
    annotations: Unsupported = None
    audio: Unsupported = None
    function_call: Unsupported = None

    @classmethod
    def of(cls, message: Message) -> MessageBody:
        body = cls(role=message.role, content=message.text)
        if message.tool_calls:
            calls = [
                ToolCallBody(id=c.id, type="function", function=FunctionBody(name=c.name, arguments=c.arguments))
                for c in message.tool_calls
            ]
            body.tool_calls = calls
        if message.tool_call_id is not None:
            body.tool_call_id = message.tool_call_id
        return body

    def to_message(self, place: str) -> Message:
        """`place` names this message in errors, such as "messages[2]"."""
        if self.content is None and not self.tool_calls:
            raise RequestError(f"{place}.content is missing; give a string or a list of text parts", param=f"{place}.content")
        if self.tool_calls and self.role != "assistant":
            raise RequestError(f"{place} has role {self.role!r}; only an assistant calls tools", param=f"{place}.tool_calls")
        if (self.role == "tool") != (self.tool_call_id is not None):
            raise RequestError(f"{place}.tool_call_id belongs to a message of role 'tool', and to no other", param=f"{place}.tool_call_id")
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content or ())
        if self.name and self.role not in ("assistant", "tool"):  # several people speak in one role: the text says who
            text = f"{self.name}: {text}"
        calls = tuple(ToolCall(call.id, call.function.name, call.function.arguments) for call in self.tool_calls or ())
        role = "system" if self.role == "developer" else self.role
        return Message(role, text, calls, self.tool_call_id, reasoning=self.reasoning_content or self.reasoning or "")


def to_messages(bodies: Sequence[MessageBody]) -> tuple[Message, ...]:
    """The turns of a conversation.

    Raises:
        RequestError: one of them contradicts itself, or answers a call that nobody made.
    """
    messages = tuple(body.to_message(f"messages[{i}]") for i, body in enumerate(bodies))
    check_results(messages, "messages[{}].tool_call_id")
    return messages


class ChatBody(_Generation):
    """POST /v1/chat/completions."""

    messages: list[MessageBody] = Field(min_length=1, fail_fast=True)
    max_tokens: int | None = Field(default=None, ge=1, lt=_INT64)  # deprecated by OpenAI, and what most clients send
    max_completion_tokens: int | None = Field(default=None, ge=1, lt=_INT64)
    logprobs: bool | None = False
    top_logprobs: int | None = Field(default=None, ge=0, le=_MAX_LOGPROBS)
    modalities: Annotated[list[Literal["text"]], Field(fail_fast=True)] | None = None
    tools: Annotated[list[ToolBody], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    functions: Unsupported = None
    function_call: Unsupported = None
    audio: Unsupported = None
    prediction: Unsupported = None
    reasoning_effort: Unsupported = None
    verbosity: Unsupported = None
    web_search_options: Unsupported = None
    moderation: Unsupported = None

    @property
    def is_single(self) -> bool:
        """At most one call."""
        return self.parallel_tool_calls is False

    def to_sampling(self) -> SamplingParams:
        """The checked values.

        Raises:
            RequestError: two fields contradict each other.
        """
        self._check_stream_options()
        if self.top_logprobs is not None and not self.logprobs:
            raise RequestError("top_logprobs needs logprobs=true", param="top_logprobs")
        given = {limit for limit in (self.max_tokens, self.max_completion_tokens) if limit is not None}
        if len(given) > 1:
            raise RequestError("max_tokens and max_completion_tokens differ; send one of them", param="max_completion_tokens")
        return self._sampling(max_tokens=min(given, default=None), logprobs=_or(self.top_logprobs, 0) if self.logprobs else None)

    def to_prompt(self) -> Prompt:
        """The conversation and the tools.

        Raises:
            RequestError: a message or a tool contradicts itself or another.
        """
        messages = to_messages(self.messages)
        tools = tool_specs([(tool.function.name, tool.function.description, tool.function.parameters) for tool in self.tools or ()])
        return Prompt.of(messages, tools=tools, tool_choice=tool_choice(self.tool_choice))

    @classmethod
    def of(cls, messages: Sequence[Message], sampling: SamplingParams, *, model: str, stream: bool) -> ChatBody:
        """The request that asks `model` for an answer.

        Temperature and top_p are always sent, because servers differ in their defaults; the fields that only some
        servers know are sent when they differ from ours.

        Raises:
            RequestError: `sampling` asks for what this wire cannot carry.
        """
        if sampling.prompt_logprobs is not None:
            raise RequestError("prompt_logprobs cannot be asked for in a chat; score with the in-process engine", param="prompt_logprobs")
        plain = SamplingParams()
        fields: dict[str, Any] = {
            name: getattr(sampling, name)
            for name in ("presence_penalty", "frequency_penalty", "seed", "max_tokens", *_EXTENSIONS)
            if getattr(sampling, name) != getattr(plain, name)
        }
        for name, values in (("stop", sampling.stop), ("stop_token_ids", sampling.stop_token_ids)):
            if values:
                fields[name] = list(values)
        if sampling.logit_bias:
            fields["logit_bias"] = dict(sampling.logit_bias)
        if sampling.grammar is not None:
            response_format = ResponseFormat.of(sampling.grammar)
            if response_format is not None:
                fields["response_format"] = response_format
            else:
                fields["structured_outputs"] = StructuredOutputs.of(sampling.grammar)
        if sampling.logprobs is not None:
            fields["logprobs"] = True
            fields["top_logprobs"] = sampling.logprobs
        if stream:
            fields["stream"] = True
            fields["stream_options"] = StreamOptions(include_usage=True)
        try:
            return cls(
                model=model,
                messages=[MessageBody.of(message) for message in messages],
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                **fields,
            )
        except ValidationError as error:
            raise request_error(error) from error


class EmbeddingBody(WireBody):
    """POST /v1/embeddings."""

    model: str
    input: Inputs
    encoding_format: Literal["float", "base64"] | None = "float"
    dimensions: int | None = Field(default=None, ge=1)
    user: str | None = None
    timeout: float | None = Field(default=None, gt=0.0, le=1e9)  # ours: seconds, then 504

    @property
    def texts(self) -> list[str]:
        """The texts to embed.

        Raises:
            RequestError: token ids were sent; they belong to some vocabulary that is not the encoder's.
        """
        if isinstance(self.input, str):
            return [self.input]
        texts = [item for item in self.input if isinstance(item, str)]
        if len(texts) != len(self.input):
            raise RequestError(
                "input holds token ids, whose vocabulary this server cannot know; send text "
                "(LangChain: OpenAIEmbeddings(check_embedding_ctx_length=False))",
                param="input",
            )
        return texts


class TokenizeBody(WireBody):
    """POST /tokenize, as in vLLM: the ids of a prompt, or of a conversation in the model's template."""

    model: str
    prompt: str | None = None
    messages: list[MessageBody] | None = Field(default=None, min_length=1, fail_fast=True)
    add_special_tokens: bool | None = True  # of a prompt; a template writes its own
    return_token_strs: bool | None = False


class DetokenizeBody(WireBody):
    """POST /detokenize, as in vLLM."""

    model: str
    tokens: list[int] = Field(fail_fast=True)


_EXTENSIONS = ("top_k", "min_p", "repetition_penalty", "min_tokens", "ignore_eos")


def _or(value: T | None, default: T) -> T:
    """The API treats null as absent."""
    return default if value is None else value
