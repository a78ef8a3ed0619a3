"""Who is next: tenants by the service that they had, the requests of one tenant by priority and arrival."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Collection, Iterator

from tripod.engine.policy.request import Request

# What a token costs its tenant. A decoded token takes a step of its own, so it counts twice, as in the paper; one that
# the prefix cache gave takes only its place.
PREFILL_COST, DECODE_COST, CACHED_COST = 1.0, 2.0, 0.1


class FairQueue:
    """Requests that wait. Preempted ones come first, in their order: they were chosen once already.

    The others by virtual token counters (VTC, Sheng et al., OSDI 2024, arXiv:2401.00588): each tenant has the sum of what it
    was served, and the one with the least is next. A tenant that comes back after a pause starts at the least counter of those
    who wait, so that a pause earns nothing. A tenant can then not be held up by how much another sends; and its own priorities
    order its own requests only, so calling everything urgent wins nothing either.
    """

    def __init__(self, *, is_fair: bool = True) -> None:
        """
        Args:
            is_fair: False puts all requests into one tenant's queue.
        """
        self._is_fair = is_fair
        self.num_tokens = 0  # known tokens of all that wait
        self._resumed: list[Request] = []
        self._by_tenant: dict[str, list[Request]] = {}  # none of them empty
        self._counters: dict[str, float] = {}
        self._floor = 0.0  # where a newcomer begins; absent tenants with less are forgotten

    def __len__(self) -> int:
        return len(self._resumed) + sum(map(len, self._by_tenant.values()))

    def __iter__(self) -> Iterator[Request]:
        """The preempted, then tenant by tenant, least served first."""
        yield from self._resumed
        for tenant in sorted(self._by_tenant, key=lambda tenant: (self._counters[tenant], self._by_tenant[tenant][0].order)):
            yield from self._by_tenant[tenant]

    def waiting_of(self, tenant: str) -> Collection[Request]:
        """A tenant's requests that were not yet chosen."""
        return self._by_tenant.get(self._name(tenant), ())

    def _name(self, tenant: str) -> str:
        return tenant if self._is_fair else ""

    def counter(self, tenant: str) -> float:
        """The service that a tenant had, on the scale on which tenants are compared."""
        return self._counters.get(self._name(tenant), 0.0)

    def push(self, request: Request) -> None:
        """A new request waits."""
        name = self._name(request.tenant)
        requests = self._by_tenant.get(name)
        if requests is None:
            least = min((self._counters[other] for other in self._by_tenant), default=self._floor)
            self._counters[name] = max(self.counter(name), least)
            requests = self._by_tenant[name] = []
        insort(requests, request, key=_order)
        self.num_tokens += request.num_tokens

    def resume(self, request: Request) -> None:
        """A preempted request waits again."""
        insort(self._resumed, request, key=_order)
        self.num_tokens += request.num_tokens

    def next(self, passed_over: Collection[Request] = ()) -> Request | None:
        """Whose turn it is, leaving some out; None if nobody else waits."""
        for request in self._resumed:
            if request not in passed_over:
                return request
        best: Request | None = None
        least = (0.0, (0.0, 0))
        for tenant, requests in self._by_tenant.items():
            head = next((request for request in requests if request not in passed_over), None)
            if head is not None:
                key = (self._counters[tenant], head.order)
                if best is None or key < least:
                    best, least = head, key
        return best

    def take(self, request: Request) -> None:
        """A request begins to run."""
        is_new = not _is_in(self._resumed, request)
        self.remove(request)
        if is_new:
            self._floor = max(self._floor, self.counter(request.tenant))

    def remove(self, request: Request) -> None:
        """A request waits no longer, for whatever reason."""
        self.num_tokens -= request.num_tokens
        if _is_in(self._resumed, request):
            del self._resumed[bisect_left(self._resumed, request.order, key=_order)]
            return
        name = self._name(request.tenant)
        requests = self._by_tenant[name]
        del requests[bisect_left(requests, request.order, key=_order)]
        if not requests:
            del self._by_tenant[name]

    def charge(self, tenant: str, cost: float) -> None:
        """A tenant was served."""
        self._counters[self._name(tenant)] = self.counter(tenant) + cost
        if not self._by_tenant:
            self._floor = max(self._floor, self.counter(tenant))
        if len(self._counters) > 2 * len(self._by_tenant) + 256:
            self._counters = {name: counter for name, counter in self._counters.items() if counter > self._floor or name in self._by_tenant}


def _order(request: Request) -> tuple[float, int]:
    return request.order


def _is_in(requests: list[Request], request: Request) -> bool:
    index = bisect_left(requests, request.order, key=_order)
    return index < len(requests) and requests[index] is request
