"""Reading a request body within bounds."""

from __future__ import annotations

from typing import TypeVar

from starlette.requests import Request

from tripod.chat.wire.openai import ChatBody, CompletionBody, EmbeddingBody
from tripod.errors import RequestError
from tripod.serving.errors import BodyTooLargeError

Body = TypeVar("Body", ChatBody, CompletionBody, EmbeddingBody)


async def read_body(request: Request, kind: type[Body], max_bytes: int) -> Body:
    """The checked body of a POST.

    Raises:
        BodyTooLargeError: more than `max_bytes`; the rest is not read.
        RequestError: it does not say that it is JSON, is not JSON, or a field is wrong.
    """
    content_type = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if content_type != "application/json" and not content_type.endswith("+json"):
        raise RequestError(f"the body is sent as {content_type!r}; send JSON, with the header 'Content-Type: application/json'")
    chunks: list[bytes] = []
    num_bytes = 0
    async for chunk in request.stream():
        num_bytes += len(chunk)
        if num_bytes > max_bytes:
            raise BodyTooLargeError(f"the body has more than {max_bytes} bytes, the limit of this server")
        chunks.append(chunk)
    return kind.parse(b"".join(chunks))
