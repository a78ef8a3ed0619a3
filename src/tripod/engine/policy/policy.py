"""The scheduler: who runs in the next step, and how many tokens each.

A schedule is `{request: num_tokens}`. A prompt's chunk, a decode step, the check of drafts and the recomputation after a
preemption are one case: the next `num_tokens` of the tokens that are not yet computed, known ones first, then drafts. A
request whose known tokens are then all computed gets a new one, and one more for each draft that was right.

Everything here is a pure function of the calls made: no torch, no clock, no input or output. It runs unchanged against
a simulated executor.
"""

from __future__ import annotations

import heapq
from bisect import insort
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

from tripod.engine.policy.admission import Admission
from tripod.engine.policy.block_manager import BlockManager, OutOfBlocksError, blocks_for
from tripod.engine.policy.config import PolicyConfig
from tripod.engine.policy.fair_queue import CACHED_COST, DECODE_COST, PREFILL_COST, FairQueue
from tripod.engine.policy.prefix_cache import CacheMiss, Node, digest
from tripod.engine.policy.request import Request, Stage
from tripod.messages import FinishReason

Schedule: TypeAlias = dict[Request, int]  # in the order of the batch


class Policy:
    """The queue, the running requests and the blocks; `plan` and `commit` bracket each step.

    Running requests are ordered by priority and arrival (`Request.order`). When blocks run out, the last in that order
    gives up its own and is computed again later. So the first always advances, and every request ends. A request enters
    when it is its tenant's turn and its blocks are at hand; nobody overtakes whoever's turn it is, but while a running
    request computes the very blocks that it needs next.

    Between `plan` and `commit` nothing else may be called but `take_copies`: `add`, `fork`, `expire` and `finish` are state
    changes between steps. `now` is seconds of the caller's clock, which must not run backwards.
    """

    def __init__(self, config: PolicyConfig) -> None:
        self.config = config
        self.blocks = BlockManager(config.num_blocks, config.block_size, is_caching=config.prefix_cache)
        self.running: list[Request] = []  # by order
        self.waiting = FairQueue(is_fair=config.fair)
        self.num_preemptions = 0
        self._admission = Admission(config)
        self._num_arrived = 0
        self._deadlines: list[tuple[float, int, Request]] = []  # a heap, of those that have one
        self._copies: list[tuple[int, int]] = []

    @property
    def has_work(self) -> bool:
        return bool(self.running or len(self.waiting))

    def requests(self) -> Iterator[Request]:
        """Every request that has not ended."""
        yield from self.running
        yield from self.waiting

    # --- between steps

    def add(self, request: Request, now: float) -> None:
        """Queue a request.

        Raises:
            ContextLengthError: it can never fit.
            OverloadedError: the queue has no place for it.
        """
        self.config.resolve_max_tokens(len(request.prompt_ids), request.max_tokens)
        self._admission.check(request, self.waiting, now)
        self._arrive(request, now)
        self.waiting.push(request)

    def _arrive(self, request: Request, now: float) -> None:
        # Of two requests, the one with more patience behind it goes first. As all age alike, who that is never changes: a
        # level of priority is a later arrival by so many seconds.
        aging_s = self.config.aging_s
        request.order = (float(request.priority) if aging_s is None else now + request.priority * aging_s, self._num_arrived)
        if request.deadline_s is not None:
            heapq.heappush(self._deadlines, (request.deadline_s, self._num_arrived, request))
        self._num_arrived += 1

    def fork(self, source: Request, new: Request, now: float) -> None:
        """Start a request beside one that begins with the same tokens, on the same blocks.

        Where `new` goes on from the very place at which `source` stands, they share the last, unfinished block too, until one
        of them writes to it. Where there is no place beside it, `new` is queued, and finds in the prefix cache what is left.

        Raises:
            ContextLengthError: `new` can never fit.
            OverloadedError: it must wait, and the queue has no place for it.
        """
        self.config.resolve_max_tokens(len(new.prompt_ids), new.max_tokens)
        size = self.config.block_size
        num_alike = self._num_alike(source, new)
        is_branch = source.num_pending_tokens == 1 and num_alike == source.num_computed_tokens == new.num_tokens - 1
        num_shared = blocks_for(num_alike, size) if is_branch else num_alike // size
        num_needed = blocks_for(new.num_tokens, size) - num_shared + len(self.running) + 1
        if num_shared == 0 or len(self.running) >= self.config.max_num_requests or num_needed > self.blocks.num_available:
            self.add(new, now)
            return
        self._arrive(new, now)
        new.block_ids = source.block_ids[:num_shared]
        self.blocks.share(new.block_ids)
        self.blocks.append(new.block_ids, new.num_tokens, now)
        new.num_computed_tokens = new.num_cached_tokens = num_alike if is_branch else num_shared * size
        node = source.prefix
        while node is not None and node.depth * size > num_alike:
            node = node.parent
        new.prefix = node
        self._start(new)

    def _num_alike(self, source: Request, new: Request) -> int:
        if source.stage is not Stage.RUNNING:
            return 0
        most = min(source.num_computed_tokens, new.max_cached_tokens)
        pairs = zip(source.token_ids(0, most), new.token_ids(0, most), strict=True)
        return next((index for index, (left, right) in enumerate(pairs) if left != right), most)

    def expire(self, now: float) -> list[Request]:
        """End every request whose deadline has passed, and return them."""
        expired = []
        while self._deadlines and self._deadlines[0][0] <= now:
            request = heapq.heappop(self._deadlines)[2]
            if request.stage is not Stage.FINISHED:
                self.finish(request, "abort")
                expired.append(request)
        return expired

    def finish(self, request: Request, reason: FinishReason) -> None:
        """End a request wherever it stands, and give up its blocks. Ending it twice changes nothing."""
        if request.stage is Stage.FINISHED:
            return
        if request.stage is Stage.RUNNING:
            self._stop(request)
        else:
            self.waiting.remove(request)
        request.stage = Stage.FINISHED
        request.finish_reason = reason

    def reclaim(self) -> int:
        """Free the blocks that no running request owns, and return their number; above 0 is a defect."""
        return self.blocks.reclaim(block_id for request in self.running for block_id in request.block_ids)

    # --- the step

    def plan(self, now: float) -> Schedule:
        """Choose the next step's tokens, and see that their keys and values have blocks.

        Decodes come first, then prompt chunks, then the queue while budget, places and blocks last, then drafts. Empty only
        when nothing runs and nothing waits.
        """
        schedule: Schedule = {}
        self._copies = []
        num_preemptions = self.num_preemptions
        self._plan_decodes(schedule, now)
        budget = self.config.max_batch_tokens - len(schedule)
        longest = self._longest_chunk(len(schedule))
        for request in self.running:
            if budget and request not in schedule:
                schedule[request] = min(request.num_pending_tokens, budget, longest)
                budget -= schedule[request]
        if budget and len(self.waiting) and self.num_preemptions == num_preemptions:  # else blocks are short: nobody else comes in
            budget = self._plan_waiting(schedule, budget, longest, now)
        if budget:
            self._plan_drafts(schedule, budget, now)
        return schedule

    def _longest_chunk(self, num_decodes: int) -> int:
        """The most tokens of one prompt in a step with so many decodes.

        One long prompt would otherwise fill a step to its budget, and everybody who decodes would wait for it. Several short ones may
        still do so: to compute them one after the other would delay them all and help nobody.
        """
        most = self.config.chunk_beside_decodes
        return self.config.max_batch_tokens if most is None or num_decodes == 0 else most + num_decodes

    def take_copies(self) -> list[tuple[int, int]]:
        """The blocks that are to be copied before the step that was planned: (from, to), in this order."""
        copies, self._copies = self._copies, []
        return copies

    def _plan_decodes(self, schedule: Schedule, now: float) -> None:
        """One token for every running request that generates.

        Only a decode can run out of blocks: those of all known tokens are taken at admission.
        """
        for request in [request for request in self.running if request.num_pending_tokens == 1]:
            while request.stage is Stage.RUNNING:
                try:
                    self._hold(request, request.num_tokens, now)
                except OutOfBlocksError:
                    self._preempt(self.running[-1])  # never one that is scheduled already: those come earlier
                else:
                    schedule[request] = 1
                    break

    def _hold(self, request: Request, num_tokens: int, now: float) -> None:
        """Blocks for so many tokens, and the one to be written next for this request alone: all that is missing or nothing.

        Raises:
            OutOfBlocksError: fewer are available.
        """
        index = request.num_computed_tokens // self.config.block_size  # if there is this block, it holds all tokens: nothing is appended
        if index < len(request.block_ids) and self.blocks.num_owners(request.block_ids[index]) > 1:
            shared = request.block_ids[index]
            [request.block_ids[index]] = self.blocks.allocate(1, now)
            self.blocks.release([shared])
            self._copies.append((shared, request.block_ids[index]))
        self.blocks.append(request.block_ids, num_tokens, now)

    def _plan_waiting(self, schedule: Schedule, budget: int, longest: int, now: float) -> int:
        """Admit those whose turn it is, and return what is left of the budget.

        One block for each running request stays available, or the next steps would preempt again.
        """
        under_way = self._under_way(schedule)
        passed_over: set[Request] = set()
        while budget and len(self.running) + len(passed_over) < self.config.max_num_requests:
            request = self.waiting.next(passed_over)
            if request is None:
                break
            token_ids = (*request.prompt_ids, *request.output_ids) if request.output_ids else request.prompt_ids
            node, path = None, []
            if self.blocks.cache is not None:
                node = self.blocks.cache.match(token_ids, request.max_cached_tokens)
                if under_way and self._next_block(node, token_ids, request.max_cached_tokens) in under_way:
                    passed_over.add(request)  # computing it twice would take longer than waiting for it
                    continue
                path = self.blocks.cache.path(node)
            num_idle = sum(node.is_idle for node in path)
            num_needed = blocks_for(request.num_tokens, self.config.block_size) - len(path)
            if num_needed + len(self.running) > self.blocks.num_available - num_idle:
                break
            self.waiting.take(request)
            self._admission.left(request, now)
            self._admit(request, node, path, token_ids, now)
            schedule[request] = min(request.num_pending_tokens, budget, longest)
            budget -= schedule[request]
            self._add_under_way(under_way, request, schedule[request])
        return budget

    def _admit(self, request: Request, node: Node | None, path: list[Node], token_ids: Sequence[int], now: float) -> None:
        num_cached = len(path) * self.config.block_size
        if request.num_preemptions == 0:
            request.num_cached_tokens = num_cached
            request.cache_miss = self._explain(request, node, token_ids, now)
        request.prefix = node
        request.block_ids = [node.block_id for node in path]
        request.num_computed_tokens = num_cached
        self.blocks.share(request.block_ids)
        self.blocks.append(request.block_ids, request.num_tokens, now)
        self._start(request)

    def _explain(self, request: Request, node: Node | None, token_ids: Sequence[int], now: float) -> CacheMiss | None:
        if node is None or self.blocks.cache is None:
            return None
        num_tokens, size = request.max_cached_tokens, self.config.block_size
        miss = self.blocks.cache.explain(node, token_ids, num_tokens, now)
        if miss is None and num_tokens + 1 < request.num_tokens and (node.depth + 1) * size < request.num_tokens:
            return CacheMiss("scored", node.depth * size)
        return miss

    def _start(self, request: Request) -> None:
        if request.num_preemptions == 0:  # what is computed again is not charged again
            cost = request.num_cached_tokens * CACHED_COST + (request.num_tokens - request.num_cached_tokens) * PREFILL_COST
            self.waiting.charge(request.tenant, cost)
        request.stage = Stage.RUNNING
        insort(self.running, request, key=_order)

    def _under_way(self, schedule: Schedule) -> set[int]:
        """The full blocks, by digest, that the prompt chunks of a schedule will have computed."""
        under_way: set[int] = set()
        for request, num_tokens in schedule.items():
            if num_tokens > 1:
                self._add_under_way(under_way, request, num_tokens)
        return under_way

    def _add_under_way(self, under_way: set[int], request: Request, num_tokens: int) -> None:
        node, size = request.prefix, self.config.block_size
        if node is None:
            return
        name = node.digest
        for start in range(node.depth * size, request.num_computed_tokens + num_tokens - size + 1, size):
            name = digest(name, tuple(request.token_ids(start, start + size)))
            under_way.add(name)

    def _next_block(self, node: Node, token_ids: Sequence[int], num_tokens: int) -> int | None:
        """The digest of the block behind a node that the prefix cache could give; None if there is none to give."""
        start = node.depth * self.config.block_size
        end = start + self.config.block_size
        return digest(node.digest, tuple(token_ids[start:end])) if end <= num_tokens else None

    def _plan_drafts(self, schedule: Schedule, budget: int, now: float) -> None:
        """Drafts take what others left of the budget and of the blocks: a wrong guess must cost nobody else."""
        for request, num_tokens in schedule.items():
            if not request.draft_ids:
                continue
            num_drafts = 0
            if num_tokens == request.num_pending_tokens:
                most = request.max_tokens - len(request.output_ids) - 1  # the step gives one token more than drafts are right
                num_drafts = max(0, min(len(request.draft_ids), budget, most))
            spare = self.blocks.num_available - len(self.running)
            size = self.config.block_size
            while num_drafts and blocks_for(request.num_tokens + num_drafts, size) - len(request.block_ids) > spare:
                num_drafts -= 1
            del request.draft_ids[num_drafts:]
            if num_drafts:
                self.blocks.append(request.block_ids, request.num_tokens + num_drafts, now)
                schedule[request] += num_drafts
                budget -= num_drafts

    def _preempt(self, request: Request) -> None:
        self._stop(request)
        request.stage = Stage.WAITING
        request.num_computed_tokens = 0
        request.draft_ids.clear()
        request.num_preemptions += 1
        self.num_preemptions += 1
        self.waiting.resume(request)

    def _stop(self, request: Request) -> None:
        self.running.remove(request)
        self.blocks.release(request.block_ids)
        request.prefix = None

    def commit(self, schedule: Schedule, sampled: Mapping[Request, Sequence[int]], now: float) -> list[Request]:
        """Record a step's outcome, and return the requests that it ended. Requests that have ended already are left alone.

        Args:
            schedule: what `plan` returned.
            sampled: the new tokens of each request whose known tokens are now all computed: the drafts that were right, in
                order, and one more. What follows a stop token or exceeds `max_tokens` is dropped.
        """
        finished = []
        charges: dict[str, float] = {}
        size = self.config.block_size
        for request, num_tokens in schedule.items():
            if request.stage is not Stage.RUNNING:
                continue
            token_ids = sampled.get(request, ())
            if token_ids:
                charges[request.tenant] = charges.get(request.tenant, 0.0) + len(token_ids) * DECODE_COST
            if request.draft_ids:
                num_tokens -= self._drop_drafts(request, num_tokens, token_ids)
            request.num_computed_tokens += num_tokens
            if request.is_scored:
                request.num_scored_tokens = max(request.num_scored_tokens, min(request.num_computed_tokens + 1, len(request.prompt_ids)))
            reason = self._append(request, token_ids)
            if request.prefix is not None and request.num_computed_tokens >= (request.prefix.depth + 1) * size:
                self._remember(request)
            if reason is not None:
                self.finish(request, reason)
                finished.append(request)
        for tenant, cost in charges.items():
            self.waiting.charge(tenant, cost)
        return finished

    def _drop_drafts(self, request: Request, num_tokens: int, token_ids: Sequence[int]) -> int:
        """Give up the drafts of a step and the blocks of the wrong ones. Returns the number of the wrong."""
        num_drafts = max(0, num_tokens - request.num_pending_tokens)
        num_wrong = num_drafts - min(num_drafts, max(0, len(token_ids) - 1))
        request.draft_ids.clear()
        self.blocks.trim(request.block_ids, request.num_tokens + len(token_ids))
        return num_wrong

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

    def _remember(self, request: Request) -> None:
        """Tell the prefix cache which full blocks are computed now."""
        node, size, cache = request.prefix, self.config.block_size, self.blocks.cache
        assert cache is not None
        num_tokens = min(request.num_computed_tokens, request.num_tokens)  # a stop token may lie before the last draft that was right
        while node is not None and (node.depth + 1) * size <= num_tokens:
            start = node.depth * size
            node = cache.extend(node, tuple(request.token_ids(start, start + size)), request.block_ids[node.depth])
        request.prefix = node


def _order(request: Request) -> tuple[float, int]:
    return request.order
