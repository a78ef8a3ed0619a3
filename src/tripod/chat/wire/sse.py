"""Server-sent events as the OpenAI API frames them: one `data:` line an event, a blank line after it, `[DONE]` at the end.

Source: WHATWG HTML, "Server-sent events".
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterable, AsyncIterator
from typing import Any

DONE = b"data: [DONE]\n\n"


def frame(body: dict[str, Any]) -> bytes:
    """One event. The JSON is ASCII, so that no client can take a U+2028 inside a text for the end of the line."""
    return b"data: " + json.dumps(body, allow_nan=False, separators=(",", ":")).encode() + b"\n\n"


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
