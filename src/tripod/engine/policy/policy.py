"""The scheduler: who runs in the next step, and how many tokens each.

A schedule is `{request: num_tokens}`. A prompt's chunk, a decode step and the recomputation after a preemption are one
case: the next `num_tokens` of the known tokens that are not yet computed. A request whose known tokens are then all
computed gets a new one.

Everything here is a pure function of the calls made: no torch, no clock, no input or output. It runs unchanged against
a simulated executor.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from tripod.engine.policy.block_manager import BlockManager, OutOfBlocksError, blocks_for
from tripod.engine.policy.request import Request, Stage
from tripod.errors import ConfigError, ContextLengthError, OverloadedError
from tripod.messages import FinishReason

Schedule: TypeAlias = dict[Request, int]  # in the order of the batch


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyConfig:
    """The limits that the policy keeps."""

    num_blocks: int  # the KV pool
    block_size: int  # tokens in a block
    max_context: int  # tokens of prompt and answer that the model can tell apart
    max_batch_tokens: int  # one budget a step, for decodes and prompt chunks together
    max_num_requests: int  # running at once
    max_num_waiting: int  # the queue's length

    def __post_init__(self) -> None:
        for name in ("num_blocks", "block_size", "max_context", "max_batch_tokens", "max_num_requests", "max_num_waiting"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} leaves no room for any request; give at least 1")
        if self.max_batch_tokens < self.max_num_requests:
            raise ConfigError(
                f"max_batch_tokens={self.max_batch_tokens} is less than max_num_requests={self.max_num_requests}, so a step could not "
                f"give every running request one token; raise the first or lower the second"
            )

    @property
    def max_request_tokens(self) -> int:
        """Tokens of prompt and answer together that one request may have."""
        return min(self.max_context, self.num_blocks * self.block_size)

    def resolve_max_tokens(self, num_prompt_tokens: int, max_tokens: int | None) -> int:
        """The most tokens that a request may generate; with `max_tokens=None`, as many as fit.

        Raises:
            ContextLengthError: prompt and answer together can never fit.
        """
        limit = self.max_request_tokens
        wanted = 1 if max_tokens is None else max_tokens
        if num_prompt_tokens + wanted > limit:
            holder = "the model's context" if limit == self.max_context else f"the KV pool ({self.num_blocks} blocks of {self.block_size})"
            raise ContextLengthError(
                f"the prompt has {num_prompt_tokens} tokens and the answer may take {wanted}, "
                f"{num_prompt_tokens + wanted} together; {holder} holds {limit} tokens. Shorten the prompt or lower max_tokens",
                param="max_tokens" if num_prompt_tokens < limit else "prompt",
            )
        return limit - num_prompt_tokens if max_tokens is None else max_tokens


class Policy:
    """The queue, the running requests and the blocks; `plan` and `commit` bracket each step.

    First come, first served: the queue is never overtaken, and when blocks run out the latest-arrived request gives up
    its own and is computed again later. So the earliest request always advances, and every request ends.

    Between `plan` and `commit` nothing else may be called: `add` and `finish` are state changes between steps.
    """

    def __init__(self, config: PolicyConfig) -> None:
        self.config = config
        self.blocks = BlockManager(config.num_blocks, config.block_size)
        self.running: list[Request] = []  # in order of arrival
        self.waiting: deque[Request] = deque()  # in order of arrival; all later than those running
        self.num_preemptions = 0
        self._num_arrived = 0

    @property
    def has_work(self) -> bool:
        return bool(self.running or self.waiting)

    def requests(self) -> Iterator[Request]:
        """Every request that has not ended."""
        yield from self.running
        yield from self.waiting

    def add(self, request: Request) -> None:
        """Put a request at the end of the queue.

        Raises:
            ContextLengthError: it can never fit.
            OverloadedError: the queue is full.
        """
        self.config.resolve_max_tokens(len(request.prompt_ids), request.max_tokens)
        if len(self.waiting) >= self.config.max_num_waiting:
            raise OverloadedError(f"{len(self.waiting)} requests are waiting already, the most that this engine queues; ask again later")
        request.arrival = self._num_arrived
        self._num_arrived += 1
        self.waiting.append(request)

    def plan(self) -> Schedule:
        """Choose the next step's tokens, and see that their keys and values have blocks.

        Decodes come first, then prompt chunks, then the queue while budget, places and blocks last; each in order of
        arrival. Empty only when nothing runs and nothing waits.
        """
        schedule: Schedule = {}
        self._plan_decodes(schedule)
        budget = self.config.max_batch_tokens - len(schedule)
        for request in self.running:
            if budget and request not in schedule:
                schedule[request] = min(request.num_pending_tokens, budget)
                budget -= schedule[request]
        self._plan_waiting(schedule, budget)
        return schedule

    def _plan_decodes(self, schedule: Schedule) -> None:
        """One token for every running request that generates.

        Only a decode can run out of blocks: those of all known tokens are taken at admission.
        """
        for request in [request for request in self.running if request.num_pending_tokens == 1]:
            while request.stage is Stage.RUNNING:
                try:
                    self.blocks.append(request.block_ids, request.num_tokens)
                except OutOfBlocksError:
                    self._preempt(self.running[-1])  # never one that is scheduled already: those arrived earlier
                else:
                    schedule[request] = 1
                    break

    def _plan_waiting(self, schedule: Schedule, budget: int) -> None:
        """Admit from the head of the queue. One block for each running request stays free, or the next steps would preempt again.

        Whoever was preempted in this step stays out of it: its blocks were one too few for itself and those before it.
        """
        while self.waiting and budget and len(self.running) < self.config.max_num_requests:
            request = self.waiting[0]
            if blocks_for(request.num_tokens, self.config.block_size) + len(self.running) > self.blocks.num_free:
                break
            self.waiting.popleft()
            request.block_ids = self.blocks.allocate(request.num_tokens)
            request.stage = Stage.RUNNING
            self.running.append(request)
            schedule[request] = min(request.num_pending_tokens, budget)
            budget -= schedule[request]

    def _preempt(self, request: Request) -> None:
        self.running.remove(request)
        self.blocks.release(request.block_ids)
        request.stage = Stage.WAITING
        request.num_computed_tokens = 0
        request.num_preemptions += 1
        self.num_preemptions += 1
        self.waiting.appendleft(request)

    def commit(self, schedule: Schedule, sampled: Mapping[Request, Sequence[int]]) -> list[Request]:
        """Record a step's outcome, and return the requests that it ended.

        Args:
            schedule: what `plan` returned.
            sampled: the new tokens of each request whose known tokens are now all computed. What follows a stop token
                or exceeds `max_tokens` is dropped.
        """
        finished = []
        for request, num_tokens in schedule.items():
            request.num_computed_tokens += num_tokens
            request.num_scored_tokens = max(request.num_scored_tokens, min(request.num_computed_tokens + 1, len(request.prompt_ids)))
            reason = self._append(request, sampled.get(request, ()))
            if reason is not None:
                self.finish(request, reason)
                finished.append(request)
        return finished

    def _append(self, request: Request, token_ids: Sequence[int]) -> FinishReason | None:
        for token_id in token_ids:
            request.output_ids.append(token_id)
            if token_id in request.stop_ids and len(request.output_ids) > request.sampling.min_tokens:
                return "stop"
            if len(request.output_ids) >= request.max_tokens:
                return "stop" if request.is_over else "length"
        if token_ids and request.is_over:
            return "stop"
        if request.max_tokens == 0 and request.num_pending_tokens == 0:
            return "length"
        return None

    def finish(self, request: Request, reason: FinishReason) -> None:
        """End a request wherever it stands, and free its blocks. Ending it twice changes nothing."""
        if request.stage is Stage.FINISHED:
            return
        if request.stage is Stage.RUNNING:
            self.running.remove(request)
            self.blocks.release(request.block_ids)
        else:
            self.waiting.remove(request)
        request.stage = Stage.FINISHED
        request.finish_reason = reason

    def reclaim(self) -> int:
        """Free the blocks that no running request owns, and return their number; above 0 is a defect."""
        return self.blocks.reclaim(block_id for request in self.running for block_id in request.block_ids)
