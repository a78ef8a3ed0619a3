"""A task: where its questions lie, how replies are judged, what is reported."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tripod.errors import ConfigError
from tripod.evaluation.tasks.metrics import Measures, Metric
from tripod.evaluation.tasks.question import Continuation, Generation, Question, Reply

Judge = Callable[[Question, Sequence[Reply]], Measures]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One task. Names, prompts and metrics are those of lm-eval, so that scores compare."""

    name: str
    version: int  # raised when the same file gives other questions than before
    file: str  # the end of its path in a folder of data sets, such as piqa/valid.jsonl
    read: Callable[[Path], list[Question]]
    judge: Judge
    metrics: Mapping[str, Metric]

    def path(self, data: Path) -> Path:
        """Where its questions lie in a folder.

        Raises:
            ConfigError: nowhere, or in several places.
        """
        if (data / self.file).is_file():
            return data / self.file
        name = Path(self.file).name
        found = sorted(path for path in data.rglob(name) if path.as_posix().endswith(f"/{self.file}")) if data.is_dir() else []
        if len(found) != 1:
            raise ConfigError(
                f"the task {self.name} needs one file .../{self.file} in {data}; there {'are several' if found else 'is none'}. "
                "Give the folder with the data sets (--data FOLDER)"
            )
        return found[0]

    def questions(self, path: Path, *, limit: int | None = None, shots: int = 0, seed: int = 1234) -> list[Question]:
        """The questions of a file.

        Args:
            path: see `path`.
            limit: only the first so many.
            shots: so many others of the file stand before each question, with their answers.
            seed: by which the examples of each question are drawn.

        Raises:
            ConfigError: the file has another form, or cannot give so many examples.
        """
        try:
            questions = self.read(path)
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise ConfigError(f"{path} is not what the task {self.name} reads: {type(error).__name__}: {error}") from error
        if not questions:
            raise ConfigError(f"{path} has no questions for the task {self.name}")
        asked = questions[:limit]
        return asked if shots == 0 else [_with_examples(question, questions, shots, seed, self.name) for question in asked]


def _with_examples(question: Question, pool: Sequence[Question], shots: int, seed: int, task: str) -> Question:
    others = [other.example for other in pool if other.example and other.id != question.id]
    if len(others) < shots:
        raise ConfigError(f"the task {task} has {len(others)} examples to give, not {shots}; ask for fewer shots")
    chosen = random.Random(f"{seed}-{question.id}").sample(others, shots)
    before = "".join(f"{example}\n\n" for example in chosen)

    def extended(ask: Any) -> Any:
        match ask:
            case Continuation():
                return replace(ask, context=before + ask.context)
            case Generation():
                return replace(ask, prompt=before + ask.prompt)
            case _:
                raise ConfigError(f"the task {task} scores whole texts, which have no examples before them; leave --shots out")

    return replace(question, asks=tuple(map(extended, question.asks)))


def lines_of(path: Path) -> list[str]:
    """Cut at line feeds alone: `splitlines` also cuts at characters such as U+2028, which stand within texts."""
    return path.read_text(encoding="utf-8").removesuffix("\n").split("\n")


def json_lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in lines_of(path) if line.strip()]
