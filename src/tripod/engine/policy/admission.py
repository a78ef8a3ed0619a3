"""Who may wait, and when those who may not should ask again."""

from __future__ import annotations

from collections import deque
from math import inf

from tripod.engine.policy.config import PolicyConfig
from tripod.engine.policy.fair_queue import FairQueue
from tripod.engine.policy.request import Request
from tripod.errors import OverloadedError

_SHARE = 4  # a tenant may queue so many times what is still free: one alone four fifths of the queue, two four ninths each
_NUM_REMEMBERED = 32  # requests that left the queue lately, from which its speed is known
_MIN_RETRY_S, _MAX_RETRY_S = 1.0, 120.0


class Admission:
    """Bounds the queue in requests and in tokens, and each tenant's part of it.

    A tenant's part shrinks as the queue fills (dynamic thresholds, Choudhury & Hahne 1998, doi:10.1109/90.664262), so there
    is always a place for one who sent little. Requests without a tenant are bounded by the whole queue only.
    """

    def __init__(self, config: PolicyConfig) -> None:
        self._config = config
        self._left_s: deque[float] = deque(maxlen=_NUM_REMEMBERED)

    def check(self, request: Request, queue: FairQueue, now: float) -> None:
        """Refuse a request that the queue has no place for.

        Raises:
            OverloadedError: with the seconds after which what waits now will have begun.
        """
        num_waiting = len(queue)
        if num_waiting == 0:
            return
        max_requests, max_tokens = self._config.max_num_waiting, self._config.max_waiting_tokens
        if num_waiting >= max_requests:
            raise self._overloaded(f"{num_waiting} requests are waiting already, the most that this engine queues", num_waiting, now)
        if max_tokens is not None and queue.num_tokens + request.num_tokens > max_tokens:
            what = (
                f"{queue.num_tokens} tokens are waiting already and this request has {request.num_tokens}; this engine queues {max_tokens}"
            )
            raise self._overloaded(what, num_waiting, now)
        if not request.tenant or not self._config.fair:
            return
        own = queue.waiting_of(request.tenant)
        if not own:
            return
        if len(own) >= _SHARE * (max_requests - num_waiting):
            what = f"{len(own)} of the {num_waiting} waiting requests are of the tenant {request.tenant!r}; the places left are for others"
            raise self._overloaded(what, num_waiting, now)
        if max_tokens is not None and (own_tokens := sum(r.num_tokens for r in own)) >= _SHARE * (max_tokens - queue.num_tokens):
            what = f"{own_tokens} of the {queue.num_tokens} waiting tokens are of the tenant {request.tenant!r}; what is left is for others"
            raise self._overloaded(what, num_waiting, now)

    def left(self, now: float) -> None:
        """A request left the queue to run."""
        self._left_s.append(now)

    def wait_s(self, num_waiting: int, now: float) -> float:
        """Seconds in which so many requests begin to run, at the speed at which the last ones did; infinity if none did."""
        if len(self._left_s) < 2:
            return inf
        return num_waiting * (now - self._left_s[0]) / (len(self._left_s) - 1)

    def _overloaded(self, what: str, num_waiting: int, now: float) -> OverloadedError:
        wait_s = self.wait_s(num_waiting, now)
        retry_after_s = _MIN_RETRY_S if wait_s == inf else min(max(wait_s, _MIN_RETRY_S), _MAX_RETRY_S)
        return OverloadedError(f"{what}; ask again in {retry_after_s:.0f} s", retry_after_s=retry_after_s)
