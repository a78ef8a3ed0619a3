"""The bodies of /apps/NAME: a question to an application, and all of what it answers. This API is Tripod's own."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from tripod.chat.wire.body import ReplyBody, WireBody
from tripod.chat.wire.openai import MessageBody, to_messages
from tripod.chat.wire.openai_replies import Usage
from tripod.errors import RequestError
from tripod.prompts import Prompt


class AppBody(WireBody):
    """POST /apps/NAME."""

    input: str | None = None
    messages: list[MessageBody] | None = Field(default=None, min_length=1, fail_fast=True)
    stream: bool | None = False
    user: str | None = None
    priority: int | None = Field(default=0, ge=-(2**63), lt=2**63)
    timeout: float | None = Field(default=None, gt=0.0, le=1e9)

    def to_prompt(self) -> Prompt:
        """
        Raises:
            RequestError: neither a text nor messages are given, or both.
        """
        if (self.input is None) == (self.messages is None):
            raise RequestError("give either input, a text, or messages", param="input")
        return Prompt.of(self.input if self.input is not None else to_messages(self.messages or ()))


class AppReply(ReplyBody):
    """An answer, or a piece of a streamed one. The last piece has the result and the usage."""

    app: str
    text: str
    result: Any = None  # all of the answer as JSON, where it is more than a text
    usage: Usage | None = None
