"""Framing: what is sent is what is read, however the network cuts it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from tripod.chat.wire.sse import DONE, events, frame


def read(content: bytes, cuts: list[int]) -> list[str]:
    async def chunks() -> AsyncIterator[bytes]:
        borders = [0, *sorted(cut % (len(content) + 1) for cut in cuts), len(content)]
        for start, end in pairwise(borders):
            yield content[start:end]

    async def collect() -> list[str]:
        return [data async for data in events(chunks())]

    return asyncio.run(collect())


@given(texts=st.lists(st.text(), max_size=4), cuts=st.lists(st.integers(0, 10_000), max_size=5))
def test_framed_bodies_are_read_back_however_they_are_cut(texts: list[str], cuts: list[int]) -> None:
    content = b"".join(frame({"text": text}) for text in texts) + DONE
    *bodies, done = read(content, cuts)
    assert done == "[DONE]"
    assert [json.loads(body)["text"] for body in bodies] == texts


@given(text=st.text())
def test_a_frame_is_one_line_for_every_reader(text: str) -> None:
    content = frame({"text": text}).decode("ascii")
    assert content.endswith("\n\n")
    assert len(content.splitlines()) == 2  # str.splitlines also splits at U+0085 and U+2028, as some clients do


def test_fields_that_carry_no_data_are_skipped_and_lines_of_one_event_are_joined() -> None:
    # WHATWG HTML, 9.2.6: comments begin with a colon, one space after "data:" is dropped, data lines join with a line break.
    content = b":\n\nevent: x\ndata: a\ndata:b\nid: 1\n\nretry: 5\n\ndata:  c\r\n\r\ndata: unfinished"
    assert read(content, []) == ["a\nb", " c"]
