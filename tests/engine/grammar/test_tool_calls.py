"""Which answers the rules for tool calls allow, format by format; what is written are the vendors' own forms."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chat.test_answer_parser import WRITTEN
from tripod.engine.grammar.compiler import GrammarCompiler
from tripod.engine.grammar.refusal import UnsupportedSchemaError
from tripod.errors import EngineError, RequestError
from tripod.text.byte_level import VOCAB_SIZE, write_byte_tokenizer
from tripod.text.load_tokenizer import load_tokenizer
from tripod.text.tokenizer import Tokenizer
from tripod.text.tool_format import TOOL_FORMATS, CallRules

TOOLS = {
    "get_weather": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"], "additionalProperties": False},
    "now": {"type": "object", "properties": {}, "additionalProperties": False},
}


@pytest.fixture(scope="module")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GrammarCompiler]:
    folder = tmp_path_factory.mktemp("bytes")
    write_byte_tokenizer(folder)
    compiler = GrammarCompiler(load_tokenizer(folder), VOCAB_SIZE)
    yield compiler
    compiler.close()


def allowed(compiler: GrammarCompiler, answer: str, name: str = "hermes", **fields: Any) -> str:
    """ "complete", "begun", or what could not follow."""
    matcher = compiler.matcher_now(CallRules(format=TOOL_FORMATS[name], **{"tools": TOOLS, **fields}).grammar())
    content = answer.encode()
    for place, byte in enumerate(content):
        try:
            matcher.accept(byte)
        except EngineError:
            return f"not {content[place:].decode('utf-8', 'replace')[:8]!r}"
    return "complete" if matcher.is_complete else "begun"


@pytest.mark.parametrize("name", TOOL_FORMATS)
def test_calls_in_the_words_of_the_vendor_are_allowed_and_end_the_answer(compiler: GrammarCompiler, name: str) -> None:
    assert allowed(compiler, WRITTEN[name], name) == "complete"
    assert allowed(compiler, WRITTEN[name], name, is_free=False) == "complete"
    assert allowed(compiler, WRITTEN[name] + "x", name) == "not 'x'"


@pytest.mark.parametrize("name", TOOL_FORMATS)
def test_auto_leaves_text_free_and_required_does_not(compiler: GrammarCompiler, name: str) -> None:
    for text in ("", "It is warm.\n", 'a < b, [x], "y"'):
        assert allowed(compiler, text, name) == "complete"
        assert allowed(compiler, text, name, is_free=False) != "complete"


@pytest.mark.parametrize("name", [name for name in TOOL_FORMATS if name != "llama"])
def test_text_may_stand_before_calls_and_the_trigger_binds(compiler: GrammarCompiler, name: str) -> None:
    trigger = TOOL_FORMATS[name].trigger
    assert allowed(compiler, "I look. " + WRITTEN[name], name) == "complete"
    assert allowed(compiler, f"I look. {trigger}?", name) == "not '?'"


def test_an_answer_that_begins_with_a_brace_is_a_call_of_llama(compiler: GrammarCompiler) -> None:
    assert allowed(compiler, '{"city"', "llama") == "not 'city\"'"
    assert allowed(compiler, 'See {"city"', "llama") == "complete"


def test_arguments_keep_to_the_schema_of_their_own_tool(compiler: GrammarCompiler) -> None:
    form = TOOL_FORMATS["hermes"]
    assert allowed(compiler, form.open + "now" + form.middle + '{"city"') == "not '\"city\"'"
    assert allowed(compiler, form.open + "get_weather" + form.middle + "{}") == "not '}'"
    assert allowed(compiler, form.open + "get_time") == "not 'time'"


def test_a_single_call_is_the_last(compiler: GrammarCompiler) -> None:
    one = WRITTEN["hermes"].partition("</tool_call>\n")[0] + "</tool_call>"
    assert allowed(compiler, one, is_single=True) == "complete"
    assert allowed(compiler, WRITTEN["hermes"], is_single=True).startswith("not '\\n<tool_c")


def test_thoughts_come_first_and_may_hold_anything(compiler: GrammarCompiler) -> None:
    thought = "<think>I could <tool_call>!</think>\n\n"
    assert allowed(compiler, thought + WRITTEN["hermes"], reasons=True, is_free=False) == "complete"
    assert allowed(compiler, thought.removeprefix("<think>") + WRITTEN["hermes"], reasons=True, is_reasoning=True) == "complete"
    assert allowed(compiler, "<think>I could", reasons=True) == "begun"
    assert allowed(compiler, thought + "No.", reasons=True) == "complete"
    assert allowed(compiler, thought, is_free=False).startswith("not 'hink")


def test_a_text_with_a_schema_may_stand_instead(compiler: GrammarCompiler) -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "additionalProperties": False}
    for name in TOOL_FORMATS:
        assert allowed(compiler, '{"ok": true}', name, text=schema) == "complete"
        assert allowed(compiler, WRITTEN[name], name, text=schema) == "complete"
        assert allowed(compiler, "Yes", name, text=schema) == "not 'Yes'"


def test_a_schema_that_cannot_be_enforced_is_refused_with_its_tool(compiler: GrammarCompiler) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}
    with pytest.raises(UnsupportedSchemaError, match="the tool 'f': the JSON schema's keyword 'uniqueItems' at #/properties/a"):
        allowed(compiler, "", tools={"f": schema})
    with pytest.raises(RequestError, match=r"the tool 'f': \$\.type of the JSON schema is not valid"):
        allowed(compiler, "", tools={"f": {"type": "objekt"}})


def special_tokenizer(folder: Path) -> Tokenizer:
    """One whose vocabulary holds Mistral's marks as special tokens, as Mistral's own does."""
    write_byte_tokenizer(folder)
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    like = content["added_tokens"][0]
    content["added_tokens"] += [{**like, "id": VOCAB_SIZE + i, "content": mark} for i, mark in enumerate(("[TOOL_CALLS]", "[ARGS]"))]
    file.write_text(json.dumps(content))
    return load_tokenizer(folder)


def test_marks_that_are_special_tokens_are_written_as_these(tmp_path: Path) -> None:
    tokenizer = special_tokenizer(tmp_path)
    compiler = GrammarCompiler(tokenizer, VOCAB_SIZE + 2)
    matcher = compiler.matcher_now(CallRules(format=TOOL_FORMATS["mistral-args"], tools=TOOLS).grammar())
    ids = tokenizer.encode("I look." + WRITTEN["mistral-args"], add_special_tokens=False)
    assert ids.count(VOCAB_SIZE) == ids.count(VOCAB_SIZE + 1) == 2
    for token_id in ids:
        matcher.accept(token_id)
    assert matcher.is_complete
    compiler.close()
