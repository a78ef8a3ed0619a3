"""The step loop: plan, run, commit, deliver; on a thread of its own, with state changes taken between steps."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch

from tripod.engine.execution.runner import Runner, StepResult
from tripod.engine.output import RequestOutput
from tripod.engine.policy.policy import Policy, Schedule
from tripod.engine.policy.request import Request, Stage
from tripod.engine.replay_log import ReplayLog
from tripod.engine.step_record import RING_SIZE, StepRecord
from tripod.errors import DeadlineError, EngineError, TripodError
from tripod.messages import FinishReason
from tripod.trace import Event, Finished

logger = logging.getLogger(__name__)


class Stream:
    """The way of one request's events from the step loop's thread to its reader's event loop."""

    __slots__ = ("held", "loop", "output", "queue")

    def __init__(self, output: RequestOutput, *, is_whole: bool = False) -> None:
        """
        Args:
            output: makes the events.
            is_whole: the reader does nothing before the end, so he is woken once: each time costs him and the next step a tenth of a
                millisecond.
        """
        self.output = output
        self.loop = asyncio.get_running_loop()
        self.queue: asyncio.Queue[Event | TripodError] = asyncio.Queue()
        self.held: list[Event | TripodError] | None = [] if is_whole else None

    def release(self, events: Sequence[Event | TripodError]) -> Sequence[Event | TripodError]:
        """Take these in, and give out what is to be handed over now: they, or nothing before the end and then all."""
        if self.held is None or not events:
            return events
        self.held += events
        return self.held if isinstance(events[-1], (Finished, TripodError)) else ()


class StepLoop:
    """Owns the policy and the runner. `add`, `abort` and `close` may be called from any thread; all else is the loop's own."""

    def __init__(self, policy: Policy, runner: Runner, *, name: str, log: ReplayLog | None = None) -> None:
        """Starts the thread."""
        self.name = name
        self.policy = policy
        self.num_steps = self.num_finished = self.num_failed = self.num_leaked = 0
        self.prompt_tokens = self.completion_tokens = 0  # of finished requests
        self._runner = runner
        self._log = log
        self._streams: dict[Request, Stream] = {}
        self._wake = threading.Condition()
        self._inbox: deque[Callable[[], None]] = deque()  # state changes, taken between steps
        self._undelivered: list[_Delivery] = []  # of the last step, told while the device works on the next one
        self.steps: deque[StepRecord] = deque(maxlen=RING_SIZE)
        self._progress_s = time.monotonic()  # when a step was last done, or work came to an idle loop
        self._is_closing = False
        is_started = threading.Event()
        num_threads = torch.get_num_threads()
        self._thread = threading.Thread(target=self._loop, args=(is_started,), name=f"tripod-engine-{name}", daemon=True)
        self._thread.start()
        is_started.wait()
        # torch keeps the number for each thread, and beside it the one that threads to come begin with: put that back.
        torch.set_num_threads(num_threads)

    # --- on any thread

    def add(self, stream: Stream) -> bool:
        """Queue a request; whatever becomes of it is told through its stream. False: the engine is closed, nothing will come."""
        return self._post(lambda: self._add(stream))

    def abort(self, request: Request) -> None:
        """End a request between two steps, by finish reason "abort"; changes nothing if it has ended."""
        self._post(lambda: self._abort(request))

    def stalled_s(self) -> float:
        """Seconds since a step was last done, while something runs or asks to; 0 otherwise."""
        return time.monotonic() - self._progress_s if self.policy.has_work or self._inbox else 0.0

    def call(self, work: Callable[[], None]) -> bool:
        """Run something between two steps. False: the engine is closed, it will not run."""
        return self._post(work)

    @property
    def is_alive(self) -> bool:
        """Whether steps are still taken, or would be if there were work."""
        return self._thread.is_alive() and not self._is_closing

    def close(self) -> None:
        """Stop after the current step, and return when the thread has ended. Every open stream ends with an EngineError."""
        with self._wake:
            self._is_closing = True
            self._wake.notify()
        self._thread.join()

    def _post(self, change: Callable[[], None]) -> bool:
        """Hand a state change to the step loop. False where it takes no more: the engine is closed, and so is every request."""
        with self._wake:
            if self._is_closing:
                return False
            if not (self._inbox or self.policy.has_work):
                self._progress_s = time.monotonic()  # it slept, and had no reason to do anything else
            self._inbox.append(change)
            self._wake.notify()
            return True

    # --- on the loop's thread

    def _loop(self, is_started: threading.Event) -> None:
        try:
            self._runner.start_thread()
            is_started.set()
            while self._take_changes():
                try:
                    self._step()
                except Exception as error:
                    logger.exception("engine %s: a step failed", self.name)
                    self._fail_step(error)
        finally:
            is_started.set()
            with self._wake:
                self._is_closing = True
            for request in list(self._streams):
                self._fail(request, EngineError(f"engine {self.name!r} was closed while this request was open"))
            if self._log is not None:
                self._log.close()

    def _take_changes(self) -> bool:
        """Apply what was asked between steps, and sleep until there is work. False: close."""
        while True:
            with self._wake:
                while not (self._inbox or self.policy.has_work or self._is_closing):
                    self._check_idle()
                    self._wake.wait()
                changes = list(self._inbox)
                self._inbox.clear()
                is_closing = self._is_closing  # nothing is posted after it was set
            for change in changes:
                change()
            self._expire()
            if is_closing or not self.policy.has_work:
                self._deliver(())
            if is_closing:
                return False
            if self.policy.has_work:
                return True

    def _check_idle(self) -> None:
        num_lost = self.policy.reclaim()
        if num_lost:
            self.num_leaked += num_lost
            logger.error("engine %s: %d blocks had no owner when idle and were reclaimed; this is a defect", self.name, num_lost)

    def _add(self, stream: Stream) -> None:
        request = stream.output.request
        self._streams[request] = stream
        now = time.monotonic()
        try:
            self.policy.add(request, now)
        except TripodError as error:
            self._end(request, error)
        except Exception as error:
            logger.exception("engine %s: request %s could not be queued", self.name, request.id)
            self.num_failed += 1
            self._end(request, _engine_error("this request could not be queued", error))
        else:
            if self._log is not None:
                self._log.add(request, now)

    def _expire(self) -> None:
        for request in self.policy.expire(time.monotonic()):
            if self._log is not None:
                self._log.finish(request, "abort")
            what = f"{len(request.output_ids)} tokens were generated" if request.output_ids else "it had not given a token"
            self._fail(
                request, DeadlineError(f"the deadline of request {request.id} passed when {what}; give it more time or fewer tokens")
            )

    def _abort(self, request: Request) -> None:
        if request in self._streams:
            self._finish(request, "abort")
            self._end(request, *self._streams[request].output.finish("abort"))

    def _step(self) -> None:
        started = time.monotonic()
        num_preemptions = self.policy.num_preemptions
        schedule = self.policy.plan(started)
        planned = time.monotonic()
        step_id, self.num_steps = self.num_steps, self.num_steps + 1
        counts = _Counts()
        for request, num_tokens in schedule.items():
            counts.add(request, num_tokens, is_first=self._streams[request].output.take_part(step_id, planned))
        if copies := self.policy.take_copies():
            self._runner.copy_blocks(copies)
        result = self._runner.run(schedule, lambda: self._deliver(()))
        result.follow_grammars()
        ran = time.monotonic()
        if self._log is not None:
            self._log.step(step_id, (started, ran), schedule, result)
        computed = {request: num_tokens for request, num_tokens in schedule.items() if request not in result.failed}
        self.policy.commit(computed, result.token_ids, ran)
        committed = self._progress_s = time.monotonic()
        self._deliver_step(computed, result, committed)
        for request, error in result.failed.items():
            logger.error("engine %s: request %s could not be computed", self.name, request.id, exc_info=error)
            self._fail(request, _engine_error("this request could not be computed", error))
        self.steps.append(
            StepRecord(
                id=step_id,
                started_s=started,
                plan_s=(planned - started) + (committed - ran),
                prepare_s=(ran - planned) - result.model_s - result.sample_s,
                model_s=result.model_s,
                sample_s=result.sample_s,
                deliver_s=time.monotonic() - committed,
                num_requests=len(schedule),
                num_waiting=len(self.policy.waiting),
                num_prefill_tokens=counts.prefill,
                num_decode_tokens=counts.decode,
                num_cached_tokens=counts.cached,
                num_preemptions=self.policy.num_preemptions - num_preemptions,
                num_failed=len(result.failed),
            )
        )

    def _deliver_step(self, schedule: Schedule, result: StepResult, now: float) -> None:
        deliveries: list[_Delivery] = []
        for request in schedule:
            try:
                deliveries.append((self._streams[request], self._events_of(request, result, now)))
            except Exception as error:
                logger.exception("engine %s: the output of request %s failed", self.name, request.id)
                self._fail(request, _engine_error("the output of this request could not be made", error))
        # Whoever is woken takes the interpreter from us. While a device works we do not need it; before, the device would wait.
        if self._runner.is_asynchronous and self.policy.has_work:
            self._undelivered += deliveries
        else:
            self._deliver(deliveries)

    def _events_of(self, request: Request, result: StepResult, now: float) -> list[Event]:
        """What a step brought one request; the request is closed if that was its end."""
        output = self._streams[request].output
        if request in result.prompt_scores:
            output.add_prompt_scores(result.prompt_scores[request])
        events: list[Event] = []
        reason: FinishReason | None = None
        if request in result.token_ids:
            delta, reason = output.push(result.scores.get(request, ()), now)
            events.append(delta)
        reason = reason or request.finish_reason
        if reason is not None:
            self._finish(request, reason)
            events += output.finish(reason)
            self._closed(request)
        return events

    def _finish(self, request: Request, reason: FinishReason) -> None:
        """End a request in the policy, which may have done so itself."""
        if self._log is not None and request.stage is not Stage.FINISHED:
            self._log.finish(request, reason)
        self.policy.finish(request, reason)

    def _closed(self, request: Request) -> None:
        del self._streams[request]
        self.num_finished += 1
        self.prompt_tokens += len(request.prompt_ids)
        self.completion_tokens += len(request.output_ids)

    def _end(self, request: Request, *events: Event | TripodError) -> None:
        """Close a request with its last events."""
        stream = self._streams[request]
        self._closed(request)
        self._deliver([(stream, events)])

    def _fail(self, request: Request, error: TripodError) -> None:
        """End one request with an error."""
        if request in self._streams:
            self._finish(request, "abort")
            self.num_failed += 1
            self._end(request, error)

    def _fail_step(self, error: Exception) -> None:
        """End what a failed step may have touched: all but the queue; and the queue too, if the step failed without them."""
        touched = [request for request in self._streams if request.stage is not Stage.WAITING] or list(self._streams)
        for request in touched:
            self._fail(request, _engine_error("a step of the engine failed", error))

    def _deliver(self, deliveries: Sequence[_Delivery]) -> None:
        """Wake each reader's event loop once for all that a step brought."""
        by_loop: dict[asyncio.AbstractEventLoop, list[_Delivery]] = {}
        earlier, self._undelivered = self._undelivered, []
        for stream, events in (*earlier, *deliveries):
            if released := stream.release(events):
                by_loop.setdefault(stream.loop, []).append((stream, released))
            elif stream.loop.is_closed():
                self._abandon(stream.output.request)
        for loop, parcels in by_loop.items():
            try:
                loop.call_soon_threadsafe(_hand_over, parcels)
            except RuntimeError:  # the reader's loop is closed, so nobody will read on
                for stream, _ in parcels:
                    self._abandon(stream.output.request)

    def _abandon(self, request: Request) -> None:
        if request in self._streams:
            self._finish(request, "abort")
            self._closed(request)


@dataclass(slots=True)
class _Counts:
    """Of the tokens of a step."""

    prefill: int = 0
    decode: int = 0
    cached: int = 0

    def add(self, request: Request, num_tokens: int, *, is_first: bool) -> None:
        of_prompt = min(num_tokens, max(0, len(request.prompt_ids) - request.num_computed_tokens))
        self.prefill += of_prompt
        self.decode += num_tokens - of_prompt
        if is_first:
            self.cached += request.num_computed_tokens


_Delivery: TypeAlias = tuple[Stream, Sequence[Event | TripodError]]


def _hand_over(deliveries: Sequence[_Delivery]) -> None:
    for stream, events in deliveries:
        for event in events:
            stream.queue.put_nowait(event)


def _engine_error(what: str, cause: Exception) -> EngineError:
    error = EngineError(f"{what}: {type(cause).__name__}: {cause}")
    error.__cause__ = cause
    return error
