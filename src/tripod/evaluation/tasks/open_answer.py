"""Tasks without choices: the one right continuation, an answer to find in what is generated, or the likelihood of whole texts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

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
    assert isinstance(reply, Likelihood)
    num_words, num_bytes = question.lengths
    return {"logprob": reply.logprob, "bytes": float(num_bytes), "words": float(num_words), "tokens": float(reply.num_tokens)}


TEXT_METRICS = {
    "word_perplexity": PerUnit("words"),
    "byte_perplexity": PerUnit("bytes"),
    "bits_per_byte": PerUnit("bytes", in_bits=True),
    "token_perplexity": PerUnit("tokens"),
}


def read_texts(path: Path) -> list[Question]:
    """.jsonl with a field `text`, or plain text, which is one."""
    texts: list[str] = [row["text"] for row in json_lines(path)] if path.suffix == ".jsonl" else [path.read_text(encoding="utf-8")]
    return [_text(number, text, text) for number, text in enumerate(texts) if text.strip()]


def _text(number: int, text: str, original: str) -> Question:
    """Counted are words and bytes of the original, also where another spelling of it is scored."""
    return Question(id=str(number), asks=(WholeText(text),), lengths=(len(re.split(r"\s+", original)), len(original.encode())))


_TITLE = re.compile(r"(?m)^(?= = [^=].*[^=] = $)")
# The rules of lm-eval, in their order; but for one that was to join apostrophes to digits and matches nothing.
_SPACES = (
    *((r"s '", "s'"), (r" @-@ ", "-"), (r" @,@ ", ","), (r" @\.@ ", ".")),
    *((r" : ", ": "), (r" ; ", "; "), (r" \. ", ". "), (r" ! ", "! "), (r" \? ", "? "), (r" , ", ", ")),
    *((r"\(\s*([^\)]*?)\s*\)", r"(\1)"), (r"\[\s*([^\]]*?)\s*\]", r"[\1]"), (r"{\s*([^}]*?)\s*}", r"{\1}")),
    *((r'"\s*([^"]*?)\s*"', r'"\1"'), (r"'\s*([^']*?)\s*'", r"'\1'")),
    *((r"= = = =", "===="), (r"= = =", "==="), (r"= =", "=="), (" \u00b0 ", "\u00b0")),
    *((r" \n", "\n"), (r"\n ", "\n"), (r" N ", " 1 "), (r" 's", "'s")),
)


def plain_wikitext(text: str) -> str:
    """An article of WikiText (Merity et al. 2016, arXiv:1609.07843) with its spaces where a text has them, as lm-eval puts them."""
    for pattern, replacement in _SPACES:
        text = re.sub(pattern, replacement, text)
    return text


def _wikitext(path: Path) -> list[Question]:
    """An article a question: what stands from one line " = Title = " to the next."""
    articles = _TITLE.split(path.read_text(encoding="utf-8"))
    articles = [*(article.removesuffix("\n") for article in articles[:-1]), articles[-1]]
    return [_text(number, plain_wikitext(article), article) for number, article in enumerate(articles) if article.strip()]


def texts_task(name: str, file: str) -> Task:
    """Perplexity and bits a byte of the texts of a file."""
    return Task(name=name, version=2, file=file, read=read_texts, judge=judge_text, metrics=TEXT_METRICS)


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
    Task(name="wikitext", version=2, file="text-wikitext2/test.txt", read=_wikitext, judge=judge_text, metrics=TEXT_METRICS),
)
