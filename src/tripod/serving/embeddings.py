"""POST /v1/embeddings."""

from __future__ import annotations

import asyncio
import base64

import numpy
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tripod.chat.wire.openai import EmbeddingBody
from tripod.chat.wire.openai_replies import Embedding, EmbeddingList, PromptTokensDetails
from tripod.chat.wire.openai_replies import Usage as UsageBody
from tripod.errors import ContextLengthError, RequestError
from tripod.serving.bodies import read_body
from tripod.serving.connection import unless_disconnected
from tripod.serving.served import Served, TextEncoder


async def embeddings(request: Request) -> Response:
    """Embeds one or more texts as unit vectors."""
    served = Served.of(request)
    body = await read_body(request, EmbeddingBody, served.max_body_bytes)
    encoder = served.encoder
    if encoder is None:
        raise RequestError("this server has no encoder; start it with one: tripod serve MODEL --embedder ENCODER", param="model")
    if served.engine is not None and body.model == served.engine.name:
        raise RequestError(f"{body.model!r} writes text and embeds nothing; ask for {served.encoder_name!r}", param="model")
    if body.model != served.encoder_name:
        raise served.unknown(body.model)
    if body.dimensions not in (None, encoder.dim):
        raise RequestError(f"dimensions={body.dimensions} is not offered; {body.model!r} has {encoder.dim}", param="dimensions")
    texts = body.texts

    async def answer() -> Response:
        return JSONResponse(await asyncio.to_thread(_embed, encoder, served.encoder_name, texts, body.encoding_format == "base64"))

    return await unless_disconnected(request, answer)


def _embed(encoder: TextEncoder, name: str, texts: list[str], as_base64: bool) -> dict[str, object]:
    lengths = encoder.count_tokens(texts)
    for i, length in enumerate(lengths):
        if length > encoder.max_tokens:  # a vector of the first part only would be a silent loss
            raise ContextLengthError(
                f"input[{i}] has {length} tokens; {name!r} reads at most {encoder.max_tokens}; split the text", param="input"
            )
    vectors = numpy.ascontiguousarray(encoder.encode(texts), dtype="<f4")
    return EmbeddingList(
        object="list",
        data=[
            Embedding(object="embedding", index=i, embedding=base64.b64encode(vector.tobytes()).decode() if as_base64 else vector.tolist())
            for i, vector in enumerate(vectors)
        ],
        model=name,
        usage=UsageBody(prompt_tokens=sum(lengths), total_tokens=sum(lengths), prompt_tokens_details=PromptTokensDetails(cached_tokens=0)),
    ).to_json()
