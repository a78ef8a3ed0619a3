"""Grammars made ready for one tokenizer: off the step loop, each once, the last ones kept."""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, cast

from tripod.engine.grammar.json_schema import check_schema, rewrite
from tripod.engine.grammar.matcher import Matcher
from tripod.engine.grammar.negation import escaped
from tripod.engine.grammar.refusal import UnsupportedSchemaError, first_paragraph, refusal_of
from tripod.engine.grammar.spelling import Spelling
from tripod.engine.grammar.tool_calls import lark
from tripod.errors import EngineError, MissingExtraError, RequestError
from tripod.sampling import Grammar
from tripod.text.tokenizer import Tokenizer
from tripod.text.tool_format import CallRules

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

_NUM_KEPT = 256  # compiled grammars
_NUM_THREADS = 2  # that compile; the others wait, and no step does
_STRICT = {"lenient": False, "coerce_one_of": False}
_WHITESPACE = r"[\x20\x0A\x0D\x09]{1,32}"  # between the tokens of JSON; without a bound, a model can write blanks until it is cut
# What one mask may cost, about 10 ms, and one matcher hold, about 100 MB; a grammar that needs more is ended by an error.
_STEP_LEXER_FUEL, _STEP_MAX_ITEMS, _MAX_LEXER_STATES = 100_000, 50_000, 50_000


class GrammarCompiler:
    """Compiles and keeps. Its methods may be called from any thread and event loop."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        """
        Args:
            tokenizer: whose tokens spell the text.
            vocab_size: the model's, which may have more rows than the tokenizer has tokens.
        """
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._lock = threading.Lock()
        self._compiled: OrderedDict[Grammar, Future[LLMatcher]] = OrderedDict()  # or the refusal; the least recently used first
        self._executor = ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="tripod-grammar")  # starts no thread before it is used
        self._spelling: LLTokenizer | None = None
        self._spelling_lock = threading.Lock()

    async def matcher(self, grammar: Grammar) -> Matcher:
        """A matcher at the beginning of a text. The event loop and the step loop go on while a new grammar is compiled.

        Raises:
            RequestError: the grammar has a mistake, or asks for what cannot be enforced (then `UnsupportedSchemaError` for a JSON
                schema); or the packages of the extra "grammar" are not installed.
            EngineError: the compiler is closed.
        """
        future = self._future(grammar)
        try:
            prototype = await asyncio.shield(asyncio.wrap_future(future))  # others may wait for it: leaving early does not cancel it
        except asyncio.CancelledError:
            if future.cancelled():
                raise EngineError("the engine was closed while a grammar was compiled") from None
            raise
        return Matcher(prototype.deep_copy(), self._tokenizer.eos_ids)

    def matcher_now(self, grammar: Grammar) -> Matcher:
        """The same for a caller that may be kept waiting."""
        return Matcher(self._future(grammar).result().deep_copy(), self._tokenizer.eos_ids)

    def _future(self, grammar: Grammar) -> Future[LLMatcher]:
        if not self._tokenizer.eos_ids:
            raise RequestError("this model's tokenizer names no end-of-sequence token, so a grammar could not end a text", param="grammar")
        with self._lock:
            future = self._compiled.get(grammar)
            if future is None:
                try:
                    future = self._executor.submit(self._compile, grammar)
                except RuntimeError:
                    raise EngineError("the engine is closed; open another") from None
                self._compiled[grammar] = future
                if len(self._compiled) > _NUM_KEPT:
                    self._compiled.popitem(last=False)
            self._compiled.move_to_end(grammar)
            return future

    def close(self) -> None:
        """Compile nothing more. What is under way ends by itself; whoever waits for what has not begun sees it cancelled."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _compile(self, grammar: Grammar) -> LLMatcher:
        try:
            import llguidance
        except ImportError as error:
            raise RequestError(str(MissingExtraError("llguidance", "grammar", "structured output")), param="grammar") from error
        with self._spelling_lock:  # once; the second thread waits for it
            if self._spelling is None:
                spelling = cast("TokenizerWrapper", Spelling(self._tokenizer, self._vocab_size))
                self._spelling = llguidance.LLTokenizer(spelling, eos_token=sorted(self._tokenizer.eos_ids))
        limits = llguidance.LLParserLimits(
            step_lexer_fuel=_STEP_LEXER_FUEL, step_max_items=_STEP_MAX_ITEMS, max_lexer_states=_MAX_LEXER_STATES, verbose_errors=False
        )
        if grammar.kind == "json_schema":
            _, matcher = self._compile_schema(grammar.schema, _layout(grammar.is_compact), limits)
        elif grammar.kind == "tool_calls":
            matcher = self._compile_calls(CallRules.of(grammar), limits)
        else:
            matcher = self._compile_other(grammar, limits)
        first = matcher.deep_copy()
        first.compute_bitmask()
        if first.is_error():
            reason = first_paragraph(first.get_error()) or first.stop_reason()
            raise RequestError(f"the {grammar.kind} cannot begin any text ({reason}); it allows none, or is too complex", param="grammar")
        return matcher

    def _compile_other(self, grammar: Grammar, limits: LLParserLimits) -> LLMatcher:
        from llguidance import LLMatcher

        assert self._spelling is not None
        matcher = LLMatcher(self._spelling, _to_llguidance(grammar), log_level=0, limits=limits)
        if matcher.is_error():
            raise RequestError(f"the {grammar.kind} cannot be used: {first_paragraph(matcher.get_error())}", param="grammar")
        return matcher

    def _compile_calls(self, rules: CallRules, limits: LLParserLimits) -> LLMatcher:
        from llguidance import LLMatcher

        assert self._spelling is not None
        schemas = {name: self._spoken(f"the tool {name!r}", schema, limits) for name, schema in rules.tools.items()}
        text = None if rules.text is None else self._spoken("the text beside the tools", rules.text, limits)
        source = LLMatcher.grammar_from_lark(lark(rules, schemas, text, self._tokenizer))
        matcher = LLMatcher(self._spelling, source, log_level=0, limits=limits)
        if matcher.is_error():
            raise RequestError(f"the tools cannot be used together: {first_paragraph(matcher.get_error())}", param="grammar")
        return matcher

    def _spoken(self, what: str, schema: Any, limits: LLParserLimits) -> Any:
        """A schema that can stand inside another grammar, spelled as models are trained to: `{"a": 1, "b": [2, 3]}`."""
        layout = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
        try:
            enforced, _ = self._compile_schema(schema, layout, limits)
        except UnsupportedSchemaError as error:
            raise UnsupportedSchemaError(error.keyword, f"{what}: {error}") from error
        except RequestError as error:
            raise RequestError(f"{what}: {error}", param=error.param) from error
        return {**(enforced if isinstance(enforced, dict) else {}), "x-guidance": {**_STRICT, **layout}}

    def _compile_schema(self, schema: Any, layout: Mapping[str, Any], limits: LLParserLimits) -> tuple[Any, LLMatcher]:
        """The schema as it can be enforced, and a matcher for it."""
        from llguidance import LLMatcher

        assert self._spelling is not None
        try:
            check_schema(schema)
            enforced = rewrite(schema)
            matcher = LLMatcher(self._spelling, _schema_grammar(enforced, layout), log_level=0, limits=limits)
            error = refusal_of(matcher.get_error())
            if error is not None and error.keyword == "oneOf":
                try:
                    enforced = rewrite(schema, expand_one_of=True)
                except UnsupportedSchemaError as reason:
                    raise error from reason
                matcher = LLMatcher(self._spelling, _schema_grammar(enforced, layout), log_level=0, limits=limits)
                error = refusal_of(matcher.get_error())
        except MissingExtraError as missing:
            raise RequestError(str(missing), param="grammar") from missing
        except RecursionError as deep:
            raise RequestError("the JSON schema is nested too deeply", param="grammar") from deep
        except ValueError as wrong:  # such as a number beyond float64
            raise RequestError(f"the JSON schema cannot be used: {str(wrong)[:200]}", param="grammar") from wrong
        if error is not None:
            raise error
        return enforced, matcher


def _to_llguidance(grammar: Grammar) -> str:
    from llguidance import LLMatcher, grammar_from

    match grammar.kind:
        case "json_object":
            return _schema_grammar({"type": "object"}, _layout(grammar.is_compact))
        case "regex":
            return LLMatcher.grammar_from_regex(grammar.source)
        case "choice":
            # One expression, not one rule with as many alternatives: its masks do not grow with their number.
            return LLMatcher.grammar_from_regex("|".join(map(escaped, sorted(grammar.texts))))
        case "ebnf":
            try:
                return grammar_from("ebnf", grammar.source)
            except (ValueError, RecursionError) as error:
                raise RequestError(f"the ebnf cannot be used: {error}", param="grammar") from error
        case _:
            raise AssertionError(grammar.kind)


def _layout(is_compact: bool) -> dict[str, Any]:
    """Where blanks may stand in a JSON text."""
    blanks = {} if is_compact else {"whitespace_pattern": _WHITESPACE}
    return {"whitespace_flexible": not is_compact, **blanks, "item_separator": ",", "key_separator": ":"}


def _schema_grammar(schema: Any, layout: Mapping[str, Any]) -> str:
    from llguidance import LLMatcher

    if isinstance(schema, bool):  # which llguidance does not take at the root
        schema = {} if schema else {"enum": []}
    # Overrides win over "x-guidance" in the schema, which could ask to skip what cannot be enforced.
    return LLMatcher.grammar_from_json_schema(schema, overrides=cast(Any, {**_STRICT, **layout}))
