"""Reasoning, text and tool calls out of what a model writes, as it comes: one parser for every format of `tripod.text.tool_format`.

The law: whatever pieces a text is pushed in, the deltas add up to the same. So a stream and a whole answer cannot differ.
Nothing is lost: what looks like a call and turns out to be none is text.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import replace

from tripod.chat.closing import closing
from tripod.text.tool_format import THINK, ToolFormat
from tripod.trace import Delta, Event, Finished, ToolCallDelta

_BLANKS = " \t\r\n"
_NAME = re.compile(r"[A-Za-z0-9_.-]*")
_MAX_NAME = 256


def new_call_id() -> str:
    """Nine letters and digits, which Mistral's templates insist on."""
    return uuid.uuid4().hex[:9]


class AnswerParser:
    """Parses one answer.

    Args:
        form: how calls are written; None where there are no tools, so that nothing is taken for a call.
        reasons: the answer may begin with reasoning.
        is_reasoning: it begins inside it, because the prompt has opened it.
        new_id: names each call.
    """

    def __init__(
        self,
        form: ToolFormat | None,
        *,
        reasons: bool = False,
        is_reasoning: bool = False,
        new_id: Callable[[], str] = new_call_id,
    ) -> None:
        self._form = form
        self._new_id = new_id
        self._step = self._thinking if is_reasoning else self._opening if reasons else self._text
        self._rest = ""  # what was pushed and not yet understood
        self._pieces: list[Delta] = []
        self._is_over = False  # nothing more will be pushed
        self._is_cut = False  # though the model would have said more
        self._is_fresh = True  # of this part of the answer, only blanks have come
        self._follows = False  # this text stands behind reasoning or calls, so blanks at its beginning mean nothing
        self._head = ""  # what the name of the call stands behind
        self._num_calls = 0
        self._depth = 0  # of the arguments' brackets
        self._in_string = False
        self._is_escaped = False

    def push(self, text: str) -> list[Delta]:
        """What can be said now: each delta is text, reasoning, or pieces of one call, in their order."""
        self._rest += text
        return self._read()

    def flush(self, *, is_cut: bool = False) -> list[Delta]:
        """What was held back, at the end of the answer. Of one that is cut, the beginning of a call without its name is no text."""
        self._is_over, self._is_cut = True, is_cut
        return self._read()

    def _read(self) -> list[Delta]:
        while self._step():
            pass
        pieces, self._pieces = self._pieces, []
        return pieces

    # Each step understands some of the rest and is true, or it needs more and is false. None may depend on where the rest ends, except
    # by waiting; that is what makes the law hold.

    def _opening(self) -> bool:
        place = _follow(THINK[0], self._rest)
        if place is None and not self._is_over:
            return False
        if place is not None and place > 0:
            self._go(self._thinking, place)
        else:
            self._go(self._text)
        return True

    def _thinking(self) -> bool:
        if self._is_fresh:
            self._rest = self._rest.lstrip(_BLANKS)
        found = self._rest.find(THINK[1])
        safe = self._rest[: found if found >= 0 else len(self._rest) if self._is_over else self._safe_length(THINK[1])]
        said = safe.rstrip(_BLANKS)
        if said:
            self._is_fresh = False
            self._say(Delta(reasoning=said))
        if found >= 0:
            self._go(self._text, found + len(THINK[1]), follows=True)
            return True
        self._rest = self._rest[len(said) :]
        if self._is_over:
            self._rest = ""
        return False

    def _text(self) -> bool:
        form = self._form
        num_blanks = self._num_blanks if self._is_fresh else 0
        if self._follows and self._is_fresh:
            self._rest, num_blanks = self._rest[num_blanks:], 0
        if num_blanks == len(self._rest) and not self._is_over:
            return False  # blanks before calls are no text
        if form is None or (form.is_opening and not (self._is_fresh and self._num_calls == 0)):
            self._take_text(len(self._rest))
            return False
        found = num_blanks if form.is_opening else self._rest.find(form.trigger)
        if form.is_opening:
            if not self._rest.startswith(form.trigger, num_blanks):
                self._take_text(len(self._rest))
                return False
        elif found < 0:
            safe = len(self._rest) if self._is_over else self._safe_length(form.trigger)
            if safe > num_blanks or self._is_over:
                self._take_text(safe)
            return False
        if found > num_blanks:
            self._take_text(found)
        self._head = form.begin + form.open
        self._go(self._call)
        return True

    def _call(self) -> bool:
        """From the trigger to the arguments: a call as soon as the name stands, and an object begins."""
        assert self._form is not None
        begin = _follow(self._head, self._rest)
        place = begin
        if begin is not None and begin >= 0:
            match = _NAME.match(self._rest, begin)
            assert match is not None
            end = match.end()
            place = None if end == len(self._rest) else _follow(self._form.middle, self._rest, end) if end > begin else -1
            if end - begin > _MAX_NAME:
                place = -1
            if place is not None and place >= 0:
                place = _follow("{", self._rest, place)
                if place is not None and place >= 0:
                    self._say(Delta(tool_calls=(ToolCallDelta(index=self._num_calls, id=self._new_id(), name=match[0]),)))
                    self._num_calls += 1
                    self._depth, self._in_string, self._is_escaped = 0, False, False
                    self._go(self._arguments, place - 1)
                    return True
        if place is None and not self._is_over:
            return False
        if place is None and self._is_cut and not self._form.is_opening:
            self._rest = ""
            return False
        self._step = self._text
        self._take_text(len(self._rest) if self._form.is_opening else self._num_blanks + 1)  # calls may begin one character later
        return True

    def _arguments(self) -> bool:
        place = 0
        for place, char in enumerate(self._rest, 1):  # noqa: B007 - read behind the loop
            if self._in_string:
                if self._is_escaped:
                    self._is_escaped = False
                elif char == "\\":
                    self._is_escaped = True
                elif char == '"':
                    self._in_string = False
            elif char == '"':
                self._in_string = True
            elif char in "{[":
                self._depth += 1
            elif char in "]}":
                self._depth -= 1
                if not self._depth:
                    break
        if place:
            self._say(Delta(tool_calls=(ToolCallDelta(index=self._num_calls - 1, arguments=self._rest[:place]),)))
        self._rest = self._rest[place:]
        if self._depth or not place:
            return False
        self._step = self._after
        return True

    def _after(self) -> bool:
        """Behind the arguments: another call, the end of the calls, or text."""
        form = self._form
        assert form is not None
        closed = _follow(form.close, self._rest)
        if closed is not None and closed >= 0:
            another = _follow(form.separator + form.open, self._rest, closed)
            end = _follow(form.end, self._rest, closed) if form.end else -1
            if another is not None and another >= 0:
                self._head = form.separator + form.open
                self._go(self._call, closed)
                return True
            if (another is None or end is None) and not self._is_over:
                return False
            self._go(self._text, len(self._rest) if another is None or end is None else max(closed, end), follows=True)
        elif closed is None and not self._is_over:
            return False
        else:
            self._go(self._text, len(self._rest) if closed is None else 0, follows=True)
        return True

    def _go(self, step: Callable[[], bool], place: int = 0, *, follows: bool = False) -> None:
        """Past `place`, to another part of the answer."""
        self._rest = self._rest[place:]
        self._step = step
        self._is_fresh = True
        self._follows = self._follows or follows

    @property
    def _num_blanks(self) -> int:
        """With which the rest begins."""
        return len(self._rest) - len(self._rest.lstrip(_BLANKS))

    def _safe_length(self, mark: str) -> int:
        """How much of the rest cannot be the beginning of the mark."""
        for length in range(min(len(mark) - 1, len(self._rest)), 0, -1):
            if self._rest.endswith(mark[:length]):
                return len(self._rest) - length
        return len(self._rest)

    def _take_text(self, length: int) -> None:
        if length:
            self._is_fresh = False
            self._say(Delta(text=self._rest[:length]))
            self._rest = self._rest[length:]

    def _say(self, piece: Delta) -> None:
        """Neighbours of one kind become one."""
        last = self._pieces[-1] if self._pieces else None
        if last is not None and last.text and piece.text:
            self._pieces[-1] = replace(last, text=last.text + piece.text)
        elif last is not None and last.reasoning and piece.reasoning:
            self._pieces[-1] = replace(last, reasoning=last.reasoning + piece.reasoning)
        else:
            self._pieces.append(piece)


def _follow(literal: str, text: str, place: int = 0) -> int | None:
    """Where the literal ends that stands in the text at `place`, blanks apart; None: the text ends before; -1: it is not there."""
    for char in literal:
        if char in _BLANKS:
            continue
        while place < len(text) and text[place] in _BLANKS:
            place += 1
        if place == len(text):
            return None
        if text[place] != char:
            return -1
        place += 1
    return place


async def parsed(events: AsyncIterator[Event], parser: AnswerParser) -> AsyncGenerator[Event, None]:
    """The same events, with calls and reasoning out of their text. Token ids and log-probabilities stay where they were."""
    async with closing(events) as raw:
        async for event in raw:
            if isinstance(event, Finished):
                for piece in parser.flush(is_cut=event.finish_reason == "length"):
                    yield piece
                yield event
                return
            pieces = parser.push(event.text) or [Delta()]
            yield replace(pieces[0], token_ids=event.token_ids, logprobs=event.logprobs, step_id=event.step_id)
            for piece in pieces[1:]:
                yield piece
