"""Grammars in the engine. The judge of JSON is `jsonschema`; what was cut is told from what is complete by the grammar itself."""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from tests.engine.conftest import PROMPTS, plain_logits
from tests.engine.test_engine import ROOMY, TIGHT, TIGHT_AND_CHUNKED, with_engine
from tripod.engine.engine import Engine, EngineConfig
from tripod.engine.grammar import compiler as compiler_room
from tripod.engine.grammar.compiler import GrammarCompiler
from tripod.engine.grammar.refusal import UnsupportedSchemaError
from tripod.engine.replay import LoggedRun, replay
from tripod.errors import ConfigError, EngineError, NotFoundError
from tripod.messages import Reply
from tripod.models.language_model import LanguageModel
from tripod.sampling import Grammar, SamplingParams
from tripod.text.tokenizer import Tokenizer

SCHEMAS: list[Any] = json.loads((Path(__file__).parents[1] / "data" / "schemas.json").read_text(encoding="utf-8"))


def asked(grammar: Grammar, max_tokens: int = 40, **params: Any) -> SamplingParams:
    return SamplingParams(grammar=grammar, max_tokens=max_tokens, **params)


def is_a_beginning(tokenizer: Tokenizer, grammar: Grammar, token_ids: tuple[int, ...]) -> bool:
    """As a matcher of its own says that was not in the engine."""
    compiler = GrammarCompiler(tokenizer, tokenizer.vocab_size)
    matcher = asyncio.run(compiler.matcher(grammar))
    compiler.close()
    try:
        for token_id in token_ids:
            matcher.accept(token_id)
    except EngineError:
        return False
    return True


@pytest.mark.parametrize("config", [ROOMY, TIGHT_AND_CHUNKED], ids=["roomy", "tight and chunked"])
def test_what_ends_by_itself_validates_and_what_is_cut_is_a_beginning(
    model: LanguageModel, tokenizer: Tokenizer, config: EngineConfig
) -> None:
    async def use(engine: Engine) -> list[Reply]:
        requests = [
            engine.generate("json: ", asked(Grammar.json_schema(schema), seed=seed, temperature=1.0))
            for schema in SCHEMAS
            for seed in range(6)
        ]
        return list(await asyncio.gather(*requests))

    replies, _ = with_engine(model, tokenizer, config, use)
    ends = {"stop": 0, "length": 0}
    for number, reply in enumerate(replies):
        schema = SCHEMAS[number // 6]
        ends[reply.finish_reason] += 1
        if reply.finish_reason == "stop":
            Draft202012Validator(schema).validate(json.loads(reply.text))
        else:
            assert len(reply.token_ids) == 40
            assert is_a_beginning(tokenizer, Grammar.json_schema(schema), reply.token_ids), reply.text
    assert ends["stop"] > 40, ends
    assert ends["length"] > 3, ends


@pytest.mark.parametrize("pattern", ["[ab]{3}c*", "(é|ü)+!", "a?"])
def test_a_regular_expression_is_matched_as_a_whole(model: LanguageModel, tokenizer: Tokenizer, pattern: str) -> None:
    async def use(engine: Engine) -> list[Reply]:
        return list(await asyncio.gather(*(engine.generate("x", asked(Grammar.regex(pattern), seed=seed)) for seed in range(8))))

    replies, _ = with_engine(model, tokenizer, ROOMY, use)
    whole = [reply.text for reply in replies if reply.finish_reason == "stop"]
    assert len(whole) >= 3
    assert all(re.fullmatch(pattern, text) for text in whole), whole


def test_greedy_takes_the_most_likely_token_that_is_allowed(model: LanguageModel, tokenizer: Tokenizer) -> None:
    prompt = tokenizer.encode("choose: ")
    digits = [ord(digit) for digit in "0123456789"]
    expected: list[int] = []
    for _ in range(5):
        logits = plain_logits(model, [*prompt, *expected])[-1]
        expected.append(max(digits, key=lambda digit: float(logits[digit])))

    async def use(engine: Engine) -> Reply:
        return await engine.generate(prompt, asked(Grammar.regex("[0-9]{5}"), temperature=0.0))

    reply, _ = with_engine(model, tokenizer, ROOMY, use)
    assert list(reply.token_ids) == expected
    assert reply.finish_reason == "stop"


@pytest.mark.parametrize("params", [{"top_k": 1}, {"top_p": 0.01}, {"min_p": 1.0}, {"logit_bias": {ord("z"): 100.0}}])
def test_what_a_grammar_rules_out_is_gone_before_the_truncations(model: LanguageModel, tokenizer: Tokenizer, params: Any) -> None:
    async def use(engine: Engine) -> Reply:
        return await engine.generate("x", asked(Grammar.regex("[0-9]{8}"), seed=1, **params))

    reply, _ = with_engine(model, tokenizer, ROOMY, use)
    assert re.fullmatch("[0-9]{8}", reply.text)


def test_log_probabilities_are_those_without_the_grammar(model: LanguageModel, tokenizer: Tokenizer) -> None:
    prompt = tokenizer.encode("score: ")

    async def use(engine: Engine) -> Reply:
        return await engine.generate(prompt, asked(Grammar.choice(["zq"]), logprobs=2))

    reply, _ = with_engine(model, tokenizer, ROOMY, use)
    assert reply.text == "zq"
    for place, entry in enumerate(reply.logprobs):
        plain = plain_logits(model, [*prompt, *reply.token_ids[:place]])[-1].log_softmax(-1)
        assert entry.logprob == pytest.approx(float(plain[reply.token_ids[place]]), abs=1e-4)
        assert entry.top[0].logprob == pytest.approx(float(plain.max()), abs=1e-4)


def test_neighbours_without_a_grammar_are_not_touched(
    model: LanguageModel, tokenizer: Tokenizer, greedy_answers: dict[str, list[int]]
) -> None:
    async def use(engine: Engine) -> list[Reply]:
        free = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)
        requests = [
            engine.generate(prompt, free) if number % 2 else engine.generate(prompt, asked(Grammar.regex("[ab]*"), 24, seed=1))
            for number, prompt in enumerate(PROMPTS)
        ]
        return list(await asyncio.gather(*requests))

    replies, _ = with_engine(model, tokenizer, ROOMY, use)
    for number, (prompt, reply) in enumerate(zip(PROMPTS, replies, strict=True)):
        if number % 2:
            assert list(reply.token_ids) == greedy_answers[prompt]
        else:
            assert re.fullmatch("[ab]*", reply.text)


def test_a_preempted_request_goes_on_in_its_grammar_and_draws_the_same(model: LanguageModel, tokenizer: Tokenizer) -> None:
    grammar = Grammar.regex("[a-f]{60}")

    async def use(engine: Engine) -> list[str]:
        replies = await asyncio.gather(*(engine.generate(prompt, asked(grammar, 60, seed=3)) for prompt in PROMPTS))
        return [reply.text for reply in replies]

    roomy, _ = with_engine(model, tokenizer, ROOMY, use)
    tight, stats = with_engine(model, tokenizer, TIGHT, use)
    assert stats.preemptions > 0
    assert tight == roomy
    assert all(re.fullmatch("[a-f]{60}", text) for text in roomy)


@pytest.mark.parametrize(("max_tokens", "text", "reason"), [(3, "yes", "stop"), (2, "ye", "length"), (9, "yes", "stop")])
def test_a_complete_text_ends_by_stop_even_at_the_last_token(
    model: LanguageModel, tokenizer: Tokenizer, max_tokens: int, text: str, reason: str
) -> None:
    async def use(engine: Engine) -> Reply:
        return await engine.generate("x", asked(Grammar.choice(["yes"]), max_tokens))

    reply, _ = with_engine(model, tokenizer, ROOMY, use)
    assert (reply.text, reply.finish_reason, reply.usage.completion_tokens) == (text, reason, len(text))


def test_min_tokens_holds_while_the_grammar_has_more_to_say(model: LanguageModel, tokenizer: Tokenizer) -> None:
    async def use(engine: Engine) -> list[Reply]:
        return [await engine.generate("x", asked(Grammar.regex(pattern), seed=2, min_tokens=12)) for pattern in ("a*", "a{0,5}")]

    (long, short), _ = with_engine(model, tokenizer, ROOMY, use)
    assert len(long.text) >= 12
    assert short.text == "aaaaa"  # nothing else could follow


def test_a_stop_string_still_cuts(model: LanguageModel, tokenizer: Tokenizer) -> None:
    async def use(engine: Engine) -> Reply:
        return await engine.generate("x", asked(Grammar.choice(["one, two, three"]), stop=(", t",)))

    reply, _ = with_engine(model, tokenizer, ROOMY, use)
    assert (reply.text, reply.finish_reason) == ("one", "stop")


def test_what_cannot_be_enforced_is_refused_before_anything_is_computed(model: LanguageModel, tokenizer: Tokenizer) -> None:
    async def use(engine: Engine) -> None:
        with pytest.raises(UnsupportedSchemaError, match="'uniqueItems' at #"):
            await engine.generate("x", asked(Grammar.json_schema({"type": "array", "uniqueItems": True})))

    _, stats = with_engine(model, tokenizer, ROOMY, use)
    assert stats.steps == 0


def test_a_grammar_that_exhausts_its_limits_ends_its_own_request(
    model: LanguageModel, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiler_room, "_STEP_MAX_ITEMS", 5)

    async def use(engine: Engine) -> list[Reply | BaseException]:
        ambiguous = Grammar.ebnf('start: start start | "a" | start "a"')
        return await asyncio.gather(
            engine.generate("x", asked(ambiguous, 100)),
            engine.generate("x", SamplingParams(max_tokens=30, ignore_eos=True)),
            return_exceptions=True,
        )

    (failed, free), stats = with_engine(model, tokenizer, ROOMY, use)
    assert isinstance(failed, EngineError)
    assert "grammar could not be followed" in str(failed)
    assert isinstance(free, Reply)
    assert free.usage.completion_tokens == 30
    assert stats.failed == 1


def test_a_request_can_be_aborted_while_its_grammar_is_compiled(
    model: LanguageModel, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_ = GrammarCompiler._compile

    def slowly(compiler: GrammarCompiler, grammar: Grammar) -> Any:
        import time

        time.sleep(0.1)
        return compile_(compiler, grammar)

    monkeypatch.setattr(GrammarCompiler, "_compile", slowly)

    async def use(engine: Engine) -> Reply:
        task = asyncio.ensure_future(engine.generate("x", asked(Grammar.regex("a+"), 200), request_id="mine"))
        await asyncio.sleep(0.02)
        engine.abort("mine")
        reply = await task
        with pytest.raises(NotFoundError):
            engine.abort("mine")
        left = asyncio.ensure_future(engine.generate("x", asked(Grammar.regex("b+"), 200), request_id="left"))
        await asyncio.sleep(0.02)
        left.cancel()
        await asyncio.gather(left, return_exceptions=True)
        with pytest.raises(NotFoundError):
            engine.abort("left")
        return reply

    reply, _ = with_engine(model, tokenizer, ROOMY, use)
    assert (reply.finish_reason, reply.token_ids) == ("abort", ())


def test_text_is_what_the_grammar_read_even_where_a_prompt_ends_inside_a_character(model: LanguageModel, tokenizer: Tokenizer) -> None:
    async def use(engine: Engine) -> Reply:
        return await engine.generate("é".encode()[:1], asked(Grammar.choice(["ok"])))

    reply, _ = with_engine(model, tokenizer, ROOMY, use)
    assert reply.text == "ok"


def test_a_logged_run_with_grammars_can_be_done_again(model: LanguageModel, tokenizer: Tokenizer, tmp_path: Path) -> None:
    config = replace(TIGHT, log=tmp_path / "run.jsonl")

    async def use(engine: Engine) -> None:
        await asyncio.gather(*(engine.generate(prompt, asked(Grammar.json_schema(SCHEMAS[0]))) for prompt in PROMPTS[:8]))

    with_engine(model, tokenizer, config, use)
    run = LoggedRun.read(tmp_path / "run.jsonl")
    report = replay(run, model, tokenizer=tokenizer)
    assert (report.step, report.num_tokens > 100) == (None, True), report.difference
    with pytest.raises(ConfigError, match="give it as well"):
        replay(run, model)
