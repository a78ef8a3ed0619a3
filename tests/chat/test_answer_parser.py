"""The parser of answers: what it makes of each format, and that no split of a stream changes it."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tripod.chat.answer_parser import AnswerParser
from tripod.messages import ToolCall
from tripod.text.tool_format import TOOL_FORMATS, ToolFormat
from tripod.trace import Delta

Parts = list[tuple[str, str, str]]  # kind, name, text; neighbours of one kind joined

# Written out from each vendor's documentation: two calls of get_weather, then one of now.
HERMES = (
    '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Bern"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
)
MISTRAL = '[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Bern"}}, {"name": "now", "arguments": {}}]'
MISTRAL_ARGS = '[TOOL_CALLS]get_weather[ARGS]{"city": "Bern"}[TOOL_CALLS]now[ARGS]{}'
LLAMA = '{"name": "get_weather", "parameters": {"city": "Bern"}}; {"name": "now", "parameters": {}}'
WRITTEN = {"hermes": HERMES, "mistral": MISTRAL, "mistral-args": MISTRAL_ARGS, "llama": LLAMA}
CALLS = [("call", "get_weather", '{"city": "Bern"}'), ("call", "now", "{}")]


def parts(form: ToolFormat | None, pieces: list[str], *, reasons: bool = False, is_reasoning: bool = False) -> Parts:
    numbers = itertools.count()
    parser = AnswerParser(form, reasons=reasons, is_reasoning=is_reasoning, new_id=lambda: f"id{next(numbers)}")
    deltas = [delta for piece in pieces for delta in parser.push(piece)] + parser.flush()
    found: Parts = []
    for delta in deltas:
        assert sum(map(bool, (delta.text, delta.reasoning, delta.tool_calls))) == 1, "one kind in each delta, and no empty one"
        for kind, text in (("text", delta.text), ("reasoning", delta.reasoning)):
            if text and found and found[-1][0] == kind:
                found[-1] = (kind, "", found[-1][2] + text)
            elif text:
                found.append((kind, "", text))
        _add_call(found, delta)
    return found


def _add_call(found: Parts, delta: Delta) -> None:
    for piece in delta.tool_calls:
        if piece.name:
            assert piece.id == f"id{piece.index}"
            assert piece.index == sum(kind == "call" for kind, _, _ in found)
            found.append(("call", piece.name, piece.arguments))
        else:
            assert found[-1][0] == "call", "arguments follow their own name"
            found[-1] = ("call", found[-1][1], found[-1][2] + piece.arguments)


@pytest.mark.parametrize("name", TOOL_FORMATS)
def test_calls_as_the_vendor_writes_them_are_read(name: str) -> None:
    assert parts(TOOL_FORMATS[name], [WRITTEN[name]]) == CALLS


@pytest.mark.parametrize("name", TOOL_FORMATS)
def test_a_format_writes_what_the_vendor_writes(name: str) -> None:
    calls = [ToolCall("a", "get_weather", '{"city": "Bern"}'), ToolCall("b", "now", "{}")]
    assert TOOL_FORMATS[name].write(calls) == WRITTEN[name]


@pytest.mark.parametrize("name", [name for name in TOOL_FORMATS if name != "llama"])
def test_text_stands_before_calls_and_blanks_alone_do_not(name: str) -> None:
    assert parts(TOOL_FORMATS[name], ["I look.\n" + WRITTEN[name]]) == [("text", "", "I look.\n"), *CALLS]
    assert parts(TOOL_FORMATS[name], ["\n\n" + WRITTEN[name] + "\n"]) == CALLS
    assert parts(TOOL_FORMATS[name], [WRITTEN[name] + "\nDone."]) == [*CALLS, ("text", "", "Done.")]


def test_llama_calls_only_where_the_answer_begins_so() -> None:
    text = "See " + LLAMA
    assert parts(TOOL_FORMATS["llama"], [text]) == [("text", "", text)]
    assert parts(TOOL_FORMATS["llama"], ['{"colour": "red"}']) == [("text", "", '{"colour": "red"}')]


def test_blanks_other_than_the_usual_are_forgiven() -> None:
    assert parts(TOOL_FORMATS["hermes"], ['<tool_call>{"name":"now",\n "arguments":{"a": 1}}</tool_call>']) == [("call", "now", '{"a": 1}')]
    assert parts(TOOL_FORMATS["mistral"], ['[TOOL_CALLS][\n{"name":"now","arguments":{}}\n]']) == [("call", "now", "{}")]


def test_brackets_and_quotes_inside_strings_end_nothing() -> None:
    arguments = json.dumps({"a": '}"]{\\', "b": [{"c": "</tool_call>"}]})
    assert parts(TOOL_FORMATS["hermes"], [TOOL_FORMATS["hermes"].write([ToolCall("", "f", arguments)])]) == [("call", "f", arguments)]


@pytest.mark.parametrize(
    "text",
    [
        "a < b and <tool",
        "<tool_call> is what I would write",
        '<tool_call>\n{"name": "f", "arguments": 3}',
        '<tool_call>\n{"name": "", "arguments": {}}',
        '<tool_call>\n{"name": "f", "argu',
        "  \n",
        "",
    ],
)
def test_what_is_no_call_is_text_and_nothing_of_it_is_lost(text: str) -> None:
    assert parts(TOOL_FORMATS["hermes"], [text]) == ([("text", "", text)] if text else [])


def test_a_call_may_begin_inside_what_looked_like_one() -> None:
    assert parts(TOOL_FORMATS["hermes"], ["<tool_call>x" + HERMES]) == [("text", "", "<tool_call>x"), *CALLS]


def test_a_call_that_is_cut_keeps_the_arguments_that_came() -> None:
    cut = HERMES[: HERMES.index("Bern") + 2]
    assert parts(TOOL_FORMATS["hermes"], [cut]) == [("call", "get_weather", '{"city": "Be')]


@pytest.mark.parametrize("name", [name for name in TOOL_FORMATS if name != "llama"])  # whose calls begin as any JSON does
def test_a_call_that_is_cut_before_its_name_stands_is_no_text(name: str) -> None:
    form, written = TOOL_FORMATS[name], WRITTEN[name]
    for end in range(written.index(form.trigger) + len(form.trigger), written.index("get_weather") + 3):
        parser = AnswerParser(form)
        assert parser.push("Let me look.\n" + written[:end]) + parser.flush(is_cut=True) == [Delta(text="Let me look.\n")]
    ended = AnswerParser(form)
    found = ended.push(form.trigger) + ended.flush()  # the model stopped there: that is what it said
    assert "".join(delta.text for delta in found) == form.trigger


def test_reasoning_stands_before_the_answer_and_calls_in_it_are_thoughts() -> None:
    answer = "<think>\nShould I <tool_call>?\n</think>\n\n" + HERMES
    assert parts(TOOL_FORMATS["hermes"], [answer], reasons=True) == [("reasoning", "", "Should I <tool_call>?"), *CALLS]
    assert parts(None, ["<think>so</think>Yes <think>"], reasons=True) == [("reasoning", "", "so"), ("text", "", "Yes <think>")]
    assert parts(None, ["so</think>\nYes"], reasons=True, is_reasoning=True) == [("reasoning", "", "so"), ("text", "", "Yes")]
    assert parts(None, ["<think>never done </th"], reasons=True) == [("reasoning", "", "never done </th")]
    assert parts(None, ["<b>no thought</b>"], reasons=True) == [("text", "", "<b>no thought</b>")]


FRAGMENTS = [
    *WRITTEN.values(),
    *(
        "<tool_call>",
        "</tool_call>",
        "<tool_call>\n{",
        '{"name": "f", "arguments": ',
        '{"name": "g", "parameters": {',
        "[TOOL_CALLS]",
        "[ARGS]",
    ),
    *("[TOOL_CALLS] [", "<think>", "</think>", "]", "}", "; ", ", ", "\n", " ", '"', "\\", "x", "Ünïcode ", "<", "[", "{"),
]


@settings(max_examples=600, deadline=None)
@given(
    form=st.sampled_from([*TOOL_FORMATS.values(), None]),
    fragments=st.lists(st.sampled_from(FRAGMENTS), max_size=7),
    mode=st.sampled_from([(False, False), (True, False), (True, True)]),
    cuts=st.lists(st.floats(0.0, 1.0), max_size=6),
)
def test_the_pieces_of_a_stream_add_up_to_the_whole_wherever_it_is_split(
    form: ToolFormat | None, fragments: list[str], mode: tuple[bool, bool], cuts: list[float]
) -> None:
    text = "".join(fragments)
    places = sorted({round(cut * len(text)) for cut in cuts})
    pieces = [text[begin:end] for begin, end in zip([0, *places], [*places, len(text)], strict=True)]
    reasons, is_reasoning = mode
    whole = parts(form, [text], reasons=reasons, is_reasoning=is_reasoning)
    assert parts(form, pieces, reasons=reasons, is_reasoning=is_reasoning) == whole
    assert parts(form, list(text), reasons=reasons, is_reasoning=is_reasoning) == whole


@pytest.mark.parametrize("name", TOOL_FORMATS)
def test_every_split_in_two_of_an_answer_with_calls_gives_the_calls(name: str) -> None:
    answer = "<think>a\n</think>\n" + WRITTEN[name]
    for place in range(len(answer) + 1):
        found = parts(TOOL_FORMATS[name], [answer[:place], answer[place:]], reasons=True)
        assert found == [("reasoning", "", "a"), *CALLS], place


@settings(max_examples=200, deadline=None)
@given(text=st.text(alphabet='<tolca_>[]{}"nameargs: \n', max_size=60), form=st.sampled_from(list(TOOL_FORMATS.values())))
def test_text_without_calls_comes_out_as_it_went_in(text: str, form: ToolFormat) -> None:
    found = parts(form, list(text))
    if not any(kind == "call" for kind, _, _ in found):
        assert "".join(part for _, _, part in found) == text
