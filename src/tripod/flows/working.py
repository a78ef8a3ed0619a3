"""An execution at work: each effect's intent is in the journal before it is called, its result after, and what has a result is replayed."""

from __future__ import annotations

import asyncio
import inspect
import math
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any, NoReturn

import anyio
import anyio.lowlevel
import anyio.to_thread

from tripod.errors import JournalError
from tripod.flows.database import Database, Execute
from tripod.flows.effects import KEY, Effect, execution
from tripod.flows.hints import hints_of
from tripod.flows.records import State, StepRecord, StepState, holds_lease, read_steps, write_step
from tripod.flows.values import decode, encode, encode_arguments, key_of
from tripod.trace import span

_TURNS = 10  # of the event loop, in which a branch begins its next step if it is going to
_PATIENCE_S = 10.0


class EffectError(JournalError):
    """An effect raised. Inside of an execution this rises in its place, when it happens and whenever it is replayed.

    Attributes:
        kind: the name of the exception, such as "TimeoutError".
    """

    def __init__(self, step: str, told: str) -> None:
        super().__init__(f"{step} failed: {told}")
        self.step, self.kind = step, told.partition(":")[0]


class AnswerError(JournalError):
    """An answer is of another type than was asked for. The question stands again."""


class ChangedError(JournalError):
    """The code that an execution is resumed with does not ask for the steps that the journal holds."""


class LostLeaseError(JournalError):
    """Another worker has taken an execution, or somebody cancelled it; this one stops before its next effect."""


class Parted(BaseException):
    """Leaves an execution that waits for a person or a time, or is in doubt. No error: it passes every `except Exception`."""


class Working:
    """What an execution asks while it runs.

    Args:
        database: the journal's.
        id: of the execution.
        owner: the worker, as the lease names it.
        lease_s: how long the others wait for a sign of life.
        clock: seconds; the journal's.
        steps: what the journal holds so far.
    """

    def __init__(
        self, database: Database, id: str, owner: str, lease_s: float, clock: Callable[[], float], steps: Mapping[str, StepRecord]
    ) -> None:
        self.id, self.owner = id, owner
        self.state: State | None = None  # "waiting", "sleeping" or "in doubt", once it parts
        self.wake_at_s: float | None = None
        self.is_lost = False  # to another worker, or cancelled
        self._database, self._lease_s, self._clock = database, lease_s, clock
        self._steps = dict(steps)
        self._left = set(steps)  # recorded, and not asked for yet
        self._asked: Counter[str] = Counter()
        self._position = max((step.position for step in steps.values()), default=0)
        self._cut_short: list[str] = []  # effects that were cancelled, with all of the execution or by its code
        self._num_flying = 0  # effects that are being called
        self._num_busy = self._num_begun = 0  # steps under way, and so far
        self._landed = anyio.Event()
        self._wakes: list[float] = []  # when branches that part want to go on

    @property
    def is_parted(self) -> bool:
        return self.state is not None

    @property
    def left_over(self) -> list[str]:
        """Steps that the journal holds and the code has not asked for, in order."""
        return sorted(self._left, key=lambda path: self._steps[path].position)

    def expect_all_asked(self) -> None:
        """At the end.

        Raises:
            ChangedError: the code did not ask for all that the journal holds.
        """
        if self._left:
            raise ChangedError(
                f"execution {self.id!r}: the code ended without asking for {', '.join(self.left_over)}, which the journal holds; resume it "
                "with the code that began it, or fork it"
            )

    @property
    def in_doubt(self) -> list[str]:
        """Effects that were cut short, and of which nobody knows whether they happened."""
        return [path for path in self._cut_short if self._steps[path].is_in_doubt]

    async def settle(self) -> None:
        """The code goes on. Effects that it cut short, at a time limit for one, are written down as stopped; one that must not be repeated
        is in doubt, and the execution parts."""
        if _is_cancelled():
            return  # it does not go on, it tidies up
        for path in [path for path in self._cut_short if self._steps[path].is_safe]:
            await self._keep(replace(self._steps[path], state="stopped", ended_s=self._clock()))
            if path in self._cut_short:
                self._cut_short.remove(path)
        if self.in_doubt:
            await self._part("in doubt")

    def unique(self, path: str) -> str:
        self._asked[path] += 1
        number = self._asked[path]
        return path if number == 1 else f"{path}#{number}"

    async def perform(self, path: str, effect: Effect[..., Any], arguments: Mapping[str, Any]) -> Any:
        """Replay a step, or do it."""
        async with self._step():
            hints = hints_of(effect.signed)
            given = {name: value for name, value in arguments.items() if name != KEY}
            takes_key = effect.takes_key
            record, is_new = await self._recorded(
                path, effect.name, encode_arguments(given, hints, repr(path)), is_safe=takes_key or effect.repeatable
            )
            if not is_new and record.state != "intent":
                with span(effect.name, path=path, is_replayed=True):
                    if record.state == "stopped":
                        await self._stop_again(record)
                    return self._replayed(record, hints.get("return", Any))
            if not is_new:  # it was begun before, and may be begun again
                record = replace(record, num_attempts=record.num_attempts + 1, started_s=self._clock())
                await self._keep(record)
            if takes_key and not arguments.get(KEY):
                arguments = {**arguments, KEY: key_of(self.id, path)}
            self._num_flying += 1
            try:
                with span(effect.name, path=path), _outside():  # what an effect calls is a part of it
                    found = await self._called(effect.function, arguments)
                encoded = encode(found, hints.get("return", Any), f"the result of {path!r}")
            except Exception as error:
                told = f"{type(error).__name__}: {error}"
                await self._keep(replace(record, state="failed", error=told, ended_s=self._clock()))
                raise EffectError(path, told) from error
            except anyio.get_cancelled_exc_class():
                self._cut_short.append(path)
                raise
            finally:
                self._num_flying -= 1
            record = replace(record, state="done", result=encoded, ended_s=self._clock())
            await self._keep(record)
            return self._replayed(record, hints.get("return", Any))

    async def wait(self, path: str, question: str, returns: Any, timeout_s: float | None) -> Any:
        """The answer of a person, once the journal holds it."""
        asked = {"question": question} if timeout_s is None else {"question": question, "timeout_s": timeout_s}
        async with self._step():
            record, _ = await self._recorded(path, path, encode_arguments(asked, {}, path), is_safe=True, state="waiting")
            if record.state == "intent":  # somebody decided that it is asked again
                record = replace(record, state="waiting", started_s=self._clock(), ended_s=None)
                await self._keep(record)
            late_s = None if timeout_s is None else record.started_s + timeout_s
            if record.state == "waiting" and late_s is not None and self._clock() >= late_s and await self._gave_up(record):
                record = self._steps[path]
        if record.state == "waiting":
            await self._part("waiting", late_s)
        if record.state == "failed":
            raise TimeoutError(record.error)
        try:
            return self._replayed(record, returns)
        except JournalError as error:
            await self._keep(replace(record, state="waiting", result=None, ended_s=None))
            self.wake_at_s = late_s
            raise AnswerError(f"{error}; answer again") from error

    async def sleep(self, path: str, seconds: float) -> None:
        """Return once the journal's clock has gone on so far since the first call."""
        async with self._step():
            record, _ = await self._recorded(path, path, encode_arguments({"seconds": seconds}, {}, path), is_safe=True, state="sleeping")
        wake_at_s = record.started_s + seconds
        if self._clock() < wake_at_s:
            await self._part("sleeping", wake_at_s)

    async def _gave_up(self, record: StepRecord) -> bool:
        """Whether a question is answered no more: an answer that came since the journal was read counts, and makes it ready."""
        late = replace(record, state="failed", error=f"nobody answered {record.path!r} in time", ended_s=self._clock())

        def write(execute: Execute) -> None:
            if any(step.path == record.path and step.state == "waiting" for step in read_steps(execute, self.id)):
                write_step(execute, self.id, late)
                self._steps[record.path] = late

        await self._in_lease(write)
        return self._steps[record.path] is late

    async def live(self, stop: Callable[[], None]) -> None:
        """Renew the lease until cancelled; `stop` is called when it is lost."""
        while not self.is_lost:
            await anyio.sleep(self._lease_s / 3)
            with suppress(JournalError):  # it is lost, which ends this, or its database is away for a while
                await self._in_lease(lambda execute: None)
        stop()

    @asynccontextmanager
    async def _step(self) -> AsyncIterator[None]:
        """A step is under way. None is begun once the execution parts, nor past an effect that is in doubt."""
        if self.is_parted:
            await anyio.sleep_forever()  # until the parting reaches this task
        await self.settle()
        self._num_busy += 1
        self._num_begun += 1
        try:
            yield
        finally:
            self._num_busy -= 1
            self._landed.set()
            self._landed = anyio.Event()

    async def _stop_again(self, record: StepRecord) -> NoReturn:
        """Wait until what cut the call short does so again.

        Raises:
            ChangedError: it does not.
        """
        took_s = (record.ended_s or record.started_s) - record.started_s
        await anyio.sleep(2 * took_s + _PATIENCE_S)
        raise ChangedError(
            f"execution {self.id!r}: the code cut step {record.path!r} short after {took_s:.1f} s when it ran, and does not now; resume it "
            f"with the code that began it, or with retry=[{record.path!r}]"
        )

    async def _recorded(
        self, path: str, name: str, arguments: str, *, is_safe: bool, state: StepState = "intent"
    ) -> tuple[StepRecord, bool]:
        """What the journal holds of a step, or its intent, now in the journal."""
        known = self._steps.get(path)
        if known is not None:
            self._left.discard(path)
            if known.name != name or known.arguments != arguments:
                raise ChangedError(
                    f"execution {self.id!r}: step {path!r} was {known.name}({known.arguments}) when it ran, and is {name}({arguments}) "
                    "now; resume it with the code that began it, or fork it before this step"
                )
            return known, False
        if self._left and not self._num_flying and "[" not in path:
            first = self._steps[self.left_over[0]]
            raise ChangedError(
                f"execution {self.id!r}: the code asks for step {path!r}, where the journal holds {first.path!r} "
                f"({first.name}({first.arguments})); resume it with the code that began it, or fork it before this step"
            )
        self._position += 1
        record = StepRecord(
            path=path,
            position=self._position,
            name=name,
            arguments=arguments,
            is_safe=is_safe,
            state=state,
            started_s=self._clock(),
        )
        self._steps[path] = record
        await self._keep(record)
        return record, True

    def _replayed(self, record: StepRecord, hint: Any) -> Any:
        if record.state == "failed":
            raise EffectError(record.path, record.error or "")
        return decode(record.result or "null", hint, f"the result of {record.path!r}")

    async def _called(self, function: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
        if inspect.iscoroutinefunction(function):
            return await function(**arguments)
        found = await anyio.to_thread.run_sync(partial(function, **arguments))  # so that the lease is renewed meanwhile
        return await found if isinstance(found, Awaitable) else found

    async def _keep(self, record: StepRecord) -> None:
        """Write a step, if the execution is still ours; a cancellation waits for it, so that what is known is not lost."""
        with anyio.CancelScope(shield=True):
            await self._in_lease(lambda execute: write_step(execute, self.id, record))
        self._steps[record.path] = record

    async def _in_lease(self, work: Callable[[Execute], None]) -> None:
        def check(execute: Execute) -> bool:
            if holds_lease(execute, self.id, self.owner, self._clock(), self._lease_s):
                work(execute)
                return True
            return False

        if not await self._database.transaction(check):
            self.is_lost = True
            raise LostLeaseError(f"execution {self.id!r} was taken by another worker, or cancelled; nothing more is done here")

    async def _part(self, state: State, wake_at_s: float | None = None) -> NoReturn:
        """Leave once no branch goes on by itself: an effect that was cancelled would be in doubt, and a question not asked."""
        if wake_at_s is not None:
            self._wakes.append(wake_at_s)
        while True:
            while self._num_busy:
                await self._landed.wait()
            num_begun = self._num_begun
            for _ in range(_TURNS):
                await anyio.lowlevel.checkpoint()
            if not self._num_busy and num_begun == self._num_begun:
                break
        if not self.is_parted:
            asks = any(step.state == "waiting" for step in self._steps.values())
            self.state = "waiting" if state == "sleeping" and asks else state
            self.wake_at_s = None if state == "in doubt" else min(self._wakes, default=None)
        raise Parted


def _is_cancelled() -> bool:
    """Whether this task is being ended, by a scope around it or, on asyncio, by itself."""
    if anyio.current_effective_deadline() == -math.inf:
        return True
    if anyio.get_cancelled_exc_class() is not asyncio.CancelledError:
        return False
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


@contextmanager
def _outside() -> Iterator[None]:
    """As if no execution were at work."""
    token = execution.set(None)
    try:
        yield
    finally:
        execution.reset(token)
