"""Reading a request body within bounds of size and time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from starlette.requests import Request

from tripod.chat.wire.body import WireBody
from tripod.errors import RequestError
from tripod.serving.errors import BodyTooLargeError, ReadTimeoutError

if TYPE_CHECKING:
    from tripod.serving.config import ServerConfig

Body = TypeVar("Body", bound=WireBody)

_LONG_BODY = 2**16  # bytes; a longer one is read off the event loop, where it would hold up the others


async def read_body(request: Request, kind: type[Body], config: ServerConfig) -> Body:
    """The checked body of a POST.

    Raises:
        BodyTooLargeError: more than `max_body_bytes`; the rest is not read.
        ReadTimeoutError: it did not come within `read_timeout_s`.
        RequestError: it does not say that it is JSON, is not JSON, or a field is wrong.
    """
    content_type = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if content_type != "application/json" and not content_type.endswith("+json"):
        raise RequestError(f"the body is sent as {content_type!r}; send JSON, with the header 'Content-Type: application/json'")
    try:
        async with asyncio.timeout(config.read_timeout_s):
            content = await _read(request, config.max_body_bytes)
    except TimeoutError as error:
        raise ReadTimeoutError(f"the body did not come within {config.read_timeout_s:g} s; send it at once") from error
    return kind.parse(content) if len(content) <= _LONG_BODY else await asyncio.to_thread(kind.parse, content)


async def _read(request: Request, max_bytes: int) -> bytes:
    chunks: list[bytes] = []
    num_bytes = 0
    async for chunk in request.stream():
        num_bytes += len(chunk)
        if num_bytes > max_bytes:
            raise BodyTooLargeError(f"the body has more than {max_bytes} bytes, the limit of this server")
        chunks.append(chunk)
    return b"".join(chunks)
