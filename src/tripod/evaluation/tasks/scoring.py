"""A model scored on tasks: what each question gave, and the metrics with their standard errors as rows of a tidy table."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tripod.evaluation.table import Row
from tripod.evaluation.tasks.asking import answer, flat
from tripod.evaluation.tasks.metrics import Measures
from tripod.evaluation.tasks.question import Question, Reply
from tripod.evaluation.tasks.task import Task
from tripod.training.data.progress import Progress, no_progress

if TYPE_CHECKING:
    from tripod.engine.engine import Engine


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """How tasks are asked."""

    limit: int | None = None  # of each task, only the first so many questions
    shots: int = 0  # examples before each question
    seed: int = 1234  # by which they are drawn


@dataclass(frozen=True, slots=True)
class TaskScores:
    """What one model gave on one task."""

    task: Task
    asking: Asking
    questions: Sequence[Question]
    replies: Sequence[Sequence[Reply]]  # of each question, in the order of its asks
    measures: Sequence[Measures]  # of each question

    def rows(self) -> list[Row]:
        """A row a metric, for the whole task and then for its groups, named task/group."""
        return [*self._rows(self.task.name, range(len(self.questions))), *self._group_rows()]

    def _group_rows(self) -> list[Row]:
        groups = dict.fromkeys(question.group for question in self.questions if question.group)
        rows: list[Row] = []
        for group in groups:
            members = [at for at, question in enumerate(self.questions) if question.group == group]
            rows += self._rows(f"{self.task.name}/{group}", members)
        return rows

    def _rows(self, name: str, members: Sequence[int]) -> list[Row]:
        chosen = [self.measures[at] for at in members]
        rows: list[Row] = []
        for metric, sum_up in self.task.metrics.items():
            try:
                estimate = sum_up(chosen)
            except ZeroDivisionError:  # a contrast within one of its sides
                continue
            rows.append(
                {
                    "task": name,
                    "shots": self.asking.shots,
                    "metric": metric,
                    "value": estimate.value,
                    "stderr": estimate.stderr,
                    "num_items": len(chosen),
                }
            )
        return rows

    def item_rows(self) -> list[Row]:
        """A row a question: its measures, for paired tests."""
        return [
            {"task": self.task.name, "item": question.id, "group": question.group or None, **measures}
            for question, measures in zip(self.questions, self.measures, strict=True)
        ]


async def score_task(engine: Engine, task: Task, data: Path, asking: Asking = Asking(), *, progress: Progress = no_progress) -> TaskScores:
    """Score the model of an engine on one task.

    Args:
        engine: with the model.
        task: of the catalogue, or of `texts_task`.
        data: the folder in which its file lies.
        asking: how much, with how many examples.
        progress: told the task's name, with asks done.

    Raises:
        ConfigError: the task's file is not there or has another form.
    """
    questions = task.questions(task.path(data), limit=asking.limit, shots=asking.shots, seed=asking.seed)
    replies = iter(await answer(engine, flat(question.asks for question in questions), progress=progress, stage=task.name))
    of_each = [[next(replies) for _ in question.asks] for question in questions]
    measures = [task.judge(question, given) for question, given in zip(questions, of_each, strict=True)]
    return TaskScores(task, asking, questions, of_each, measures)


def files_hash(tasks: Sequence[Task], data: Path) -> str:
    """Names what tasks ask: their versions and the files beside theirs that they read, too."""
    digest = hashlib.sha256()
    for task in tasks:
        path = task.path(data)
        digest.update(f"{task.name} {task.version}".encode())
        for file in sorted(path.parent.iterdir()) if task.file.count("/") else [path]:
            if file.is_file():
                digest.update(file.read_bytes())
    return digest.hexdigest()
