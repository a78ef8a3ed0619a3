"""What a journal holds, as values, and the statements that read and change it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeAlias

from tripod.flows.database import Execute, Row

State: TypeAlias = Literal["ready", "running", "waiting", "sleeping", "in doubt", "done", "failed", "cancelled"]
StepState: TypeAlias = Literal["intent", "done", "failed", "stopped", "skipped", "waiting", "sleeping"]
FINISHED: tuple[State, ...] = ("done", "failed", "cancelled")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutionRecord:
    """One execution, as its row says. Times are seconds of the journal's clock."""

    id: str
    function: str
    arguments: str  # JSON, by name
    fingerprint: str  # of the code that began it, or that it was last resumed with
    state: State = "ready"
    result: str | None = None
    error: str | None = None
    owner: str | None = None  # the worker that runs it
    lease_until_s: float | None = None  # when others may think that the worker is dead
    wake_at_s: float | None = None  # when it goes on if it sleeps, or nobody answers; while it runs: when a question of its was answered
    forked_from: str | None = None
    created_s: float
    updated_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """One step of an execution: an effect, a question to a person, or a time to wait for."""

    path: str
    position: int
    name: str
    arguments: str
    is_safe: bool  # whether it may be called again when nobody knows whether it was: it is repeatable, or takes a key
    state: StepState
    result: str | None = None
    error: str | None = None
    num_attempts: int = 1
    started_s: float
    ended_s: float | None = None

    @property
    def is_in_doubt(self) -> bool:
        return self.state == "intent" and not self.is_safe


_EXECUTION = ", ".join(field.name for field in fields(ExecutionRecord))
_STEP = ", ".join(field.name for field in fields(StepRecord))


def insert_execution(execute: Execute, record: ExecutionRecord) -> bool:
    """Whether it is new; one of this id that is there stays as it is."""
    names = [field.name for field in fields(record)]
    marks = ", ".join("?" * len(names))
    sql = f"INSERT INTO executions ({_EXECUTION}) VALUES ({marks}) ON CONFLICT (id) DO NOTHING RETURNING id"
    return bool(execute(sql, *(getattr(record, name) for name in names)))


def read_execution(execute: Execute, id: str) -> ExecutionRecord | None:
    rows = execute(f"SELECT {_EXECUTION} FROM executions WHERE id = ?", id)
    return _execution(rows[0]) if rows else None


def read_executions(execute: Execute, where: str, *parameters: Any) -> list[ExecutionRecord]:
    return [_execution(row) for row in execute(f"SELECT {_EXECUTION} FROM executions WHERE {where}", *parameters)]


def read_steps(execute: Execute, id: str) -> list[StepRecord]:
    rows = execute(f"SELECT {_STEP} FROM steps WHERE execution = ? ORDER BY position", id)
    return [StepRecord(**{**dict(zip(_STEP.split(", "), row, strict=True)), "is_safe": bool(row[4])}) for row in rows]


def lock_execution(execute: Execute, id: str, now_s: float) -> State | None:
    """How an execution stands, which nobody else changes until the transaction ends; None if there is none."""
    rows = execute("UPDATE executions SET updated_s = ? WHERE id = ? RETURNING state", now_s, id)
    return rows[0][0] if rows else None


def take_lease(execute: Execute, id: str, owner: str, now_s: float, lease_s: float) -> bool:
    """Make an execution one's own, if nobody works on it."""
    sql = (
        "UPDATE executions SET owner = ?, lease_until_s = ?, updated_s = ?, state = 'running', wake_at_s = NULL "
        "WHERE id = ? AND (owner IS NULL OR lease_until_s < ?) AND state NOT IN ('done', 'cancelled') RETURNING id"
    )
    return bool(execute(sql, owner, now_s + lease_s, now_s, id, now_s))


def holds_lease(execute: Execute, id: str, owner: str, now_s: float, lease_s: float) -> bool:
    """Whether an execution is still one's own; if so, for another while. Locks its row until the transaction ends."""
    sql = "UPDATE executions SET lease_until_s = ?, updated_s = ? WHERE id = ? AND owner = ? AND state = 'running' RETURNING id"
    return bool(execute(sql, now_s + lease_s, now_s, id, owner))


def release(execute: Execute, id: str, owner: str, now_s: float, **changes: Any) -> None:
    """Give an execution that is still one's own back, and say how it stands; where an answer came while it ran, it is ready."""
    sql = "UPDATE executions SET updated_s = ? WHERE id = ? AND owner = ? AND state = 'running' RETURNING wake_at_s"
    if rows := execute(sql, now_s, id, owner):
        if rows[0][0] is not None and changes["state"] in ("waiting", "sleeping"):
            changes |= {"state": "ready", "wake_at_s": None}
        update_execution(execute, id, **{"owner": None, "lease_until_s": None, "wake_at_s": None, **changes})


def write_step(execute: Execute, id: str, step: StepRecord) -> None:
    """Add a step, or replace what is known of it."""
    names = [field.name for field in fields(step)]
    values = [int(value) if isinstance(value := getattr(step, name), bool) else value for name in names]
    changes = ", ".join(f"{name} = excluded.{name}" for name in names if name != "path")
    marks = ", ".join("?" * (len(names) + 1))
    execute(f"INSERT INTO steps (execution, {_STEP}) VALUES ({marks}) ON CONFLICT (execution, path) DO UPDATE SET {changes}", id, *values)


def update_execution(execute: Execute, id: str, **changes: Any) -> None:
    execute(f"UPDATE executions SET {', '.join(f'{name} = ?' for name in changes)} WHERE id = ?", *changes.values(), id)


def delete_executions(execute: Execute, before_s: float, states: Collection[State]) -> int:
    marks = ", ".join("?" * len(states))
    return len(execute(f"DELETE FROM executions WHERE updated_s < ? AND state IN ({marks}) RETURNING id", before_s, *states))


def _execution(row: Row) -> ExecutionRecord:
    return ExecutionRecord(**dict(zip(_EXECUTION.split(", "), row, strict=True)))
