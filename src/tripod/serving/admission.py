"""Who is let in. Decided from counts alone, before a request is tokenized, so that refusing stays cheap when all else is busy.

Pure: no clock, no input or output; the time is an argument.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from tripod.errors import OverloadedError, RequestError

_SEEN_S = 60.0  # a tenant counts as present for so long after its last request
_NUM_REMEMBERED = 64  # ends of requests from which the rate is taken


@dataclass(slots=True, eq=False)
class Ticket:
    """What one HTTP request holds in the server: some engine requests, first waiting, then started."""

    tenant: str
    num_waiting: int
    num_started: int = 0
    tokens_each: float = 0.0  # estimated, of the prompt of each


@dataclass(slots=True)
class _Tenant:
    num_waiting: int = 0
    num_started: int = 0
    seen_s: float = 0.0


@dataclass(slots=True)
class Admission:
    """The ledger of what was let in and has not ended.

    The queue has `max_waiting_requests` places, and as many more as the engine has free places to run. While several
    tenants are present, each may hold an equal part of it, and beyond that at most `tenant_share` times the places that
    are free (dynamic thresholds, Choudhury & Hahne 1998): whoever floods the queue leaves 1 / (1 + tenant_share) of it
    to the others, and none of them is refused for a burst that its own part could hold.
    """

    max_running: int  # requests that the engine runs at once
    max_waiting_requests: int
    max_waiting_tokens: int
    tenant_share: float
    max_tenant_requests: int | None = None
    num_waiting: int = 0
    num_started: int = 0
    num_admitted: int = 0  # tickets given, ever
    waiting_tokens: float = 0.0
    _tenants: dict[str, _Tenant] = field(default_factory=dict)
    _forgot_s: float = 0.0
    _ends_s: deque[float] = field(default_factory=lambda: deque(maxlen=_NUM_REMEMBERED))  # by a clock that stands while nothing is held
    _idle_s: float = 0.0  # how far that clock is behind: a pause says nothing of the rate

    @property
    def num_places(self) -> int:
        """Of the queue, at this moment."""
        return self.max_waiting_requests + max(0, self.max_running - self.num_started)

    def check(self, tenant: str, num_requests: int, num_tokens: float, now: float) -> None:
        """Refuse what there is no place for.

        Args:
            tenant: who asks; empty for everybody who did not say.
            num_requests: engine requests: prompts times choices.
            num_tokens: of the prompts, together; 0 while they are not known.
            now: seconds of the caller's clock.

        Raises:
            OverloadedError: ask again later.
            RequestError: it is more than ever fits.
        """
        most = self.max_waiting_requests + self.max_running
        if num_requests > most:
            raise RequestError(
                f"{num_requests} choices in one request are more than this server queues, {most}; "
                "send fewer prompts at a time, or a smaller n",
                param="n",
            )
        if self.num_waiting and self.num_waiting + num_requests > self.num_places:
            raise self._overloaded(f"{self.num_waiting} requests are waiting, and the queue has {self.num_places} places", now)
        if self.num_waiting and self.waiting_tokens + num_tokens > self.max_waiting_tokens:
            raise self._overloaded(
                f"prompts of about {self.waiting_tokens:.0f} tokens are waiting, and the queue takes {self.max_waiting_tokens}", now
            )
        mine = self._tenants.get(tenant) or _Tenant()
        if self.max_tenant_requests is not None and mine.num_waiting + mine.num_started + num_requests > self.max_tenant_requests:
            raise self._overloaded(f"this tenant has {mine.num_waiting + mine.num_started} requests of {self.max_tenant_requests}", now)
        if mine.num_waiting and len(self._tenants) > 1:
            threshold = max(self.num_places / len(self._tenants), self.tenant_share * (self.num_places - self.num_waiting))
            if mine.num_waiting + num_requests > threshold:
                raise self._overloaded(
                    f"this tenant has {mine.num_waiting} requests waiting, its share of a queue that others need too", now
                )

    def admit(self, tenant: str, num_requests: int, num_tokens: float, now: float) -> Ticket:
        """Let a request in, or raise as `check` does. The ticket must be released when the request has ended."""
        self._note(tenant, now)
        self.check(tenant, num_requests, num_tokens, now)
        if self._ends_s and not (self.num_waiting or self.num_started):
            self._idle_s = now - self._ends_s[-1]
        ticket = Ticket(tenant, num_requests, tokens_each=num_tokens / num_requests)
        self.num_admitted += 1
        self.num_waiting += num_requests
        self._tenants[tenant].num_waiting += num_requests
        self.waiting_tokens += num_tokens
        return ticket

    def start(self, ticket: Ticket) -> None:
        """One of the ticket's requests has its first token: it waits no longer."""
        if ticket.num_waiting:
            self._leave_queue(ticket, 1)
            ticket.num_started += 1
            self.num_started += 1
            self._tenants[ticket.tenant].num_started += 1

    def release(self, ticket: Ticket, now: float) -> None:
        """All of the ticket's requests have ended, however they did. Releasing twice changes nothing."""
        if not ticket.num_waiting and not ticket.num_started:
            return
        self._ends_s.extend([now - self._idle_s] * min(ticket.num_started, _NUM_REMEMBERED))
        self._tenants[ticket.tenant].num_started -= ticket.num_started
        self.num_started -= ticket.num_started
        ticket.num_started = 0
        self._leave_queue(ticket, ticket.num_waiting)

    def _leave_queue(self, ticket: Ticket, num_requests: int) -> None:
        ticket.num_waiting -= num_requests
        self.num_waiting -= num_requests
        self._tenants[ticket.tenant].num_waiting -= num_requests
        self.waiting_tokens = self.waiting_tokens - num_requests * ticket.tokens_each if self.num_waiting else 0.0

    def _note(self, tenant: str, now: float) -> None:
        """Remember who is present; now and then forget who is not, so that names that clients make up do not pile up."""
        self._tenants.setdefault(tenant, _Tenant()).seen_s = now
        if now - self._forgot_s > 1.0:
            self._forgot_s = now
            present = {name: t for name, t in self._tenants.items() if now - t.seen_s <= _SEEN_S or t.num_waiting or t.num_started}
            self._tenants = present

    def _overloaded(self, what: str, now: float) -> OverloadedError:
        retry_after_s = self.retry_after_s(now)
        return OverloadedError(f"{what}; ask again in {retry_after_s:.0f} s", retry_after_s=retry_after_s)

    def retry_after_s(self, now: float) -> float:
        """Seconds until what waits now will have ended at the rate of the last ends; from 1 to 60."""
        if len(self._ends_s) < 2:
            return 1.0
        per_request_s = max(now - self._idle_s - self._ends_s[0], 1e-3) / len(self._ends_s)
        return min(60.0, max(1.0, self.num_waiting * per_request_s))
