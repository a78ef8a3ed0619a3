"""Server-sent events as the OpenAI API frames them: one `data:` line an event, a blank line after it, `[DONE]` at the end.

Source: WHATWG HTML, "Server-sent events".
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterable, AsyncIterator, Callable
from json.encoder import encode_basestring_ascii
from typing import Any

DONE = b"data: [DONE]\n\n"


def frame(body: dict[str, Any]) -> bytes:
    """One event. The JSON is ASCII, so that no client can take a U+2028 inside a text for the end of the line."""
    return b"data: " + json.dumps(body, allow_nan=False, separators=(",", ":")).encode() + b"\n\n"


def named_frame(body: dict[str, Any]) -> bytes:
    """One event whose name is its `type`, as the newer APIs have it."""
    return f"event: {body['type']}\n".encode() + frame(body)


class ChunkTemplate:
    """Frames that differ in one text: what `frame` would write, without making a body for each token."""

    __slots__ = ("_head", "_tail")

    def __init__(self, body_of: Callable[[str], dict[str, Any]]) -> None:
        """
        Args:
            body_of: the body with this text, which must be the last string of it that holds a NUL.
        """
        self._head, _, self._tail = frame(body_of(_MARK)).rpartition(_quoted(_MARK))

    def frame(self, text: str) -> bytes:
        return self._head + _quoted(text) + self._tail


_MARK = "\0"


def _quoted(text: str) -> bytes:
    return encode_basestring_ascii(text).encode()


async def events(chunks: AsyncIterable[bytes]) -> AsyncIterator[str]:
    """The data of each event, out of bytes cut anywhere. Comments and other fields are skipped; an unfinished event is dropped."""
    rest = b""
    data: list[str] = []
    async for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for raw in lines:
            line = raw.removesuffix(b"\r").decode("utf-8", "replace")
            if line.startswith("data:"):
                data.append(line[5:].removeprefix(" "))
            elif not line and data:
                yield "\n".join(data)
                data = []
