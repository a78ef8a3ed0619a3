"""A frame from a template has the bytes of one from a body: judged by the plain way, `frame` of the whole body."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tripod.chat.wire.sse import ChunkTemplate, frame
from tripod.sampling import SamplingParams
from tripod.serving.chat_completions import ChatWriter, _Written
from tripod.serving.generation import Choice
from tripod.trace import Delta

TEXTS = st.text(st.characters(exclude_categories=[]), max_size=20)


@given(name=TEXTS, text=TEXTS)
def test_a_template_writes_what_the_body_would(name: str, text: str) -> None:
    def body_of(text: str) -> dict[str, object]:
        return {"model": name, "choices": [{"text": text, "logprobs": None}], "usage": None}

    assert ChunkTemplate(body_of).frame(text) == frame(body_of(text))


@pytest.mark.parametrize("include_usage", [False, True])
def test_every_chunk_of_a_chat_has_the_keys_of_the_api_in_their_order(include_usage: bool) -> None:
    writer = ChatWriter(model='m"\0', choices=[_Written(), _Written()], wants_logprobs=False, include_usage=include_usage)
    choice = Choice(index=1, prompt=(1,), sampling=SamplingParams())
    texts = ["Once", ' "up\u2028on" \N{GRINNING FACE}\0', "\ud800"]
    frames = [writer.chunk(choice, Delta(text=text, token_ids=(1,)), None) for text in texts]
    for is_first, text, chunk in zip((True, False, False), texts, frames, strict=True):
        delta = {"role": "assistant", "content": text} if is_first else {"content": text}
        expected: dict[str, object] = {
            "id": writer.id,
            "object": "chat.completion.chunk",
            "created": writer.created,
            "model": 'm"\0',
            "choices": [{"index": 1, "delta": delta, "logprobs": None, "finish_reason": None}],
        }
        if include_usage:
            expected["usage"] = None
        assert chunk == b"data: " + json.dumps(expected, separators=(",", ":")).encode() + b"\n\n"
    assert writer.chunk(choice, Delta(text="", token_ids=(1,)), None) is None
