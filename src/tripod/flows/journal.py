"""Executions that survive a crash: begun, resumed, answered, forked and forgotten."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from uuid import uuid4

import anyio

from tripod.errors import ConfigError, JournalError
from tripod.flows.database import Database, Execute, UnreachableError, open_database
from tripod.flows.durable import Durable, as_durable
from tripod.flows.effects import execution, scope
from tripod.flows.records import (
    FINISHED,
    ExecutionRecord,
    State,
    StepRecord,
    delete_executions,
    insert_execution,
    lock_execution,
    read_execution,
    read_executions,
    read_steps,
    release,
    take_lease,
    update_execution,
    write_step,
)
from tripod.flows.values import decode, decode_arguments, encode, encode_arguments, encode_untyped
from tripod.flows.working import AnswerError, ChangedError, LostLeaseError, Parted, Working
from tripod.trace import span

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """Where an execution stands."""

    id: str
    function: str
    state: State
    value: Any = None  # what the function returned; None unless `state` is "done"
    error: str | None = None
    waiting_for: tuple[str, ...] = ()  # paths of questions to a person: journal.answer(id, path, ...)
    in_doubt: tuple[str, ...] = ()  # paths of effects of which nobody knows whether they happened: resume with retry= or skip=
    wake_at_s: float | None = None

    @property
    def result(self) -> Any:
        """The value of an execution that is done.

        Raises:
            JournalError: it is not; says what it waits for.
        """
        if self.state == "done":
            return self.value
        raise JournalError(f"execution {self.id!r} of {self.function} has no result: it is {self.state}{self.hint}")

    @property
    def hint(self) -> str:
        """What there is to do."""
        match self.state:
            case "in doubt":
                return (
                    f"; nobody knows whether {', '.join(self.in_doubt)} happened: look, then resume with retry=[...] to do it again, or "
                    "with skip={path: result} to go on as if it had happened"
                )
            case "waiting":
                name = self.waiting_for[0]
                limit = "" if self.wake_at_s is None else f", until {self.wake_at_s:.0f} s of the journal's clock"
                names = ", ".join(self.waiting_for)
                return f" for {names}{limit}: journal.answer({self.id!r}, {name!r}, ...) or tripod journal answer; resume"
            case "sleeping":
                return f" until {self.wake_at_s:.0f} s of the journal's clock; resume it then"
            case "failed":
                return f": {self.error}"
            case _:
                return ""


class Journal:
    """Keeps executions: `async with Journal("work.db") as journal: await journal.run(order, "lamp", id="order-17")`.

    Args:
        location: a file, `postgresql://user@host/database#schema`, or ":memory:".
        lease_s: after so long without a sign of life others take an execution over.
        clock: seconds since 1970; a simulated one for tests. None: that of this machine, or of the PostgreSQL server.
    """

    def __init__(self, location: str | Path, *, lease_s: float = 30.0, clock: Callable[[], float] | None = None) -> None:
        if lease_s <= 0:
            raise ConfigError(f"lease_s={lease_s} is over at once; give seconds above 0")
        self.location, self.lease_s, self._clock = str(location), lease_s, clock
        self._database: Database | None = None

    async def __aenter__(self) -> Self:
        self._database = await open_database(self.location)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self._database is not None:
            await self._database.aclose()
        self._database = None

    def clock(self) -> float:
        """Seconds since 1970, by the clock that all who work on this journal share."""
        return self._clock() if self._clock is not None else self._opened.now()

    async def run(self, function: Any, /, *args: Any, id: str | None = None, **kwargs: Any) -> Execution:
        """Begin an execution, or go on with the one of this id. One that is done is not run again.

        Args:
            function: a `@durable` function, a flow, or any async function.
            args: for the function.
            id: names the execution; None: a new name.
            kwargs: for the function.

        Returns:
            Where it stands when it cannot go on by itself: done, waiting, sleeping, or in doubt.

        Raises:
            ConfigError: the arguments do not fit, or the execution of this id has others.
            JournalError: somebody else works on it, or its code has changed.
            Exception: what the function raised; the execution has failed.
        """
        durable = as_durable(function)
        arguments = encode_arguments(durable.bind(args, kwargs), durable.hints, durable.name)
        id = id or f"{durable.name}-{uuid4().hex[:12]}"
        now_s = self.clock()
        record = ExecutionRecord(
            id=id,
            function=durable.name,
            arguments=arguments,
            fingerprint=durable.fingerprint,
            created_s=now_s,
            updated_s=now_s,
        )
        if not await self.transaction(lambda execute: insert_execution(execute, record)):
            known = await self.record(id)
            if (known.function, known.arguments) != (record.function, arguments):
                raise ConfigError(
                    f"execution {id!r} is {known.function}({known.arguments}), not {record.function}({arguments}); give the new one "
                    "another id"
                )
        return await self.resume(id, durable)

    async def resume(
        self,
        id: str,
        function: Any,
        *,
        retry: Collection[str] = (),
        skip: Mapping[str, Any] | None = None,
        accept_changes: bool = False,
    ) -> Execution:
        """Go on with an execution: results are replayed, effects are not.

        Args:
            id: of the execution.
            function: what it runs.
            retry: paths of steps to be done again: those in doubt, or failed ones.
            skip: paths of steps in doubt, each with the result to go on with.
            accept_changes: go on although the code has changed since; a recorded step that it does not ask for is still an error.

        Raises:
            ConfigError: there is no such execution, or no such step to decide on.
            ChangedError: the code has changed since.
            JournalError: somebody else works on it, or the execution is cancelled.
        """
        durable = as_durable(function)
        record = await self.record(id)
        if record.function != durable.name:
            raise ConfigError(f"execution {id!r} runs {record.function!r}, not {durable.name!r}")
        if record.state == "cancelled":
            raise JournalError(f"execution {id!r} was cancelled; fork it to go on from one of its steps")
        if record.state == "done":
            return await self.look(id, durable)
        owner = f"{socket.gethostname()}:{os.getpid()}:{uuid4().hex[:8]}"
        if not await self.transaction(lambda execute: take_lease(execute, id, owner, self.clock(), self.lease_s)):
            busy = await self.record(id)
            left_s = (busy.lease_until_s or 0.0) - self.clock()
            raise JournalError(f"execution {id!r} is worked on by {busy.owner}; without a sign of life it may be taken in {left_s:.1f} s")
        ended: dict[str, Any]
        ended = before = {"state": record.state if record.state != "running" else "ready", "wake_at_s": record.wake_at_s}
        try:
            if record.fingerprint != durable.fingerprint and not accept_changes:
                raise ChangedError(
                    f"execution {id!r}: the code of {durable.name!r} has changed since it ran ({record.fingerprint} then, "
                    f"{durable.fingerprint} now); resume it with the code that began it, or with accept_changes=True, which compares every "
                    "recorded step as it is replayed"
                )
            steps = await self.transaction(lambda execute: self._decided(execute, id, retry, skip or {}))
            in_doubt = any(step.is_in_doubt and path not in retry for path, step in steps.items())
            ended = {"state": "in doubt"} if in_doubt else {"state": "ready", "fingerprint": durable.fingerprint, "error": None}
            if not in_doubt:
                await self._work(record, durable, Working(self._opened, id, owner, self.lease_s, self.clock, steps), ended)
        except ChangedError:
            ended = before
            raise
        finally:
            with anyio.CancelScope(shield=True):
                await self.transaction(lambda execute: release(execute, id, owner, self.clock(), **ended))
        return await self.look(id, durable)

    async def _work(self, record: ExecutionRecord, durable: Durable[..., Any], working: Working, ended: dict[str, Any]) -> None:
        """Run the function; `ended` says at every moment what is to be written when it ends there."""
        raised: Exception | None = None
        async with anyio.create_task_group() as group:
            group.start_soon(working.live, group.cancel_scope.cancel)
            tokens = execution.set(working), scope.set("")
            try:
                with span(durable.name, execution=record.id) as told:
                    try:
                        value = await durable.inside(**decode_arguments(record.arguments, durable.hints, durable.name))
                        await working.settle()
                    except (Parted, BaseExceptionGroup):
                        if not working.is_parted:
                            raise
                        told["state"] = working.state
                        ended.update(state=working.state, wake_at_s=working.wake_at_s)
                    else:
                        working.expect_all_asked()
                        result = encode(value, durable.hints.get("return", Any), f"the result of {durable.name!r}")
                        ended.update(state="done", result=result, error=None)
            except Exception as error:
                raised = error
            finally:
                execution.reset(tokens[0])
                scope.reset(tokens[1])
            group.cancel_scope.cancel()
        if working.is_lost:
            raise LostLeaseError(f"execution {record.id!r} was taken by another worker, or cancelled; nothing more is done here")
        if raised is not None:
            reason = f"{type(raised).__name__}: {raised}"
            if isinstance(raised, ChangedError | UnreachableError):
                raise raised
            if isinstance(raised, AnswerError):
                ended.update(state="waiting", wake_at_s=working.wake_at_s, error=reason)
                raise raised
            if working.in_doubt:
                ended.update(state="in doubt", error=reason)
                return
            ended.update(state="failed", error=reason)
            raise raised

    async def answer(self, id: str, path: str, value: Any) -> None:
        """Give a person's answer; the execution may then be resumed.

        Raises:
            ConfigError: it does not wait for that.
        """

        def write(execute: Execute) -> None:
            now_s = self.clock()
            state = lock_execution(execute, id, now_s)
            waiting = {step.path: step for step in read_steps(execute, id) if step.state == "waiting"}
            if state is None:
                raise ConfigError(f"there is no execution {id!r} in {self.location}")
            if path not in waiting:
                names = ", ".join(waiting) or "nobody"
                raise ConfigError(f"execution {id!r}, which is {state}, does not wait for {path!r}; it waits for {names}")
            write_step(execute, id, replace(waiting[path], state="done", result=encode_untyped(value), ended_s=now_s))
            if state == "waiting":
                update_execution(execute, id, state="ready")
            elif state == "running":  # its worker has not parted yet; it will be told
                update_execution(execute, id, wake_at_s=now_s)

        await self.transaction(write)

    async def fork(self, id: str, *, before: str | None = None, new_id: str | None = None) -> str:
        """A new execution that shares the past of another: all its steps up to, and without, `before`. Resume it to go on from there.

        Returns:
            Its id. Its steps have keys of their own, so its effects are new ones.
        """
        new_id = new_id or f"{id}-fork-{uuid4().hex[:6]}"
        record = await self.record(id)

        def write(execute: Execute) -> None:
            steps = read_steps(execute, id)
            paths = [step.path for step in steps]
            if before is not None and before not in paths:
                raise ConfigError(f"execution {id!r} has no step {before!r}; it has {', '.join(paths) or 'none'}")
            now_s = self.clock()
            fresh = ExecutionRecord(
                id=new_id,
                function=record.function,
                arguments=record.arguments,
                fingerprint=record.fingerprint,
                forked_from=id,
                created_s=now_s,
                updated_s=now_s,
            )
            if not insert_execution(execute, fresh):
                raise ConfigError(f"there is an execution {new_id!r} already; give the fork another id")
            for step in steps[: paths.index(before) if before is not None else None]:
                write_step(execute, new_id, step)

        await self.transaction(write)
        return new_id

    async def cancel(self, id: str) -> None:
        """End an execution; who works on it stops before its next effect.

        Raises:
            ConfigError: there is no such execution.
            JournalError: it is done.
        """
        await self.record(id)

        def write(execute: Execute) -> None:
            if lock_execution(execute, id, self.clock()) == "done":
                raise JournalError(f"execution {id!r} is done, so it cannot be cancelled")
            update_execution(execute, id, state="cancelled", owner=None)

        await self.transaction(write)

    async def forget(self, older_than_s: float, states: Collection[State] = FINISHED) -> int:
        """Delete executions that nothing happened to for so long; returns how many."""
        before_s = self.clock() - older_than_s
        return await self.transaction(lambda execute: delete_executions(execute, before_s, states))

    async def due(self) -> list[ExecutionRecord]:
        """Executions that can go on: new or answered, slept or waited long enough, or left by a worker that gives no sign of life."""
        now_s = self.clock()
        where = (
            "state = 'ready' OR (state IN ('sleeping', 'waiting') AND wake_at_s <= ?) OR (state = 'running' AND lease_until_s < ?) "
            "ORDER BY created_s, id"
        )
        return await self.transaction(lambda execute: read_executions(execute, where, now_s, now_s))

    async def work(self, functions: Collection[Any], *, max_concurrency: int = 8) -> int:
        """Go on with all that is due, until nothing is; returns how many executions were worked on.

        Any number of workers may do this on one journal. A function that raises has failed, as the journal says, and the others go on.
        """
        known = {durable.name: durable for durable in map(as_durable, functions)}
        num_worked = 0
        limiter = anyio.CapacityLimiter(max_concurrency)
        refused: set[str] = set()  # would be refused again

        async def one(record: ExecutionRecord) -> None:
            nonlocal num_worked
            async with limiter:
                try:
                    await self.resume(record.id, known[record.function])
                except Exception:
                    refused.add(record.id)
                num_worked += 1

        while due := [record for record in await self.due() if record.function in known and record.id not in refused]:
            async with anyio.create_task_group() as group:
                for record in due:
                    group.start_soon(one, record)
        return num_worked

    async def record(self, id: str) -> ExecutionRecord:
        """The row of an execution.

        Raises:
            ConfigError: there is none.
        """
        found = await self.transaction(lambda execute: read_execution(execute, id))
        if found is None:
            raise ConfigError(f"there is no execution {id!r} in {self.location}")
        return found

    async def records(self, *, limit: int = 1000) -> list[ExecutionRecord]:
        """The rows of all executions, the newest first."""
        return await self.transaction(lambda execute: read_executions(execute, "TRUE ORDER BY created_s DESC, id LIMIT ?", limit))

    async def history(self, id: str) -> list[StepRecord]:
        """The steps of an execution, in the order in which they were begun."""
        await self.record(id)
        return await self.transaction(lambda execute: read_steps(execute, id))

    async def look(self, id: str, function: Any = None) -> Execution:
        """Where an execution stands. Without its function the value is what JSON says."""
        record = await self.record(id)
        steps = await self.transaction(lambda execute: read_steps(execute, id))
        hint = as_durable(function).hints.get("return", Any) if function is not None else Any
        return Execution(
            id=id,
            function=record.function,
            state=record.state,
            value=decode(record.result, hint, f"the result of {record.function!r}") if record.result is not None else None,
            error=record.error,
            waiting_for=tuple(step.path for step in steps if step.state == "waiting"),
            in_doubt=tuple(step.path for step in steps if step.is_in_doubt) if record.state == "in doubt" else (),
            wake_at_s=record.wake_at_s,
        )

    def _decided(self, execute: Execute, id: str, retry: Collection[str], skip: Mapping[str, Any]) -> dict[str, StepRecord]:
        """The steps, after what was decided on those in doubt."""
        steps = {step.path: step for step in read_steps(execute, id)}
        open_paths = [path for path, step in steps.items() if step.state in ("intent", "failed", "stopped")]
        for path in [*retry, *skip]:
            if path not in open_paths:
                raise ConfigError(
                    f"execution {id!r} has no step {path!r} that is in doubt or has failed; there are: {', '.join(open_paths) or 'none'}"
                )
        for path in retry:
            steps[path] = replace(steps[path], state="intent", error=None)
        for path, value in skip.items():
            steps[path] = replace(steps[path], state="skipped", result=encode_untyped(value), error=None, ended_s=self.clock())
        for path in [*retry, *skip]:
            write_step(execute, id, steps[path])
        return steps

    @property
    def _opened(self) -> Database:
        if self._database is None:
            raise ConfigError(f"the journal {self.location} is not open; use it in 'async with Journal(...) as journal:'")
        return self._database

    async def transaction(self, work: Callable[[Execute], T]) -> T:
        """Run statements, such as those of `records`, in one transaction: for what keeps other histories in a journal."""
        return await self._opened.transaction(work)
