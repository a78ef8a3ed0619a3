"""Tasks that give choices: the most likely continuation is the answer."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from tripod.evaluation.tasks.metrics import Mean, Measures
from tripod.evaluation.tasks.question import Continuation, Likelihood, Question, Reply
from tripod.evaluation.tasks.task import Task, json_lines, lines_of

_BOTH = {"acc": Mean("acc"), "acc_norm": Mean("acc_norm")}


def judge_choice(question: Question, replies: Sequence[Reply]) -> Measures:
    """acc: the most likely choice is right; acc_norm: the same by log-likelihood a character, which favours no short choice. The first
    of equals counts."""
    logprobs = [reply.logprob for reply in replies if isinstance(reply, Likelihood)]
    best = logprobs.index(max(logprobs))
    measures = {"acc": float(best == question.gold), "choice": float(best)}
    if question.lengths:
        normed = [logprob / length for logprob, length in zip(logprobs, question.lengths, strict=True)]
        measures["acc_norm"] = float(normed.index(max(normed)) == question.gold)
    return measures


def choices(id: str, prompt: str, options: Sequence[str], gold: int, *, group: str = "") -> Question:
    """A prompt and its options, with a space between."""
    return Question(
        id=id,
        asks=tuple(Continuation(prompt, f" {option}") for option in options),
        gold=gold,
        lengths=tuple(map(len, options)),
        example=f"{prompt} {options[gold]}",
        group=group,
    )


def _piqa(path: Path) -> list[Question]:
    labels = (path.parent / "valid-labels.lst").read_text(encoding="utf-8").split()
    return [
        choices(str(number), f"Question: {row['goal']}\nAnswer:", [row["sol1"], row["sol2"]], int(label))
        for number, (row, label) in enumerate(zip(json_lines(path), labels, strict=True))
    ]


def _arc(path: Path) -> list[Question]:
    return [
        choices(row["id"], f"Question: {row['question']}\nAnswer:", row["choices"]["text"], row["choices"]["label"].index(row["answerKey"]))
        for row in json_lines(path)
    ]


def _openbookqa(path: Path) -> list[Question]:
    return [
        choices(row["id"], row["question_stem"], row["choices"]["text"], row["choices"]["label"].index(row["answerKey"].lstrip()))
        for row in json_lines(path)
    ]


def _sciq(path: Path) -> list[Question]:
    return [
        choices(
            str(number),
            f"{row['support'].lstrip()}\nQuestion: {row['question']}\nAnswer:",
            [row["distractor1"], row["distractor2"], row["distractor3"], row["correct_answer"]],
            3,
        )
        for number, row in enumerate(json_lines(path))
    ]


def _winogrande(path: Path) -> list[Question]:
    """Each option stands in the gap, and what follows the gap is scored: Trinh & Le 2018 (arXiv:1806.02847), "partial" scoring."""
    return [_gap(str(number), row) for number, row in enumerate(json_lines(path))]


def _gap(id: str, row: Any) -> Question:
    before, after = row["sentence"].split("_", 1)
    rest, gold = f" {after.strip()}", int(row["answer"]) - 1
    contexts = [before + row[option] for option in ("option1", "option2")]
    return Question(id=id, asks=tuple(Continuation(context, rest) for context in contexts), gold=gold, example=contexts[gold] + rest)


def _logiqa(path: Path) -> list[Question]:
    """Eight lines a question: an empty one, the right letter, context, question, four options that begin with their letters."""
    lines = iter(lines_of(path))
    questions: list[Question] = []
    while block := list(islice(lines, 8)):
        _, letter, context, question, *options = block
        texts = [option[2:].strip() for option in options]
        listed = "".join(f"{name}. {text}\n" for name, text in zip("ABCD", texts, strict=True))
        prompt = f"Passage: {context}\nQuestion: {question}\nChoices:\n{listed}Answer:"
        questions.append(choices(str(len(questions)), prompt, texts, "abcd".index(letter.strip().lower())))
    return questions


def _copa(path: Path) -> list[Question]:
    joined = {"cause": "because", "effect": "therefore"}
    return [
        choices(
            str(row["idx"]),
            f"{row['premise'].strip()[:-1]} {joined[row['question']]}",
            [row[name][0].lower() + row[name][1:] for name in ("choice1", "choice2")],
            row["label"],
        )
        for row in json_lines(path)
    ]


def _boolq(path: Path) -> list[Question]:
    return [
        choices(str(number), f"{row['passage']}\nQuestion: {row['question']}?\nAnswer:", ["no", "yes"], int(row["answer"]))
        for number, row in enumerate(json_lines(path))
    ]


TASKS = (
    Task(name="piqa", version=1, file="piqa/valid.jsonl", read=_piqa, judge=judge_choice, metrics=_BOTH),
    Task(name="arc_easy", version=1, file="arc_easy.validation.jsonl", read=_arc, judge=judge_choice, metrics=_BOTH),
    Task(name="arc_challenge", version=1, file="arc_challenge.validation.jsonl", read=_arc, judge=judge_choice, metrics=_BOTH),
    Task(name="sciq", version=1, file="sciq.validation.jsonl", read=_sciq, judge=judge_choice, metrics=_BOTH),
    Task(
        name="winogrande", version=1, file="winogrande.validation.jsonl", read=_winogrande, judge=judge_choice, metrics={"acc": Mean("acc")}
    ),
    Task(name="logiqa", version=1, file="logiqa/Eval.txt", read=_logiqa, judge=judge_choice, metrics=_BOTH),
    Task(name="openbookqa", version=1, file="openbookqa.validation.jsonl", read=_openbookqa, judge=judge_choice, metrics=_BOTH),
    Task(name="copa", version=1, file="copa.validation.jsonl", read=_copa, judge=judge_choice, metrics={"acc": Mean("acc")}),
    Task(name="boolq", version=1, file="boolq.validation.jsonl", read=_boolq, judge=judge_choice, metrics={"acc": Mean("acc")}),
)
