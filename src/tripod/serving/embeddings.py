"""POST /v1/embeddings."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator
from functools import partial

import numpy
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tripod.chat.wire.openai import EmbeddingBody
from tripod.chat.wire.openai_replies import Embedding, EmbeddingList, PromptTokensDetails
from tripod.chat.wire.openai_replies import Usage as UsageBody
from tripod.errors import ContextLengthError, RequestError
from tripod.serving.bodies import read_body
from tripod.serving.connection import unless_disconnected
from tripod.serving.errors import ShuttingDownError
from tripod.serving.served import TextEncoder
from tripod.serving.visit import Visit

_PIECE_TOKENS = 512  # encoded between two steps of the engine; a longer piece would be a longer gap in every answer


async def embeddings(request: Request) -> Response:
    """Embeds one or more texts as unit vectors."""
    visit = Visit.of(request)
    served = visit.served
    body = await read_body(request, EmbeddingBody, served.config)
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
    num_tokens = sum(map(len, texts)) * served.tokens_per_character.value
    visit.admit(user=body.user, timeout_s=body.timeout, priority=0, num_requests=1, num_tokens=num_tokens)

    async def answer() -> Response:
        try:
            async with asyncio.timeout(visit.remaining_s):
                vectors, lengths = await _embed(encoder, visit, texts)
        except TimeoutError:
            raise visit.deadline_error() from None
        served.metrics.embedding_tokens.inc(sum(lengths))
        as_base64 = body.encoding_format == "base64"
        return JSONResponse(await asyncio.to_thread(_written, vectors, lengths, served.encoder_name, as_base64))

    return await unless_disconnected(request, answer)


async def _embed(encoder: TextEncoder, visit: Visit, texts: list[str]) -> tuple[NDArray[numpy.float32], list[int]]:
    """The vectors, and the tokens of each text. Between the engine's steps, one piece a step for all requests together.

    Raises:
        ContextLengthError: a text is longer than the encoder reads.
        ShuttingDownError: the server cannot wait for all of them.
    """
    served = visit.served
    lengths = await asyncio.to_thread(encoder.count_tokens, texts)
    for i, length in enumerate(lengths):
        if length > encoder.max_tokens:  # a vector of the first part only would be a silent loss
            raise ContextLengthError(
                f"input[{i}] has {length} tokens; {served.encoder_name!r} reads at most {encoder.max_tokens}; split the text", param="input"
            )
    vectors = []
    cuts: list[ShuttingDownError] = []
    with served.lifecycle.told_of_cut(cuts.append):
        for piece in _pieces(texts, lengths):
            async with served.encoding:
                if cuts:
                    raise cuts[0]
                if visit.ticket is not None:
                    served.admission.start(visit.ticket)
                encode = partial(encoder.encode, piece)
                vectors.append(await (served.engine.between_steps(encode) if served.engine is not None else asyncio.to_thread(encode)))
    return numpy.concatenate(vectors), lengths


def _pieces(texts: list[str], lengths: list[int]) -> Iterator[list[str]]:
    """In order, as many texts at a time as `_PIECE_TOKENS` allows, and at least one."""
    piece: list[str] = []
    num_tokens = 0
    for text, length in zip(texts, lengths, strict=True):
        if piece and num_tokens + length > _PIECE_TOKENS:
            yield piece
            piece, num_tokens = [], 0
        piece.append(text)
        num_tokens += length
    yield piece


def _written(vectors: NDArray[numpy.float32], lengths: list[int], name: str, as_base64: bool) -> dict[str, object]:
    return EmbeddingList(
        object="list",
        data=[
            Embedding(object="embedding", index=i, embedding=base64.b64encode(vector.tobytes()).decode() if as_base64 else vector.tolist())
            for i, vector in enumerate(numpy.ascontiguousarray(vectors, dtype="<f4"))
        ],
        model=name,
        usage=UsageBody(prompt_tokens=sum(lengths), total_tokens=sum(lengths), prompt_tokens_details=PromptTokensDetails(cached_tokens=0)),
    ).to_json()
