"""Tokens of one request to events: stop strings across token borders, held-back text, what is counted and what is shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tripod.engine.output import RequestOutput
from tripod.engine.policy.config import PolicyConfig
from tripod.engine.policy.policy import Policy
from tripod.engine.policy.request import Request
from tripod.messages import FinishReason
from tripod.sampling import SamplingParams
from tripod.text.tokenizer import Tokenizer
from tripod.trace import Delta, Event, Finished

CONFIG = PolicyConfig(num_blocks=99, block_size=16, max_context=1000, max_batch_tokens=99, max_num_requests=1, max_num_waiting=1)


def play(tokenizer: Tokenizer, token_ids: Sequence[int], sampling: SamplingParams, *, stop_ids: Sequence[int] = ()) -> list[Event]:
    """The events of a request whose model says `token_ids`, one a step, as the engine makes them; aborted where they run out."""
    request = Request(id="r", prompt_ids=(65,), sampling=sampling, max_tokens=sampling.max_tokens or 99, stop_ids=frozenset(stop_ids))
    output = RequestOutput(request, tokenizer, model="m", arrived_s=1.0)
    policy = Policy(CONFIG)
    policy.add(request, 0.0)
    events: list[Event] = []
    reason: FinishReason | None = None
    for token_id in token_ids:
        schedule = policy.plan(0.0)
        policy.commit(schedule, {request: [token_id]}, 0.0)
        delta, stopped = output.push((), now=2.0)
        events.append(delta)
        reason = stopped or request.finish_reason
        if reason is not None:
            break
    return [*events, *output.finish(reason or "abort")]


def text_of(events: Sequence[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Delta))


def tokens_of(events: Sequence[Event]) -> bytes:
    return bytes(token_id for event in events if isinstance(event, Delta) for token_id in event.token_ids)


def finish_of(events: Sequence[Event]) -> Finished:
    assert sum(isinstance(event, Finished) for event in events) == 1
    assert isinstance(events[-1], Finished)
    return events[-1]


def test_a_stop_string_across_token_borders_cuts_the_text_and_counts_all_tokens(tokenizer: Tokenizer) -> None:
    events = play(tokenizer, b"one END two", SamplingParams(stop=("END", "unseen")))
    assert text_of(events) == "one "
    assert tokens_of(events) == b"one END"
    finished = finish_of(events)
    assert (finished.finish_reason, finished.stop, finished.usage.completion_tokens) == ("stop", "END", 7)


def test_text_that_only_began_like_a_stop_string_is_shown_in_the_end(tokenizer: Tokenizer) -> None:
    events = play(tokenizer, b"one EN", SamplingParams(stop=("END",), max_tokens=6))
    assert [event.text for event in events if isinstance(event, Delta)] == ["o", "n", "e", " ", "", "EN"]
    assert (finish_of(events).finish_reason, finish_of(events).stop) == ("length", None)


def test_an_aborted_request_shows_what_was_held_back(tokenizer: Tokenizer) -> None:
    events = play(tokenizer, b"one EN", SamplingParams(stop=("END",)))
    assert text_of(events) == "one EN"
    assert finish_of(events).finish_reason == "abort"


def test_a_stop_string_in_the_last_token_is_a_stop_not_a_length(tokenizer: Tokenizer) -> None:
    events = play(tokenizer, b"x END", SamplingParams(stop=("END",), max_tokens=5))
    assert (text_of(events), finish_of(events).finish_reason) == ("x ", "stop")


@pytest.mark.parametrize("min_tokens", [2, 3])
def test_stop_strings_count_only_after_min_tokens(tokenizer: Tokenizer, min_tokens: int) -> None:
    events = play(tokenizer, b"a.b.c.d", SamplingParams(stop=(".",), min_tokens=min_tokens))
    assert text_of(events) == "a.b"
    assert tokens_of(events) == b"a.b."


def test_the_ending_token_is_counted_and_not_shown_unless_it_is_ignored(tokenizer: Tokenizer) -> None:
    events = play(tokenizer, b"ab!", SamplingParams(), stop_ids=b"!")
    assert (text_of(events), tokens_of(events), finish_of(events).usage.completion_tokens) == ("ab", b"ab!", 3)
    assert text_of(play(tokenizer, b"ab!", SamplingParams(max_tokens=3))) == "ab!"


def test_a_character_is_never_split_and_an_incomplete_one_marked_once(tokenizer: Tokenizer) -> None:
    events = play(tokenizer, "é€".encode(), SamplingParams(max_tokens=5))
    assert [event.text for event in events if isinstance(event, Delta)] == ["", "é", "", "", "€"]
    assert text_of(play(tokenizer, "é€".encode()[:4], SamplingParams(max_tokens=4))) == "é\ufffd"


class OpensWithoutSpace:
    """A tokenizer that takes one space off the opening of a text, as SentencePiece does."""

    def __init__(self, inner: Tokenizer) -> None:
        self._inner = inner

    def opening_bytes(self, token_id: int) -> tuple[bytes, bool]:
        return self._inner.token_bytes(token_id).removeprefix(b" "), True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def test_an_answer_that_goes_on_inside_a_text_keeps_its_first_space(tokenizer: Tokenizer) -> None:
    assert text_of(play(OpensWithoutSpace(tokenizer), b" b", SamplingParams(max_tokens=2))) == " b"  # type: ignore[arg-type]


def test_prompt_scores_stand_at_the_place_of_their_tokens(tokenizer: Tokenizer) -> None:
    request = Request(id="r", prompt_ids=tuple(b"abcde"), sampling=SamplingParams(), max_tokens=0, score_from=2)
    output = RequestOutput(request, tokenizer, model="m", arrived_s=0.0)
    output.add_prompt_scores([(-1.0, []), (-2.0, [(120, -0.5)])])
    output.add_prompt_scores([(-3.0, [])])
    entries = finish_of(output.finish("length")).prompt_logprobs
    assert entries[:2] == (None, None)
    assert [(entry.token, entry.logprob) for entry in entries if entry is not None] == [("c", -1.0), ("d", -2.0), ("e", -3.0)]
    assert entries[3] is not None
    assert [(top.token, top.logprob) for top in entries[3].top] == [("x", -0.5)]


@pytest.mark.parametrize("max_tokens", [1, 7, 40])
@given(data=st.data())
def test_whatever_is_said_tokens_are_complete_and_text_is_cut_at_the_first_stop_string(
    tokenizer: Tokenizer, max_tokens: int, data: st.DataObject
) -> None:
    said = data.draw(st.text("ab€", min_size=max_tokens, max_size=60)).encode()
    stop = tuple(data.draw(st.lists(st.text("ab€", min_size=1, max_size=3), max_size=3)))
    events = play(tokenizer, said, SamplingParams(stop=stop, max_tokens=max_tokens))
    tokens, text, finished = tokens_of(events), text_of(events), finish_of(events)
    assert said.startswith(tokens)
    assert finished.usage.completion_tokens == len(tokens)
    whole = tokens.decode("utf-8", "replace")
    cuts = [whole.index(s) for s in stop if s in whole]
    if finished.stop is None:
        assert not cuts
        assert text == whole
        assert len(tokens) == max_tokens
    else:
        assert finished.finish_reason == "stop"
        assert text == whole[: min(cuts)]
