"""Tasks without choices: the one right continuation, an answer to find in what is generated, or the likelihood of whole texts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tripod.evaluation.tasks.metrics import Mean, Measures, Perplexity, PerUnit
from tripod.evaluation.tasks.question import Continuation, Generated, Generation, Likelihood, Question, Reply, WholeText
from tripod.evaluation.tasks.task import Task, json_lines

_ANSWER_TOKENS = 256  # of a worked answer


def judge_likelihood(question: Question, replies: Sequence[Reply]) -> Measures:
    """acc: a greedy model would have said exactly this."""
    [reply] = replies
    assert isinstance(reply, Likelihood)
    return {"acc": float(reply.is_greedy), "logprob": reply.logprob}


def _lambada(path: Path) -> list[Question]:
    """The last word of a passage (Paperno et al. 2016, arXiv:1606.06031), in OpenAI's version."""
    questions = []
    for number, row in enumerate(json_lines(path)):
        context, _, word = row["text"].rpartition(" ")
        questions.append(Question(id=str(number), asks=(Continuation(context, f" {word}"),), gold=word, example=row["text"]))
    return questions


def _arithmetic(path: Path) -> list[Question]:
    questions = []
    for number, row in enumerate(json_lines(path)):
        context = row["context"].strip().replace("\n\n", "\n").replace("Q:", "Question:").replace("A:", "Answer:")
        asks = (Continuation(context, row["completion"]),)
        questions.append(Question(id=str(number), asks=asks, gold=row["completion"].strip(), example=context + row["completion"]))
    return questions


# --- worked answers


_STRICT = re.compile(r"#### (\-?[0-9\.\,]+)")
_FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")


def _gsm8k(path: Path) -> list[Question]:
    """Cobbe et al. 2021 (arXiv:2110.14168). Examples are drawn from the test set itself, where lm-eval takes them from the training set."""
    until = ("Question:", "</s>", "<|im_end|>")
    questions = []
    for number, row in enumerate(json_lines(path)):
        prompt = f"Question: {row['question']}\nAnswer:"
        ask = Generation(prompt, until, _ANSWER_TOKENS)
        questions.append(Question(id=str(number), asks=(ask,), gold=row["answer"], example=f"{prompt} {row['answer']}"))
    return questions


def judge_worked_answer(question: Question, replies: Sequence[Reply]) -> Measures:
    """strict: the number behind "####"; flexible: the last number there is."""
    [reply] = replies
    assert isinstance(reply, Generated)
    strict = _STRICT.search(reply.text)
    flexible = [next(part for part in match.groups() if part) for match in _FLEXIBLE.finditer(reply.text)]
    gold = _plain_number(str(question.gold))
    return {
        "exact_match": float(strict is not None and _plain_number(strict[1]) == gold),
        "exact_match_flexible": float(bool(flexible) and _plain_number(flexible[-1]) == gold),
    }


def _plain_number(text: str) -> str:
    text = re.sub(r"(?s).*#### ", "", text.replace(",", "").replace("$", ""))
    return re.sub(r"\.$", "", text).strip().lower()


# --- whole texts


def judge_text(question: Question, replies: Sequence[Reply]) -> Measures:
    [reply] = replies
    [ask] = question.asks
    assert isinstance(reply, Likelihood)
    assert isinstance(ask, WholeText)
    words, num_bytes = len(re.split(r"\s+", ask.text)), len(ask.text.encode())
    return {"logprob": reply.logprob, "bytes": float(num_bytes), "words": float(words), "tokens": float(reply.num_tokens)}


TEXT_METRICS = {
    "word_perplexity": PerUnit("words"),
    "byte_perplexity": PerUnit("bytes"),
    "bits_per_byte": PerUnit("bytes", in_bits=True),
    "token_perplexity": PerUnit("tokens"),
}


def read_texts(path: Path) -> list[Question]:
    """.jsonl with a field `text`, or plain text: its articles where lines " = Title = " begin them (WikiText), else the file as a whole."""
    if path.suffix == ".jsonl":
        texts: list[Any] = [row["text"] for row in json_lines(path)]
    else:
        content = path.read_text(encoding="utf-8")
        texts = re.split(r"(?m)^(?= = [^=].*[^=] = $)", content)
    return [Question(id=str(number), asks=(WholeText(text),)) for number, text in enumerate(texts) if text.strip()]


def texts_task(name: str, file: str) -> Task:
    """Perplexity and bits a byte of the texts of a file."""
    return Task(name=name, version=1, file=file, read=read_texts, judge=judge_text, metrics=TEXT_METRICS)


_GREEDY = {"acc": Mean("acc")}
TASKS = (
    Task(
        name="lambada_openai",
        version=1,
        file="lambada_openai/lambada_test.jsonl",
        read=_lambada,
        judge=judge_likelihood,
        metrics={"perplexity": Perplexity(), "acc": Mean("acc")},
    ),
    Task(
        name="arithmetic_2da",
        version=1,
        file="arithmetic/two_digit_addition.jsonl",
        read=_arithmetic,
        judge=judge_likelihood,
        metrics=_GREEDY,
    ),
    Task(
        name="arithmetic_2ds",
        version=1,
        file="arithmetic/two_digit_subtraction.jsonl",
        read=_arithmetic,
        judge=judge_likelihood,
        metrics=_GREEDY,
    ),
    Task(
        name="arithmetic_2dm",
        version=1,
        file="arithmetic/two_digit_multiplication.jsonl",
        read=_arithmetic,
        judge=judge_likelihood,
        metrics=_GREEDY,
    ),
    Task(
        name="gsm8k",
        version=1,
        file="gsm8k/test.jsonl",
        read=_gsm8k,
        judge=judge_worked_answer,
        metrics={"exact_match": Mean("exact_match"), "exact_match_flexible": Mean("exact_match_flexible")},
    ),
    texts_task("wikitext", "text-wikitext2/test.txt"),
)
