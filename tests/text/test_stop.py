"""Stop strings across the borders of chunks: examples by hand, then the law against a search in the whole text."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from tripod.text.stop import StopStrings

LETTERS = st.text("ab\n", max_size=30)


def _whole(text: str, stop: tuple[str, ...]) -> tuple[str, str | None]:
    """The definition: look at every position of the whole text, shortest string first."""
    for position in range(len(text)):
        for string in sorted(stop, key=len):
            if text[position:].startswith(string):
                return text[:position], string
    return text, None


@given(LETTERS, st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=4), st.lists(st.integers(0, 30)))
def test_the_shown_text_ends_before_the_first_stop_string_whatever_the_chunks(text: str, stop: list[str], cuts: list[int]) -> None:
    borders = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    stopper = StopStrings(tuple(stop))
    shown, matched = "", None
    for begin, end in pairwise(borders):
        more, matched = stopper.push(text[begin:end])
        shown += more
        if matched is not None:
            break
    else:
        more, matched = stopper.flush()
        shown += more
    assert (shown, matched) == _whole(text, tuple(stop))


@given(LETTERS, st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=4))
def test_what_is_held_back_begins_a_stop_string(text: str, stop: list[str]) -> None:
    stopper = StopStrings(tuple(stop))
    num_shown = 0
    for num_pushed, char in enumerate(text, start=1):
        more, matched = stopper.push(char)
        if matched is not None:
            return
        num_shown += len(more)
        held = text[num_shown:num_pushed]
        assert held == "" or any(string.startswith(held) and string != held for string in stop)


def test_a_stop_string_is_found_across_three_pushes() -> None:
    stopper = StopStrings(("</s>",))
    assert stopper.push("The end<") == ("The end", None)
    assert stopper.push("/s") == ("", None)
    assert stopper.push("> more") == ("", "</s>")


def test_what_only_looked_like_a_stop_string_is_shown_when_it_is_none() -> None:
    stopper = StopStrings(("\n\n",))
    assert stopper.push("one\n") == ("one", None)
    assert stopper.push("two") == ("\ntwo", None)


def test_the_end_of_the_text_releases_what_was_held() -> None:
    stopper = StopStrings(("STOP",))
    assert stopper.push("a STO") == ("a ", None)
    assert stopper.flush() == ("STO", None)


def test_an_earlier_string_still_incomplete_wins_over_a_later_complete_one() -> None:
    stopper = StopStrings(("abcd", "bc"))
    assert stopper.push("abc") == ("", None)  # "bc" stands at 1, but "abcd" may stand at 0
    assert stopper.push("d") == ("", "abcd")


def test_a_later_complete_string_wins_once_the_earlier_one_fails() -> None:
    stopper = StopStrings(("abcd", "bc"))
    assert stopper.push("abc") == ("", None)
    assert stopper.push("x") == ("a", "bc")


def test_at_the_end_the_complete_string_wins_over_the_incomplete_one() -> None:
    stopper = StopStrings(("abcd", "bc"))
    stopper.push("abc")
    assert stopper.flush() == ("a", "bc")


def test_of_two_strings_that_begin_together_the_one_complete_first_is_named() -> None:
    assert StopStrings(("abc", "ab")).push("xabc") == ("x", "ab")


def test_nothing_is_shown_after_a_match() -> None:
    stopper = StopStrings(("end",))
    assert stopper.push("the end") == ("the ", "end")
    assert stopper.push("of it") == ("", "end")
    assert stopper.flush() == ("", "end")


def test_without_stop_strings_everything_passes_at_once() -> None:
    assert StopStrings(()).push("anything") == ("anything", None)
