"""The bodies of the OpenAI Responses API, requests and replies. Nothing is stored here, so a conversation is sent whole each time.

Source: the OpenAI API reference (responses). A field that we do not honour is refused by name.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, Tag

from tripod.chat.wire.body import BY_SHAPE, BY_TYPE, ReplyBody, Unsupported, WireBody, only
from tripod.chat.wire.openai import OneAnswer
from tripod.chat.wire.openai_replies import ErrorDetail, Made
from tripod.chat.wire.structured import JsonSchemaFormat, ResponseFormat
from tripod.chat.wire.tools import IS_FUNCTION, MAX_TOOLS, FunctionName, check_results, tool_specs
from tripod.errors import RequestError
from tripod.messages import Message, ToolCall
from tripod.messages import Usage as UsageValue
from tripod.prompts import Prompt
from tripod.sampling import Grammar, SamplingParams

_INT64 = 2**63


class TextPart(WireBody):
    type: Literal["input_text", "output_text"]
    text: str
    annotations: Unsupported = None
    logprobs: Unsupported = None


_Parts = list[Annotated[TextPart, only("input_text", "output_text")]]
Content = Annotated[Annotated[str, Tag("<text>")] | Annotated[_Parts, Field(fail_fast=True), Tag("<list>")], BY_SHAPE]
Status = Literal["in_progress", "completed", "incomplete"]


class MessageItem(WireBody):
    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Content
    id: str | None = None
    status: Status | None = None
    phase: str | None = None


class CallItem(WireBody):
    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str
    id: str | None = None
    status: Status | None = None


class ResultItem(WireBody):
    type: Literal["function_call_output"]
    call_id: str
    output: Content
    id: str | None = None
    status: Status | None = None


class ReasoningText(WireBody):
    type: Literal["reasoning_text"]
    text: str


class ReasoningItem(WireBody):
    type: Literal["reasoning"]
    id: str | None = None
    summary: Unsupported = None
    content: Annotated[list[ReasoningText], Field(fail_fast=True)] | None = None
    encrypted_content: Unsupported = None
    status: Status | None = None


Item = Annotated[
    Annotated[MessageItem, Tag("<message>")]
    | Annotated[CallItem, Tag("<function_call>")]
    | Annotated[ResultItem, Tag("<function_call_output>")]
    | Annotated[ReasoningItem, Tag("<reasoning>")],
    BY_TYPE,
    only("message", "function_call", "function_call_output", "reasoning", default="message"),
]


class _ResponseTool(WireBody):
    type: Literal["function"]
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None  # arguments are always held to the schema, or it is refused


class NamedFunction(FunctionName):
    type: Literal["function"]


ResponseToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("<text>")] | Annotated[NamedFunction, Tag("<object>")], BY_SHAPE, IS_FUNCTION
]


class TextFormat(JsonSchemaFormat):
    """The `response_format` of the chat API, without a level."""

    type: Literal["text", "json_object", "json_schema"]
    name: str = "answer"

    def grammar(self) -> Grammar | None:
        """None asks for free text."""
        schema = JsonSchemaFormat(name=self.name, schema=self.schema_) if self.type == "json_schema" else None
        if schema is None and self.schema_ is not None:
            raise RequestError(f"text.format.schema belongs to type 'json_schema'; the type is {self.type!r}", param="text")
        return ResponseFormat(type=self.type, json_schema=schema).grammar()


class TextConfig(WireBody):
    format: TextFormat | None = None
    verbosity: Unsupported = None


class ResponseBody(OneAnswer):
    """POST /v1/responses."""

    input: Annotated[Annotated[str, Tag("<text>")] | Annotated[list[Item], Field(min_length=1, fail_fast=True), Tag("<list>")], BY_SHAPE]
    instructions: str | None = None
    max_output_tokens: int | None = Field(default=None, ge=1, lt=_INT64)
    temperature: float | None = Field(default=1.0, ge=0.0, le=2.0)
    top_p: float | None = Field(default=1.0, gt=0.0, le=1.0)
    tools: Annotated[list[Annotated[_ResponseTool, IS_FUNCTION]], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_choice: ResponseToolChoice | None = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    truncation: Literal["disabled"] | None = None
    metadata: dict[str, str] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    service_tier: Literal["auto", "default"] | None = None
    store: Unsupported = None
    previous_response_id: Unsupported = None
    conversation: Unsupported = None
    background: Unsupported = None
    include: Unsupported = None
    prompt: Unsupported = None
    reasoning: Unsupported = None
    max_tool_calls: Unsupported = None
    top_logprobs: Unsupported = None
    context_management: Unsupported = None
    grammar_field: ClassVar[str] = "text"  # says what the text must be

    @property
    def is_single(self) -> bool:
        """At most one call."""
        return self.parallel_tool_calls is False

    @property
    def chosen_tool(self) -> str:
        choice = self.tool_choice
        return choice.name if isinstance(choice, NamedFunction) else choice or "auto"

    def to_sampling(self) -> SamplingParams:
        """
        Raises:
            RequestError: the text's format contradicts itself.
        """
        form = self.text.format if self.text is not None else None
        return SamplingParams(
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=self.top_p or 1.0,
            max_tokens=self.max_output_tokens,
            seed=self.seed,
            logit_bias=self.logit_bias or {},
            grammar=form.grammar() if form is not None else None,
        )

    def to_prompt(self) -> Prompt:
        """The instructions, the items and the tools; what one turn of the model made is one message again.

        Raises:
            RequestError: an item or a tool contradicts itself or another.
        """
        messages = [Message("system", self.instructions)] if self.instructions else []
        items = [MessageItem(role="user", content=self.input)] if isinstance(self.input, str) else self.input
        reasoning = ""
        for item in items:
            match item:
                case ReasoningItem():
                    reasoning += "".join(part.text for part in item.content or ())
                    continue
                case MessageItem(role="assistant"):
                    messages.append(Message("assistant", _text(item.content), reasoning=reasoning))
                case MessageItem():
                    messages.append(Message("user" if item.role == "user" else "system", _text(item.content)))
                case CallItem():
                    call = ToolCall(item.call_id, item.name, item.arguments)
                    last = messages.pop() if messages and messages[-1].role == "assistant" and not reasoning else None
                    begun = last or Message("assistant", "", reasoning=reasoning)
                    messages.append(Message("assistant", begun.text, (*begun.tool_calls, call), reasoning=begun.reasoning))
                case ResultItem():
                    messages.append(Message("tool", _text(item.output), tool_call_id=item.call_id))
            reasoning = ""
        check_results(messages, "input, turn {}")
        tools = tool_specs([(tool.name, tool.description, tool.parameters) for tool in self.tools or ()])
        return Prompt.of(messages, tools=tools, tool_choice=self.chosen_tool)


def _text(content: str | list[TextPart]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)


class OutputText(ReplyBody):
    type: Literal["output_text", "reasoning_text"]
    text: str
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None


class OutputItem(ReplyBody):
    """A message, its reasoning, or a call of a function."""

    id: str
    type: Literal["message", "reasoning", "function_call"]
    status: Status
    role: Literal["assistant"] | None = None
    content: list[OutputText] | None = None
    summary: list[Any] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None


class InputDetails(ReplyBody):
    cached_tokens: int


class OutputDetails(ReplyBody):
    reasoning_tokens: int  # not told apart: 0


class Usage(ReplyBody):
    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int

    @classmethod
    def of(cls, usage: UsageValue) -> Usage:
        return cls(
            input_tokens=usage.prompt_tokens,
            input_tokens_details=InputDetails(cached_tokens=usage.cached_tokens),
            output_tokens=usage.completion_tokens,
            output_tokens_details=OutputDetails(reasoning_tokens=0),
            total_tokens=usage.total_tokens,
        )


class ResponseReply(ReplyBody):
    """A response. The fields of the request that shape an answer are repeated."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    error: ErrorDetail | None
    incomplete_details: dict[str, str] | None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    model: str
    output: list[OutputItem]
    parallel_tool_calls: bool
    previous_response_id: None
    store: Literal[False]
    temperature: float | None
    text: dict[str, Any]
    tool_choice: Any
    tools: list[dict[str, Any]]
    top_p: float | None
    truncation: Literal["disabled"]
    usage: Usage | None
    tripod: Made | None = None  # beyond the API
