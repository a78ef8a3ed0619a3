"""Checkpoints scored on tasks: what `tripod eval tasks` and several studies measure. Each task is kept by itself, so tasks can be added."""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from tripod.analysis.checkpoints import Checkpoint
from tripod.analysis.study import PLACE, measurement_path
from tripod.errors import ConfigError
from tripod.evaluation.table import Row, Table
from tripod.evaluation.tasks.catalogue import tasks_named
from tripod.evaluation.tasks.open_answer import texts_task
from tripod.evaluation.tasks.scoring import Asking, files_hash, score_task
from tripod.training.data.progress import Progress, no_progress

if TYPE_CHECKING:
    from tripod.engine.engine import Engine
    from tripod.evaluation.tasks.task import Task

LM_EVAL = "lm-eval:"  # begins the name of a task that lm-eval defines
TEXT = "text:"  # begins the name of a file whose texts are scored


@dataclass(frozen=True)
class TaskScore:
    """One task, scored on a checkpoint: a row a metric, and where items are wanted a row a question and measure."""

    name: ClassVar[str] = "task"
    version: ClassVar[int] = 1
    task: str  # of the catalogue; text:NAME for the texts of a file of this name; lm-eval:NAME
    limit: int | None = None
    shots: int | None = None  # None: none; of lm-eval, what the task says
    seed: int = 1234  # by which examples are drawn
    items: bool = False
    data: str | None = field(default=None, metadata=PLACE)
    include: str | None = field(default=None, metadata=PLACE)  # task files for lm-eval

    def depends_on(self, checkpoint: Checkpoint) -> Mapping[str, str]:
        if self.task.startswith(LM_EVAL):
            from tripod.evaluation.tasks.lm_eval_model import lm_eval_version

            return {"lm-eval": lm_eval_version(), "include": "" if self.include is None else _task_files_hash(Path(self.include))}
        task, folder = self._found()
        return {"files": files_hash([task], folder)}

    async def measure(self, checkpoint: Checkpoint, progress: Progress) -> Table:
        async with checkpoint.engine() as engine:
            return await self.measure_on(engine, progress)

    async def measure_on(self, engine: Engine, progress: Progress) -> Table:
        """The same on an engine that is open."""
        if self.task.startswith(LM_EVAL):
            from tripod.evaluation.tasks.lm_eval_model import score_lm_eval_task

            include = None if self.include is None else Path(self.include)
            name = self.task.removeprefix(LM_EVAL)
            return Table.of(await score_lm_eval_task(engine, name, limit=self.limit, shots=self.shots, seed=self.seed, include=include))
        task, folder = self._found()
        asking = Asking(limit=self.limit, shots=self.shots or 0, seed=self.seed)
        scores = await score_task(engine, task, folder, asking, progress=progress)
        rows: list[Row] = [*scores.rows()]
        if self.items:
            rows += [
                {"task": row["task"], "group": row["group"], "item": row["item"], "metric": name, "value": value}
                for row in scores.item_rows()
                for name, value in row.items()
                if name not in ("task", "item", "group")
            ]
        return Table.of(rows)

    def _found(self) -> tuple[Task, Path]:
        """The task, and the folder in which its file lies."""
        if self.task.startswith(TEXT):
            path = Path(self.task.removeprefix(TEXT))
            if not path.is_file():
                raise ConfigError(f"the text {path} is not there; give a file of text, or a .jsonl whose lines have a field text")
            return texts_task(path.stem, path.name), path.parent
        if self.data is None:
            raise ConfigError(f"the task {self.task} reads a file; give the folder with the data sets: --data FOLDER")
        [task] = tasks_named([self.task])
        return task, Path(self.data)


class ScoresTasks(ABC):
    """A study that measures scores of tasks, all of them on one opening of a checkpoint."""

    @abstractmethod
    def scores(self) -> Sequence[TaskScore]:
        """The tasks, with what is kept of each."""

    def depends_on(self, checkpoint: Checkpoint) -> Mapping[str, str]:
        return {score.task: str(score.depends_on(checkpoint)) for score in self.scores()}

    async def measure(self, checkpoint: Checkpoint, progress: Progress) -> Table:
        async with checkpoint.engine() as engine:
            return Table.joined([await score.measure_on(engine, progress) for score in self.scores()])


async def score_checkpoints(
    scores: Sequence[TaskScore], checkpoints: Sequence[Checkpoint], *, kept: Path | None = None, progress: Progress = no_progress
) -> Table:
    """Score checkpoints on tasks, opening each once, and only where something is not kept yet.

    Args:
        scores: the tasks.
        checkpoints: what `find_checkpoints` found.
        kept: the folder in which scores are looked for and kept; None keeps none.
        progress: told the stage "checkpoints", and each task's name with asks done.

    Returns:
        A row a metric, behind what it was measured on (`Checkpoint.about`).

    Raises:
        ConfigError: a task is not known or its file not there, which is said before a model is opened.
    """
    rows: list[Row] = []
    for score in scores:
        score.depends_on(checkpoints[0])
    for done, checkpoint in enumerate(checkpoints):
        progress("checkpoints", done, len(checkpoints))
        about = checkpoint.about()
        async with AsyncExitStack() as stack:
            engine: Engine | None = None
            for score in scores:
                path = None if kept is None else measurement_path(score, checkpoint, kept)
                if path is not None and path.is_file():
                    table = Table.read(path)
                else:
                    if engine is None:
                        engine = await stack.enter_async_context(checkpoint.engine())
                    table = await score.measure_on(engine, progress)
                    if path is not None:
                        table.write(path)
                rows += [{**about, **row} for row in table]
    progress("checkpoints", len(checkpoints), len(checkpoints))
    return Table.of(rows)


_PATH = re.compile(r"[^\s'\"\[\]{},:]+")  # in a task file, such as one of its data_files


def _task_files_hash(folder: Path) -> str:
    """Of the files of a folder, and of those elsewhere that its task files name by paths without spaces.

    Raises:
        ConfigError: there is no task file.
    """
    task_files = sorted(folder.rglob("*.yaml"))
    if not task_files:
        raise ConfigError(f"{folder} holds no task file of lm-eval; give a folder of .yaml files, or leave it out for lm-eval's own tasks")
    files = {path for path in folder.rglob("*") if path.is_file() and path.parent.name != "__pycache__"}
    for task_file in task_files:
        named = (Path(match) for match in _PATH.findall(task_file.read_text(encoding="utf-8")))
        files |= {path for path in named if path.suffix and path.is_file()}
    digest = hashlib.sha256()
    for file in sorted(files):
        content = file.read_bytes()
        digest.update(f"\0{file}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()
