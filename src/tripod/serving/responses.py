"""POST /v1/responses, as the newer of OpenAI's APIs has it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from tripod.chat.wire.openai_replies import ErrorBody, ErrorDetail, Made
from tripod.chat.wire.responses import OutputItem, OutputText, ResponseBody, ResponseReply, Status, Usage
from tripod.chat.wire.sse import named_frame
from tripod.messages import Usage as UsageValue
from tripod.serving.answers import Body, respond
from tripod.serving.asking import conversation
from tripod.serving.blocks import Block, Blocks, Change
from tripod.serving.generation import Choice
from tripod.trace import Delta, Event, Finished


async def responses(request: Request) -> Response:
    """Answers a conversation."""
    body, source, choices = await conversation(request, ResponseBody)
    writer = ResponseWriter(body=body, model=source.name)
    return await respond(request, source, choices, writer, num_choices=1, stream=bool(body.stream))


@dataclass(slots=True, kw_only=True)
class ResponseWriter:
    """Writes a response, and the events of a streamed one."""

    body: ResponseBody
    model: str
    id: str = field(default_factory=lambda: f"resp_{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))
    _blocks: Blocks = field(default_factory=Blocks)
    _finished: Finished | None = None
    _made: Made | None = None
    _num_events: int = 0

    def take(self, choice: Choice, event: Event) -> None:
        for _ in self._changes(event):
            pass

    def chunk(self, choice: Choice, event: Event, made: Made | None) -> bytes | None:
        begun = [] if self._num_events else [self._status_event("created"), self._status_event("in_progress")]
        self._made = made
        return b"".join([*begun, *(frame for change in self._changes(event) for frame in self._frames(change))]) or None

    def end(self, usage: UsageValue) -> bytes:
        return self._status_event(self._status, usage)

    def failed(self, error: ErrorBody) -> bytes:
        return self._status_event("failed", error=error.error)

    def whole(self, usage: UsageValue, made: Made) -> Body:
        self._made = made
        return self._reply(self._status, usage).to_json()

    def _changes(self, event: Event) -> Iterable[Change]:
        if isinstance(event, Delta):
            return self._blocks.push(event)
        self._finished = event
        return self._blocks.close()

    @property
    def _status(self) -> Any:
        assert self._finished is not None
        return "incomplete" if self._finished.finish_reason == "length" else "completed"

    def _reply(self, status: Any, usage: UsageValue | None = None, error: ErrorDetail | None = None) -> ResponseReply:
        body = self.body
        last = len(self._blocks.blocks) - 1
        items = [self._item(b, "incomplete" if b.index == last and status != "completed" else "completed") for b in self._blocks.blocks]
        reply = ResponseReply(
            id=self.id,
            object="response",
            created_at=self.created,
            status=status,
            error=error,
            incomplete_details={"reason": "max_output_tokens"} if status == "incomplete" else None,
            instructions=body.instructions,
            max_output_tokens=body.max_output_tokens,
            metadata=body.metadata or {},
            model=self.model,
            output=items,
            parallel_tool_calls=body.parallel_tool_calls is not False,
            previous_response_id=None,
            store=False,
            temperature=body.temperature,
            text=body.text.to_json() if body.text is not None else {"format": {"type": "text"}},
            tool_choice=body.chosen_tool if isinstance(body.tool_choice, str | None) else body.tool_choice.to_json(),
            tools=[{"parameters": None, "strict": False, **tool.to_json()} for tool in body.tools or ()],
            top_p=body.top_p,
            truncation="disabled",
            usage=None if usage is None else Usage.of(usage),
        )
        if self._made is not None:
            reply.tripod = self._made
        return reply

    def _status_event(self, status: str, usage: UsageValue | None = None, error: ErrorDetail | None = None) -> bytes:
        kept = "in_progress" if status == "created" else status
        return self._event(f"response.{status}", response=self._reply(kept, usage, error).to_json())

    def _frames(self, change: Change) -> list[bytes]:
        """What a change of a block is called, from the outside in when it opens, from the inside out when it closes."""
        what, block, added = change
        place = {"item_id": self._item_id(block), "output_index": block.index}
        part = {**place, "content_index": 0}
        kind = {"text": "output_text", "reasoning": "reasoning_text", "call": "function_call_arguments"}[block.kind]
        match what:
            case "opened":
                opened = self._event(
                    "response.output_item.added", output_index=block.index, item=self._item(block, "in_progress").to_json()
                )
                if block.kind == "call":
                    return [opened]
                return [opened, self._event("response.content_part.added", **part, part=_part(block).to_json())]
            case "grown" if block.kind == "call":
                return [self._event(f"response.{kind}.delta", **place, delta=added)]
            case "grown":
                return [self._event(f"response.{kind}.delta", **part, delta=added, **({"logprobs": []} if block.kind == "text" else {}))]
            case _:
                status: Status = "incomplete" if self._finished is not None and self._status == "incomplete" else "completed"
                if block.kind == "call":
                    frames = [self._event(f"response.{kind}.done", **place, name=block.name, arguments=block.text)]
                else:
                    extra: dict[str, Any] = {"logprobs": []} if block.kind == "text" else {}
                    frames = [
                        self._event(f"response.{kind}.done", **part, text=block.text, **extra),
                        self._event("response.content_part.done", **part, part=_part(block).to_json()),
                    ]
                item = self._item(block, status).to_json()
                return [*frames, self._event("response.output_item.done", output_index=block.index, item=item)]

    def _event(self, kind: str, **fields: Any) -> bytes:
        number = self._num_events
        self._num_events += 1
        return named_frame({"type": kind, "sequence_number": number, **fields})

    def _item_id(self, block: Block) -> str:
        return f"{_PREFIXES[block.kind]}_{self.id.removeprefix('resp_')[:24]}{block.index:08d}"

    def _item(self, block: Block, status: Status) -> OutputItem:
        id = self._item_id(block)
        match block.kind:
            case "text":
                parts = [] if status == "in_progress" else [_part(block)]
                return OutputItem(id=id, type="message", status=status, role="assistant", content=parts)
            case "reasoning":
                return OutputItem(id=id, type="reasoning", status=status, summary=[], content=[_part(block)])
            case "call":
                item = OutputItem(id=id, type="function_call", status=status)
                item.call_id, item.name, item.arguments = block.call_id, block.name, block.text
                return item


_PREFIXES = {"text": "msg", "reasoning": "rs", "call": "fc"}


def _part(block: Block) -> OutputText:
    if block.kind == "reasoning":
        return OutputText(type="reasoning_text", text=block.text)
    return OutputText(type="output_text", text=block.text, annotations=[], logprobs=[])
