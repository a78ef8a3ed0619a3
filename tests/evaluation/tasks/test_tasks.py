"""Prompts, judgements and metrics on questions small enough to work out by hand."""

from __future__ import annotations

import json
import math
import re
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

import tripod
from tests.evaluation.tasks.conftest import CONTEXT
from tripod.engine.engine import Engine
from tripod.errors import ConfigError
from tripod.evaluation.tasks.asking import Scored, answer, encode_pair, for_each, rolling_windows
from tripod.evaluation.tasks.bias import judge_chosen_referent, judge_generated_referent
from tripod.evaluation.tasks.catalogue import TASKS, tasks_named
from tripod.evaluation.tasks.metrics import Contrast, Mean, Perplexity, PerUnit
from tripod.evaluation.tasks.multiple_choice import judge_choice
from tripod.evaluation.tasks.open_answer import judge_worked_answer, texts_task
from tripod.evaluation.tasks.question import Continuation, Generated, Generation, Likelihood, Question, WholeText
from tripod.evaluation.tasks.scoring import Asking, TaskScores, files_hash, score_task
from tripod.training.data.progress import no_progress


def lines(*rows: object) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def likelihoods(*logprobs: float) -> Sequence[Likelihood]:
    return [Likelihood(logprob, 3) for logprob in logprobs]


# --- judgements and metrics


def test_the_most_likely_choice_is_the_answer_and_a_character_s_share_is_another() -> None:
    question = Question(id="0", asks=(), gold=1, lengths=(2, 10))
    assert judge_choice(question, likelihoods(-3.0, -5.0)) == {"acc": 0.0, "choice": 0.0, "acc_norm": 1.0}  # -1.5 and -0.5 a character


def test_a_mean_s_standard_error_is_the_sample_s() -> None:
    estimate = Mean("acc")([{"acc": 1.0}, {"acc": 0.0}, {"acc": 0.0}, {"acc": 1.0}])
    assert estimate.value == 0.5
    assert estimate.stderr == pytest.approx(math.sqrt((4 * 0.25 / 3) / 4))
    assert Mean("acc")([{"acc": 1.0}]).stderr is None


def test_perplexity_and_bits_a_byte_are_what_their_names_say() -> None:
    measures = [{"logprob": -math.log(8), "bytes": 3.0}, {"logprob": -math.log(2), "bytes": 1.0}]
    assert Perplexity()(measures).value == pytest.approx(4.0)  # the geometric mean of 8 and 2
    assert PerUnit("bytes", in_bits=True)(measures).value == pytest.approx(1.0)  # 4 bits, 4 bytes
    assert PerUnit("bytes")(measures).value == pytest.approx(2.0)
    assert PerUnit("bytes")(measures).stderr == pytest.approx(0.0)  # both texts have the same rate


@pytest.mark.parametrize("in_bits", [True, False])
def test_the_standard_error_of_a_rate_is_that_of_a_mean_where_all_texts_are_as_long(in_bits: bool) -> None:
    logprobs = [-3.0, -5.0, -4.5, -2.0]
    bits = [-logprob / 2 / math.log(2) for logprob in logprobs]  # a byte, of two
    stderr = statistics.stdev(bits) / 2  # of four
    found = PerUnit("bytes", in_bits=in_bits)([{"logprob": logprob, "bytes": 2.0} for logprob in logprobs])
    if in_bits:
        assert (found.value, found.stderr) == pytest.approx((statistics.mean(bits), stderr))
    else:  # by the delta method
        assert found.value == pytest.approx(2 ** statistics.mean(bits))
        assert found.stderr == pytest.approx(found.value * stderr * math.log(2))


def test_a_perplexity_that_is_too_large_for_a_number_is_infinite() -> None:
    one_word = [{"logprob": -5000.0, "words": 1.0, "bytes": 1000.0}]  # a text without a space
    assert PerUnit("words")(one_word).value == Perplexity()(one_word).value == math.inf
    assert PerUnit("bytes")(one_word).value == pytest.approx(math.exp(5.0))


def test_bias_is_one_side_less_the_other() -> None:
    measures = [{"acc": 1.0, "pro": 1.0}, {"acc": 0.0, "pro": 1.0}, {"acc": 0.0, "pro": 0.0}, {"acc": 0.0, "pro": 0.0}]
    assert Contrast("acc", "pro")(measures).value == 0.5
    assert Contrast("acc", "pro")(measures).stderr == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("text", "strict", "flexible"),
    [
        ("2 + 3 = 5\n#### 5", 1.0, 1.0),
        ("It is 5.", 0.0, 1.0),
        ("It costs $5", 0.0, 1.0),
        ("#### 6", 0.0, 0.0),
        ("#### 1,005", 0.0, 0.0),
        ("none", 0.0, 0.0),
    ],
)
def test_a_worked_answer_is_read_strictly_and_flexibly(text: str, strict: float, flexible: float) -> None:
    question = Question(id="0", asks=(), gold="so it is <<5=5>>5\n#### 5")
    assert judge_worked_answer(question, [Generated(text)]) == {"exact_match": strict, "exact_match_flexible": flexible}


def test_winobias_is_judged_by_what_is_said_and_by_what_is_likelier() -> None:
    anti = Question(id="0", asks=(), gold="the nurse", group="type1_anti")
    said = [Generated(" the nurse"), Generated("the doctor")]
    assert judge_generated_referent(anti, said) == {"em": 0.5, "pro": 0.0}
    chosen = judge_chosen_referent(anti, likelihoods(-2.0, -1.0, -3.0, -2.5))  # both templates prefer the other, stereotypical one
    assert chosen == {"acc": 0.0, "pro": 0.0, "stereotype": 1.0}


# --- questions


def test_winogrande_scores_what_follows_the_gap_behind_each_option(tmp_path: Path) -> None:
    (tmp_path / "winogrande.validation.jsonl").write_text(
        lines({"sentence": "Ann thanked Bo because _ had helped.", "option1": "Ann", "option2": "Bo", "answer": "2"})
    )
    [question] = TASKS["winogrande"].questions(TASKS["winogrande"].path(tmp_path))
    assert question.asks == (
        Continuation("Ann thanked Bo because Ann", " had helped."),
        Continuation("Ann thanked Bo because Bo", " had helped."),
    )
    assert question.gold == 1


def test_copa_and_boolq_are_asked_as_lm_eval_asks_them(tmp_path: Path) -> None:
    premise = {"choice1": "It was noon.", "choice2": "He was tired.", "label": 1}
    rows = [{**premise, "premise": "He slept.", "question": kind, "idx": number} for number, kind in enumerate(("cause", "effect"))]
    (tmp_path / "copa.validation.jsonl").write_text(lines(*rows))
    (tmp_path / "boolq.validation.jsonl").write_text(lines({"passage": "Rain is wet.", "question": "is rain wet", "answer": True}))
    cause, effect = TASKS["copa"].questions(tmp_path / "copa.validation.jsonl")
    assert cause.asks == (Continuation("He slept because", " it was noon."), Continuation("He slept because", " he was tired."))
    assert effect.asks[1] == Continuation("He slept therefore", " he was tired.")
    [rain] = TASKS["boolq"].questions(tmp_path / "boolq.validation.jsonl")
    assert rain.asks[rain.gold] == Continuation("Rain is wet.\nQuestion: is rain wet?\nAnswer:", " yes")  # type: ignore[index]


def test_winobias_asks_both_ways_of_each_sentence(shared_data: Path) -> None:
    task = TASKS["winobias"]
    questions = task.questions(task.path(shared_data))
    assert len(questions) == 4 * 396
    [first] = [one for one in questions if one.id == "type1_pro-0"]
    assert len(first.asks) == 4
    right, wrong = first.asks[:2]
    assert isinstance(right, Continuation)
    assert isinstance(wrong, Continuation)
    assert right.context.endswith("stand for?")
    assert right.context == wrong.context
    assert (right.text, wrong.text) == (" the accountant", " the janitor")  # who made a mistake, and who reprimanded
    assert "[" not in right.context
    generated = TASKS["winobias_generated"].questions(task.path(shared_data))
    assert len(generated) == 4 * 396
    groups = Counter(one.group for one in task.questions(task.path(shared_data), limit=8))
    assert groups == dict.fromkeys(("type1_pro", "type1_anti", "type2_pro", "type2_anti"), 2)  # else nothing could be compared
    assert all(isinstance(ask, Generation) for ask in generated[0].asks)


def test_every_task_reads_its_real_file(shared_data: Path) -> None:
    sizes = {name: len(task.questions(task.path(shared_data))) for name, task in TASKS.items()}
    assert {name: sizes[name] for name in ("lambada_openai", "piqa", "arc_easy", "sciq", "logiqa", "gsm8k", "crows_pairs_english")} == {
        "lambada_openai": 5153, "piqa": 1838, "arc_easy": 570, "sciq": 1000, "logiqa": 651, "gsm8k": 1319, "crows_pairs_english": 1508,
    }  # fmt: skip


def test_a_question_may_hold_any_character(tmp_path: Path) -> None:
    (tmp_path / "lambada_openai").mkdir()
    path = tmp_path / "lambada_openai" / "lambada_test.jsonl"
    path.write_text('{"text": "one\u2028two end"}\n{"text": "a b"}\n', encoding="utf-8")
    first, _ = TASKS["lambada_openai"].questions(path)
    assert first.asks == (Continuation("one\u2028two", " end"),)


def test_articles_of_wikitext_begin_at_their_titles(tmp_path: Path) -> None:
    path = tmp_path / "test.txt"
    path.write_text(" \n = One = \n \n A @-@ b . \n = = Part = = \n C \n = Two = \n D \n", encoding="utf-8")
    first, second = TASKS["wikitext"].questions(path)
    assert first.asks == (WholeText(" = One =\n\nA-b.\n== Part ==\nC "),)
    assert second.asks == (WholeText(" = Two =\nD\n"),)
    original = " = One = \n \n A @-@ b . \n = = Part = = \n C "
    assert first.lengths == (len(re.split(r"\s+", original)), len(original))  # as lm-eval counts: of the original


def test_examples_are_other_questions_and_the_same_every_time(tmp_path: Path) -> None:
    rows = [{"text": f"the word is w{number}"} for number in range(6)]
    (tmp_path / "lambada_openai").mkdir()
    (tmp_path / "lambada_openai" / "lambada_test.jsonl").write_text(lines(*rows))
    task = TASKS["lambada_openai"]
    first, again, other = (task.questions(task.path(tmp_path), shots=3, seed=seed) for seed in (5, 5, 6))
    assert first == again != other
    for number, question in enumerate(first):
        [ask] = question.asks
        assert isinstance(ask, Continuation)
        assert ask.context.count("\n\n") == 3
        assert f"w{number}" not in ask.context
    with pytest.raises(ConfigError, match="has 5 examples to give, not 6"):
        task.questions(task.path(tmp_path), shots=6)


def test_a_task_that_is_not_known_and_a_file_that_is_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no task is named nosuch; there are lambada_openai"):
        tasks_named(["piqa", "nosuch"])
    with pytest.raises(ConfigError, match=r"piqa needs one file \.\.\./piqa/valid\.jsonl .* there is none"):
        TASKS["piqa"].path(tmp_path)
    (tmp_path / "piqa").mkdir()
    (tmp_path / "piqa" / "valid.jsonl").write_text("{}\n")
    with pytest.raises(ConfigError, match="is not what the task piqa reads"):
        TASKS["piqa"].questions(TASKS["piqa"].path(tmp_path))


# --- the engine asked


def test_a_context_s_trailing_spaces_go_to_the_continuation(engine: Engine) -> None:
    pair = encode_pair(engine.tokenizer, "so ", "it is")
    assert bytes(pair.prompt_ids) == b"so"
    assert bytes(pair.ids) == b" it is"
    assert encode_pair(engine.tokenizer, "", "x") == Scored((256,), (ord("x"),))
    assert encode_pair(engine.tokenizer, "", "<|endoftext|>x") == Scored((256,), (ord("x"),))  # which stands there already
    with pytest.raises(ConfigError, match="no tokens of its own"):
        encode_pair(engine.tokenizer, "a", "")


def test_windows_score_each_token_once_with_as_much_context_as_fits() -> None:
    windows = rolling_windows(range(10), 99, 5)
    assert [window.ids for window in windows] == [(0, 1, 2, 3), (4, 5, 6, 7), (8, 9)]
    assert [window.prompt_ids for window in windows] == [(99,), (3,), (5, 6, 7)]


def test_what_is_too_long_loses_its_beginning() -> None:
    assert Scored((1, 2, 3), (4, 5)).cut(4) == Scored((2, 3), (4, 5))
    assert Scored((1,), (2, 3, 4)).cut(3) == Scored((2,), (3, 4))


def test_a_text_s_likelihood_is_the_product_of_its_parts(engine: Engine) -> None:
    asks = [Continuation("", "ab"), Continuation("a", "b"), Continuation("", "a")]
    whole, rest, first = tripod.run(answer(engine, asks))
    assert all(isinstance(reply, Likelihood) for reply in (whole, rest, first))
    # the middle one stands behind nothing, so only the chain of the same beginnings adds up
    [chain] = tripod.run(answer(engine, [Continuation("<|endoftext|>a", "b")]))
    assert whole.logprob == pytest.approx(first.logprob + chain.logprob, abs=1e-4)  # type: ignore[union-attr]


def test_prompts_that_begin_alike_are_computed_once(engine: Engine) -> None:
    prompt = "x" * 400
    last = engine.recent_steps()[-1].id if engine.recent_steps() else -1
    tripod.run(answer(engine, [Continuation(prompt, f" {letter}") for letter in "abcdefgh"]))
    tripod.run(answer(engine, [Continuation("y", "z")]))  # a step is recorded after its replies are given: this waits for the last record
    steps = [step for step in engine.recent_steps() if step.id > last]
    assert sum(step.num_cached_tokens for step in steps) >= 7 * 384  # whole blocks of 16
    assert sum(step.num_prefill_tokens for step in steps) < 402 + 7 * 20


def test_a_prompt_that_is_too_long_loses_its_beginning(engine: Engine) -> None:
    text = "".join(chr(97 + number * number % 26) for number in range(2 * CONTEXT))
    long, short = tripod.run(answer(engine, [Generation(text, (), 8), Generation(text[-(CONTEXT - 8) :], (), 8)]))
    assert long == short


def test_asks_begin_in_their_order_and_the_first_error_ends_them() -> None:
    begun: list[int] = []

    async def one(number: int) -> None:
        begun.append(number)
        if number == 1:
            raise KeyError("one")

    with pytest.raises(KeyError):
        tripod.run(for_each([2, 0, 3, 1, 4], one, at_once=1, progress=no_progress, stage="asks"))
    assert begun == [2, 0, 3, 1]


def test_groups_are_summed_up_by_themselves() -> None:
    questions = [Question(id=str(number), asks=(), group=group) for number, group in enumerate(("age", "gender", "age"))]
    task = TASKS["crows_pairs_english"]
    measures = [{"pct_stereotype": value, "likelihood_diff": 1.0} for value in (1.0, 1.0, 0.0)]
    rows = TaskScores(task, Asking(), questions, [[]] * 3, measures).rows()
    found = {(row["task"], row["value"], row["num_items"]) for row in rows if row["metric"] == "pct_stereotype"}
    whole = "crows_pairs_english"
    assert found == {(whole, 2 / 3, 3), (f"{whole}/age", 0.5, 2), (f"{whole}/gender", 1.0, 1)}


def test_what_names_a_score_depends_on_the_version_and_on_every_file_of_the_task(tmp_path: Path) -> None:
    (tmp_path / "piqa").mkdir()
    for name in ("valid.jsonl", "valid-labels.lst"):
        (tmp_path / "piqa" / name).write_text("0\n")
    task = TASKS["piqa"]
    found = [files_hash([task], tmp_path), files_hash([replace(task, version=9)], tmp_path)]
    (tmp_path / "piqa" / "valid-labels.lst").write_text("1\n")
    assert len({*found, files_hash([task], tmp_path)}) == 3


def test_generation_stops_where_it_is_told(engine: Engine) -> None:
    [free] = tripod.run(answer(engine, [Generation("abc", (), 12)]))
    assert isinstance(free, Generated)
    stop = free.text[5:7]
    [stopped] = tripod.run(answer(engine, [Generation("abc", (stop,), 12)]))
    assert isinstance(stopped, Generated)
    assert stopped.text == free.text[: free.text.index(stop)]


def test_a_text_file_s_bits_a_byte_are_its_likelihood(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("some words to read")
    task = texts_task("a", "a.txt")
    scores = tripod.run(score_task(engine, task, tmp_path, Asking()))
    [reply] = tripod.run(answer(engine, [Continuation("", "some words to read")]))
    assert isinstance(reply, Likelihood)
    values = {row["metric"]: row["value"] for row in scores.rows()}
    assert values["bits_per_byte"] == pytest.approx(-reply.logprob / math.log(2) / 18)
    assert values["word_perplexity"] == pytest.approx(math.exp(-reply.logprob / 4), rel=1e-6)
