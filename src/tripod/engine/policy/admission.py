"""Who may wait, and when those who may not should ask again."""

from __future__ import annotations

from collections import Counter, deque
from math import inf

from tripod.engine.policy.config import PolicyConfig
from tripod.engine.policy.fair_queue import FairQueue
from tripod.engine.policy.request import Request
from tripod.errors import OverloadedError

_SHARE = 4  # a tenant may queue so many times what is still free: one alone four fifths of the queue, two four ninths each
_NUM_REMEMBERED = 64  # requests that left the queue lately, from which its speed is known
_MIN_RETRY_S, _MAX_RETRY_S = 1.0, 120.0


class Admission:
    """Bounds the queue in requests and in tokens, and each tenant's part of it.

    A tenant's part shrinks as the queue fills (dynamic thresholds, Choudhury & Hahne 1998, doi:10.1109/90.664262), so there
    is always a place for one who sent little. Requests without a tenant are bounded by the whole queue only.
    """

    def __init__(self, config: PolicyConfig) -> None:
        self._config = config
        self._left: deque[tuple[float, str]] = deque(maxlen=_NUM_REMEMBERED)  # when, by a clock that stands while nobody waits, and whose
        self._idle_s = 0.0  # how far that clock is behind: a pause says nothing of the speed

    def check(self, request: Request, queue: FairQueue, now: float) -> None:
        """Refuse a request that the queue has no place for.

        Raises:
            OverloadedError: with the seconds after which what waits now, of the same tenant, will have begun.
        """
        if len(queue) == 0 and self._left:
            self._idle_s = now - self._left[-1][0]
        reason = self._refusal(request, queue, now)
        if reason is not None:
            wait_s = self.wait_s(request.tenant, len(queue.waiting_of(request.tenant)), now)
            retry_after_s = min(max(wait_s, _MIN_RETRY_S), _MAX_RETRY_S) if wait_s < inf else _MIN_RETRY_S
            raise OverloadedError(f"{reason}; ask again in {retry_after_s:.0f} s", retry_after_s=retry_after_s)

    def _refusal(self, request: Request, queue: FairQueue, now: float) -> str | None:
        config, num_waiting = self._config, len(queue)
        if num_waiting == 0:
            return None
        if num_waiting >= config.max_num_waiting:
            return f"{num_waiting} requests are waiting already, the most that this engine queues"
        max_tokens = config.max_waiting_tokens
        if max_tokens is not None and queue.num_tokens + request.num_tokens > max_tokens:
            given = f"{queue.num_tokens} tokens are waiting already and this request has {request.num_tokens}"
            return f"{given}; this engine queues {max_tokens}"
        own, tenant = queue.waiting_of(request.tenant), request.tenant
        if config.max_wait_s is not None and config.max_wait_s < (wait_s := self.wait_s(tenant, len(own) + 1, now)) < inf:
            return f"the request would wait for about {wait_s:.1f} s, and this engine lets none wait for more than {config.max_wait_s:g} s"
        if not own or not tenant or not config.fair:
            return None
        if len(own) >= _SHARE * (config.max_num_waiting - num_waiting):
            return f"{len(own)} of the {num_waiting} waiting requests are of the tenant {tenant!r}; the places left are for others"
        if max_tokens is not None and (own_tokens := sum(other.num_tokens for other in own)) >= _SHARE * (max_tokens - queue.num_tokens):
            return f"{own_tokens} of the {queue.num_tokens} waiting tokens are of the tenant {tenant!r}; what is left is for others"
        return None

    def left(self, request: Request, now: float) -> None:
        """A request left the queue to run."""
        self._left.append((now - self._idle_s, request.tenant if self._config.fair else ""))

    def wait_s(self, tenant: str, num_waiting: int, now: float) -> float:
        """Seconds in which so many requests of a tenant begin to run, at the speed of the last ones; infinity if that is not known.

        A tenant's part of the speed is what it had lately, or an equal part if it had less: it takes turns with those that had more.
        """
        if len(self._left) < 2:
            return inf
        counts = Counter(name for _, name in self._left)
        own = counts[tenant if self._config.fair else ""]
        part = max(own / len(self._left), 1 / (len(counts) + (own == 0)))
        return num_waiting * (now - self._idle_s - self._left[0][0]) / (len(self._left) - 1) / part
