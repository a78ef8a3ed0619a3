"""What is done on the event loop, and what would hold it up."""

from __future__ import annotations

import asyncio
import threading

from tripod.serving.served import in_thread_if_long


def test_a_long_text_is_worked_on_beside_the_event_loop_and_a_short_one_in_it() -> None:
    async def threads() -> tuple[int, int]:
        return await in_thread_if_long(100, threading.get_ident), await in_thread_if_long(100_000, threading.get_ident)

    short, long = asyncio.run(threads())
    assert short == threading.get_ident() != long
