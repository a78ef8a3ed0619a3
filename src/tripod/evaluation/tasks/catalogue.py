"""All tasks that Tripod scores by itself, by name."""

from __future__ import annotations

from collections.abc import Sequence

from tripod.errors import ConfigError
from tripod.evaluation.tasks import bias, multiple_choice, open_answer
from tripod.evaluation.tasks.task import Task

TASKS = {task.name: task for task in (*open_answer.TASKS, *multiple_choice.TASKS, *bias.TASKS)}


def tasks_named(names: Sequence[str]) -> tuple[Task, ...]:
    """Raises:
    ConfigError: no task has one of the names.
    """
    if unknown := [name for name in names if name not in TASKS]:
        raise ConfigError(
            f"no task is named {', '.join(unknown)}; there are {', '.join(TASKS)}. Those of lm-eval are asked for as lm-eval:NAME"
        )
    if not names:
        raise ConfigError(f"no task is named; there are {', '.join(TASKS)}")
    return tuple(TASKS[name] for name in dict.fromkeys(names))
