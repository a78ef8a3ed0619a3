"""POST /tokenize and /detokenize: what the model reads, and what its tokens say. Neither waits for the engine."""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tripod.chat.render import prompt_ids
from tripod.chat.wire.openai import DetokenizeBody, TokenizeBody, to_messages
from tripod.chat.wire.openai_replies import Detokenized, Tokens
from tripod.errors import ConfigError, RequestError
from tripod.serving.bodies import read_body
from tripod.serving.served import in_thread_if_long, timed
from tripod.serving.visit import Visit


async def tokenize(request: Request) -> Response:
    """The token ids of a prompt, or of messages in the chat template."""
    visit = Visit.of(request)
    served = visit.served
    body = await read_body(request, TokenizeBody, served.config)
    engine = served.engine_for(body.model)
    if (body.prompt is None) == (body.messages is None):
        raise RequestError("give either prompt or messages", param="prompt")
    if body.prompt is not None:
        engine.check_length(len(body.prompt))
        is_special = body.add_special_tokens is not False
        ids = await timed(visit, len(body.prompt), engine.tokenizer.encode, body.prompt, add_special_tokens=is_special)
    else:
        messages = to_messages(body.messages or ())
        num_characters = sum(len(message.text) for message in messages)
        engine.check_length(num_characters)
        try:
            ids = await timed(visit, num_characters, prompt_ids, messages, engine.tokenizer, served.chat_template)
        except ConfigError as error:
            raise RequestError(str(error), param="messages") from error
    answer = Tokens(count=len(ids), max_model_len=engine.max_context, tokens=list(ids))
    if body.return_token_strs:
        answer.token_strs = [engine.tokenizer.token_text(token_id) for token_id in ids]
    return JSONResponse(answer.to_json())


async def detokenize(request: Request) -> Response:
    """The text of token ids."""
    visit = Visit.of(request)
    body = await read_body(request, DetokenizeBody, visit.served.config)
    engine = visit.served.engine_for(body.model)
    outside = next((i for i in body.tokens if not 0 <= i < engine.tokenizer.vocab_size), None)
    if outside is not None:
        raise RequestError(f"tokens holds the id {outside}; this model has ids 0 to {engine.tokenizer.vocab_size - 1}", param="tokens")
    try:
        async with asyncio.timeout(visit.remaining_s):
            text = await in_thread_if_long(len(body.tokens), engine.tokenizer.decode, body.tokens, skip_special_tokens=False)
    except TimeoutError:
        raise visit.deadline_error() from None
    return JSONResponse(Detokenized(prompt=text).to_json())
