"""The bodies of Anthropic's Messages API, requests and replies.

Source: the reference of the Messages API, version 2023-06-01. A field that we do not honour is refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, Tag

from tripod.chat.wire.body import BY_SHAPE, BY_TYPE, ReplyBody, Unsupported, WireBody, only
from tripod.chat.wire.openai import OneAnswer
from tripod.chat.wire.openai_replies import Made
from tripod.chat.wire.tools import MAX_TOOLS, check_results, tool_specs
from tripod.errors import RequestError
from tripod.messages import Message, ToolCall
from tripod.messages import Usage as UsageValue
from tripod.prompts import Prompt
from tripod.sampling import Grammar, SamplingParams

_INT64 = 2**63


class CacheControl(WireBody):
    """Where a client would like a cache to begin. Ours finds equal prefixes by itself."""

    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


class TextBlock(WireBody):
    type: Literal["text"]
    text: str
    cache_control: CacheControl | None = None
    citations: Unsupported = None


class ToolUseBlock(WireBody):
    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]
    cache_control: CacheControl | None = None
    caller: dict[str, Any] | None = None  # as replies of the SDK have it


class ThinkingBlock(WireBody):
    type: Literal["thinking"]
    thinking: str
    signature: str = ""


Text = Annotated[
    Annotated[str, Tag("<text>")] | Annotated[list[Annotated[TextBlock, only("text")]], Field(fail_fast=True), Tag("<list>")], BY_SHAPE
]


class ToolResultBlock(WireBody):
    type: Literal["tool_result"]
    tool_use_id: str
    content: Text | None = None
    is_error: bool | None = None
    cache_control: CacheControl | None = None


Block = Annotated[
    Annotated[TextBlock, Tag("<text>")]
    | Annotated[ToolUseBlock, Tag("<tool_use>")]
    | Annotated[ToolResultBlock, Tag("<tool_result>")]
    | Annotated[ThinkingBlock, Tag("<thinking>")],
    BY_TYPE,
    only("text", "tool_use", "tool_result", "thinking"),
]


class TurnBody(WireBody):
    role: Literal["user", "assistant"]
    content: Annotated[Annotated[str, Tag("<text>")] | Annotated[list[Block], Field(fail_fast=True), Tag("<list>")], BY_SHAPE]

    def to_messages(self, place: str) -> list[Message]:
        """Results of tools become turns of their own, before the text. `place` names this turn in errors."""
        blocks = [TextBlock(type="text", text=self.content)] if isinstance(self.content, str) else self.content
        wrong = {"user": (ToolUseBlock, ThinkingBlock), "assistant": (ToolResultBlock,)}[self.role]
        for i, block in enumerate(blocks):
            if isinstance(block, wrong):
                raise RequestError(f"{place}.content[{i}] is a {block.type}, which a turn of the {self.role} cannot hold", param=place)
        results = [
            Message("tool", _result(block), tool_call_id=block.tool_use_id) for block in blocks if isinstance(block, ToolResultBlock)
        ]
        text = "".join(block.text for block in blocks if isinstance(block, TextBlock))
        calls = tuple(ToolCall(b.id, b.name, json.dumps(b.input, ensure_ascii=False)) for b in blocks if isinstance(b, ToolUseBlock))
        thoughts = [block for block in blocks if isinstance(block, ThinkingBlock)]
        said = Message(self.role, text, calls, reasoning="".join(t.thinking for t in thoughts))
        return [*results, *([said] if text or calls or not results else [])]


class AnthropicTool(WireBody):
    type: Literal["custom"] | None = None
    name: str
    description: str | None = None
    input_schema: dict[str, Any]
    strict: bool | None = None  # arguments are always held to the schema, or it is refused
    cache_control: CacheControl | None = None


_IS_CUSTOM = only("custom", default="custom", what="is a tool of type")


class AnthropicToolChoice(WireBody):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(WireBody):
    """A model thinks where its template lets it; a budget for it cannot be set."""

    type: Literal["disabled"]


class OutputFormat(WireBody):
    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(WireBody):
    """What the text must be."""

    format: OutputFormat | None = None
    effort: Unsupported = None


class Metadata(WireBody):
    user_id: str | None = None


class CountBody(WireBody):
    """POST /v1/messages/count_tokens, and what a message has in common with it."""

    model: str
    messages: list[TurnBody] = Field(min_length=1, fail_fast=True)
    system: Text | None = None
    tools: Annotated[list[Annotated[AnthropicTool, _IS_CUSTOM]], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_choice: AnthropicToolChoice | None = None
    thinking: Thinking | None = None
    cache_control: CacheControl | None = None

    def to_prompt(self) -> Prompt:
        """
        Raises:
            RequestError: a message or a tool contradicts itself or another.
        """
        first = [Message("system", _text(self.system))] if self.system else []
        turns = [message for i, body in enumerate(self.messages) for message in body.to_messages(f"messages[{i}]")]
        if turns[-1].role == "assistant":
            raise RequestError("the last turn is the assistant's, and an answer that is begun cannot be continued here", param="messages")
        check_results(turns, "messages, turn {}")
        tools = tool_specs([(tool.name, tool.description, tool.input_schema) for tool in self.tools or ()])
        choice = self.tool_choice
        if choice is not None and (choice.name is not None) != (choice.type == "tool"):
            raise RequestError("tool_choice.name belongs to type 'tool', and to no other", param="tool_choice")
        chosen = "auto" if choice is None else {"any": "required", "tool": choice.name or ""}.get(choice.type, choice.type)
        return Prompt.of([*first, *turns], tools=tools, tool_choice=chosen)

    @property
    def is_single(self) -> bool:
        """At most one call."""
        return self.tool_choice is not None and bool(self.tool_choice.disable_parallel_tool_use)


class MessagesBody(CountBody, OneAnswer):
    """POST /v1/messages."""

    max_tokens: int = Field(ge=1, lt=_INT64)
    stop_sequences: Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=64)] | None = None
    temperature: float | None = Field(default=1.0, ge=0.0, le=1.0)
    top_p: float | None = Field(default=None, gt=0.0, le=1.0)
    top_k: int | None = Field(default=None, ge=0, lt=_INT64)
    metadata: Metadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
    container: Unsupported = None
    mcp_servers: Unsupported = None
    context_management: Unsupported = None
    output_config: OutputConfig | None = None
    grammar_field: ClassVar[str] = "output_config"  # says what the text must be

    @property
    def user(self) -> str | None:
        return self.metadata.user_id if self.metadata is not None else None

    def to_sampling(self) -> SamplingParams:
        form = self.output_config.format if self.output_config is not None else None
        return SamplingParams(
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=self.top_p or 1.0,
            top_k=self.top_k or 0,
            max_tokens=self.max_tokens,
            stop=tuple(self.stop_sequences or ()),
            seed=self.seed,
            logit_bias=self.logit_bias or {},
            grammar=Grammar.json_schema(form.schema_) if form is not None else None,
        )


def _text(text: str | Sequence[TextBlock] | None) -> str:
    return text if isinstance(text, str) else "\n\n".join(block.text for block in text or ())


def _result(block: ToolResultBlock) -> str:
    return f"Error: {_text(block.content)}" if block.is_error else _text(block.content)


class Usage(ReplyBody):
    """Unlike the OpenAI API, it counts the tokens that were read from a cache apart."""

    input_tokens: int
    output_tokens: int
    cache_read_input_tokens: int = 0
    cache_creation_input_tokens: int = 0

    @classmethod
    def of(cls, usage: UsageValue) -> Usage:
        return cls(
            input_tokens=usage.prompt_tokens - usage.cached_tokens,
            output_tokens=usage.completion_tokens,
            cache_read_input_tokens=usage.cached_tokens,
            cache_creation_input_tokens=0,
        )


class ReplyBlock(ReplyBody):
    """A piece of an answer: `text`, or `thinking`, or a call with its `id`, `name` and `input`."""

    type: Literal["text", "thinking", "tool_use"]
    text: str | None = None
    thinking: str | None = None
    signature: str | None = None
    id: str | None = None
    name: str | None = None
    input: Any = None


class MessageReply(ReplyBody):
    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[ReplyBlock]
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"] | None
    stop_sequence: str | None
    stop_details: None
    usage: Usage
    tripod: Made | None = None  # beyond the API, and not in a stream


class TokenCount(ReplyBody):
    input_tokens: int


class AnthropicError(ReplyBody):
    type: str
    message: str


class AnthropicErrorBody(ReplyBody):
    type: Literal["error"]
    error: AnthropicError
