"""Grammars of every kind on tokenizers of every kind; compiled once, beside the event loop, and kept within bounds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tripod.engine.grammar import compiler as compiler_room
from tripod.engine.grammar.compiler import GrammarCompiler
from tripod.engine.grammar.matcher import Matcher
from tripod.engine.grammar.refusal import UnsupportedSchemaError
from tripod.engine.grammar.spelling import Spelling
from tripod.errors import EngineError, RequestError
from tripod.sampling import Grammar
from tripod.text.hf_tokenizer import HfTokenizer
from tripod.text.load_tokenizer import load_tokenizer
from tripod.text.sentencepiece_tokenizer import SentencePieceTokenizer
from tripod.text.tokenizer import Tokenizer

PADDING = 5  # rows of an embedding beyond the tokens


def compiled(tokenizer: Tokenizer, grammar: Grammar) -> Matcher:
    compiler = GrammarCompiler(tokenizer, tokenizer.vocab_size + PADDING)
    try:
        return asyncio.run(compiler.matcher(grammar))
    finally:
        compiler.close()


def stands(tokenizer: Tokenizer, matcher: Matcher, text: str) -> str:
    """What the grammar says of a text: "complete", "begun", or "broken"."""
    follower = matcher.fork()
    try:
        for token_id in tokenizer.encode(text, add_special_tokens=False):
            follower.accept(token_id)
    except EngineError:
        return "broken"
    return "complete" if follower.is_complete else "begun"


@pytest.mark.parametrize(
    ("grammar", "complete", "begun", "broken"),
    [
        (Grammar.json_schema({"type": "integer", "minimum": 3, "maximum": 19}), ["3", "12"], ["", "1"], ["2", "20", "x", "3.5"]),
        (Grammar.json_schema({"enum": ["é\n", None]}), ['"é\\n"', "null"], ['"é', "nul"], ["true", '"e']),
        (Grammar.json_schema({"required": ["a"]}, is_compact=True), ['{"a":[1,2]}', "null"], ['{"a":'], ['{"a": 1}', "[1, 2]", " 1"]),
        (Grammar.json_object(is_compact=True), ["{}", '{"a":[1,{"b":null}]}'], ["{"], ["{ ", '{"a" ']),
        (Grammar.json_object(), ["{}", '{"a": [1, {"b": null}]}'], ["{", '{"a"'], ["[]", "1", "{}}"]),
        (Grammar.regex("a(b|c)*d"), ["ad", "abcbd"], ["a", "abb"], ["b", "adx"]),
        (Grammar.choice(["yes", "yes, of course", 'n"o\\']), ["yes", "yes, of course", 'n"o\\'], ["y", "yes,"], ["no", "yes!"]),
        (Grammar.ebnf('start: "(" start ")" | "x"'), ["x", "((x))"], ["((", "((x"], [")", "(x))"]),
        (Grammar.ebnf('root ::= "a" root | "b"'), ["b", "aab"], ["aa"], ["c", "bb"]),
    ],
    ids=lambda value: value.kind if isinstance(value, Grammar) else None,
)
def test_a_grammar_of_each_kind_tells_whole_texts_from_beginnings_and_broken_ones(
    tokenizer: Tokenizer, grammar: Grammar, complete: list[str], begun: list[str], broken: list[str]
) -> None:
    matcher = compiled(tokenizer, grammar)
    assert {text: stands(tokenizer, matcher, text) for text in [*complete, *begun, *broken]} == {
        **dict.fromkeys(complete, "complete"),
        **dict.fromkeys(begun, "begun"),
        **dict.fromkeys(broken, "broken"),
    }


@pytest.mark.parametrize("file", ["pythia-20B_tokenizer.json", "gpt2.json", "mistral-v1.model", "stories260K"])
def test_the_tokens_of_every_kind_of_tokenizer_spell_the_text(shared_data: Path, tmp_path: Path, file: str) -> None:
    tokenizer = open_tokenizer(shared_data, file, tmp_path)
    matcher = compiled(tokenizer, Grammar.json_schema({"type": "object", "properties": {"ключ": {"type": "string"}}, "required": ["ключ"]}))
    text = '{"ключ": "naïve 😀 text"}'
    ids = Spelling(tokenizer, tokenizer.vocab_size)(text)
    assert b"".join(map(tokenizer.token_bytes, ids)).decode() == text
    for token_id in ids:
        assert not matcher.is_complete
        assert token_id in allowed(matcher)
        matcher.accept(token_id)
    assert matcher.is_complete
    assert matcher.is_over
    assert allowed(matcher) == tokenizer.eos_ids
    for special_id in tokenizer.special_ids - tokenizer.eos_ids:
        with pytest.raises(EngineError, match="grammar"):
            matcher.fork().accept(special_id)


def allowed(matcher: Matcher) -> set[int]:
    """The tokens that may come next, by a mask of their own."""
    bits = np.unpackbits(np.frombuffer(matcher.fork().inner.compute_bitmask(), dtype=np.uint8), bitorder="little")
    return set(np.flatnonzero(bits).tolist())


@pytest.mark.parametrize("file", ["pythia-20B_tokenizer.json", "mistral-v1.model", "stories260K"])
def test_a_forced_text_is_spelled_as_the_tokenizer_would_inside_a_text(shared_data: Path, tmp_path: Path, file: str) -> None:
    tokenizer = open_tokenizer(shared_data, file, tmp_path)
    spelling = Spelling(tokenizer, tokenizer.vocab_size)
    anchor = tokenizer.encode("\n", add_special_tokens=False)
    for text in ('{"name": ', "once upon a time", " the", "é"):
        assert [*anchor, *spelling(text)] == tokenizer.encode(f"\n{text}", add_special_tokens=False)
    for odd in ("é".encode()[:1], b"\n\n", b"a\xc3"):
        assert b"".join(map(tokenizer.token_bytes, spelling(odd))) == odd


def open_tokenizer(shared_data: Path, file: str, folder: Path) -> Tokenizer:
    if file == "stories260K":
        return load_tokenizer(shared_data / file)
    path = shared_data / "tokenizers" / file
    if path.suffix == ".model":
        return SentencePieceTokenizer.load(path)
    (folder / "tokenizer.json").write_bytes(path.read_bytes())
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>"}')
    return HfTokenizer.load(folder / "tokenizer.json")


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        (Grammar.regex("(?=a)b"), "regex cannot be used: .*look-around"),
        (Grammar.regex("[a"), "regex cannot be used: .*unclosed"),
        (Grammar.ebnf("start: foo"), "ebnf cannot be used: .*foo"),
        (Grammar.ebnf("root ::= ("), "ebnf cannot be used"),
        (Grammar.json_schema({"type": "strin"}), r"\$\.type of the JSON schema is not valid"),
        (Grammar.json_schema(False), "cannot be enforced: Unsatisfiable"),
    ],
)
def test_a_grammar_with_a_mistake_is_refused_with_the_reason(tokenizer: Tokenizer, grammar: Grammar, message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        compiled(tokenizer, grammar)
    assert caught.value.param == "grammar"
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize(
    ("schema", "keyword"),
    [
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"x-guidance": {"lenient": True}, "type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "string", "format": "iri"}, "format"),
        ({"type": "string", "pattern": "(?!a)b"}, "pattern"),
        ({"oneOf": [{"pattern": "a"}, {"pattern": "b"}]}, "oneOf"),
        ({"x-guidance": {"coerce_one_of": True}, "oneOf": [{"pattern": "a"}, {"pattern": "b"}]}, "oneOf"),
        ({"$ref": "http://localhost/else.json"}, "$ref"),
        ({"minProperties": 2, "properties": {"a": {}, "b": {}}, "required": ["a"]}, "minProperties"),
    ],
)
def test_what_of_a_schema_cannot_be_enforced_is_named(tokenizer: Tokenizer, schema: Any, keyword: str) -> None:
    with pytest.raises(UnsupportedSchemaError, match=f"keyword '{keyword.replace('$', '.')}'") as caught:
        compiled(tokenizer, Grammar.json_schema(schema))
    assert caught.value.keyword == keyword


class Counting(GrammarCompiler):
    """Counts what is compiled, and takes its time."""

    compilations = 0

    def _compile(self, grammar: Grammar) -> Any:
        self.compilations += 1
        time.sleep(0.05)
        return super()._compile(grammar)


def counting(tokenizer: Tokenizer, use: Any) -> Any:
    async def main() -> Any:
        compiler = Counting(tokenizer, tokenizer.vocab_size)
        try:
            return await use(compiler), compiler.compilations
        finally:
            compiler.close()

    return asyncio.run(main())


def test_one_grammar_is_compiled_once_for_all_who_ask(tokenizer: Tokenizer) -> None:
    async def use(compiler: GrammarCompiler) -> list[Matcher]:
        return list(await asyncio.gather(*(compiler.matcher(Grammar.regex("ab*")) for _ in range(5)), compiler.matcher(Grammar.regex("c"))))

    matchers, compilations = counting(tokenizer, use)
    assert compilations == 2
    matchers[0].accept(ord("a"))
    assert matchers[0].is_complete
    assert not matchers[1].is_complete  # each follows its own text


def test_the_event_loop_goes_on_while_a_grammar_is_compiled(tokenizer: Tokenizer) -> None:
    async def use(compiler: GrammarCompiler) -> int:
        task = asyncio.ensure_future(compiler.matcher(Grammar.regex("ab*")))
        ticks = 0
        while not task.done():
            await asyncio.sleep(0.002)
            ticks += 1
        return ticks

    ticks, _ = counting(tokenizer, use)
    assert ticks >= 5


def test_who_leaves_while_a_grammar_is_compiled_leaves_it_to_the_others(tokenizer: Tokenizer) -> None:
    async def use(compiler: GrammarCompiler) -> Matcher:
        first = asyncio.ensure_future(compiler.matcher(Grammar.regex("ab*")))
        second = asyncio.ensure_future(compiler.matcher(Grammar.regex("ab*")))
        await asyncio.sleep(0)
        first.cancel()
        return await second

    matcher, compilations = counting(tokenizer, use)
    assert compilations == 1
    assert not matcher.is_complete


def test_the_least_recently_used_grammar_is_forgotten_first(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler_room, "_NUM_KEPT", 2)

    async def use(compiler: GrammarCompiler) -> None:
        for pattern in ("a", "b", "a", "c", "a", "b"):  # c drives b out, b comes again
            await compiler.matcher(Grammar.regex(pattern))

    assert counting(tokenizer, use)[1] == 4


def test_a_closed_compiler_refuses_and_wakes_whoever_waits(tokenizer: Tokenizer) -> None:
    async def use(compiler: GrammarCompiler) -> list[object]:
        waiting: list[Coroutine[Any, Any, Matcher]] = [compiler.matcher(Grammar.regex(f"a{i}")) for i in range(4)]
        tasks = [asyncio.ensure_future(one) for one in waiting]
        await asyncio.sleep(0.01)
        compiler.close()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        with pytest.raises(EngineError, match="closed"):
            await compiler.matcher(Grammar.regex("new"))
        return list(ends)

    ends, _ = counting(tokenizer, use)
    assert [type(end) for end in ends] == [Matcher, Matcher, EngineError, EngineError]  # two threads compile at a time


def test_a_tokenizer_without_an_end_token_is_refused(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "eos_ids", frozenset())
    with pytest.raises(RequestError, match="no end-of-sequence token"):
        compiled(tokenizer, Grammar.regex("a"))
