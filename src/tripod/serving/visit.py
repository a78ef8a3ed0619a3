"""One HTTP request on its way through the server, from its arrival to its last byte."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tripod.errors import DeadlineError, OverloadedError, RequestError
from tripod.serving.admission import Ticket
from tripod.serving.errors import UnauthorizedError, error_response
from tripod.trace import Event

if TYPE_CHECKING:
    from tripod.serving.metrics import Meter
    from tripod.serving.served import Served
    from tripod.serving.telemetry import RequestSpan

_MAX_TENANT = 64  # characters of a name that a client gives itself
_WORK = frozenset(  # what needs a place
    {
        *("/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages", "/v1/messages/count_tokens"),
        *("/v1/embeddings", "/tokenize", "/detokenize"),
    }
)


@dataclass(slots=True, eq=False)
class Visit:
    """What the server knows of one HTTP request beyond its body. Closed by `Front`, however it ends."""

    served: Served
    arrived_s: float  # monotonic, as all times here
    tenant: str
    timeout_s: float | None  # of the header
    span: RequestSpan
    deadline_s: float | None = None
    priority: int = 0
    ticket: Ticket | None = None
    meter: Meter | None = None
    tokenize_s: float = 0.0
    is_entered: bool = False
    status: int = 0
    error: Exception | None = None
    attributes: dict[str, str | int | float] = field(default_factory=dict)

    @staticmethod
    def of(request: Request) -> Visit:
        visit = request.scope["tripod.visit"]
        assert isinstance(visit, Visit)
        return visit

    def enter(self) -> None:
        """Ask for a place before the body is read, when no more is known than that it will be at least one request.

        Raises:
            OverloadedError: the queue is full, or the server is stopping.
        """
        if self.timeout_s is not None:
            self.deadline_s = self.arrived_s + self.timeout_s
        self.served.lifecycle.check_open()
        self.served.admission.check(self.tenant, 1, 0, time.monotonic())

    def admit(self, *, user: str | None, timeout_s: float | None, priority: int, num_requests: int, num_tokens: float) -> None:
        """Let the request in, now that its body is known and before any work is done for it.

        Raises:
            OverloadedError: there is no place in the queue, or the server is stopping.
            RequestError: it is more than ever fits.
        """
        if timeout_s is not None:
            self.deadline_s = min(self.arrived_s + timeout_s, self.deadline_s if self.deadline_s is not None else math.inf)
        if not self.tenant and user:
            self.tenant = user[:_MAX_TENANT]
        self.priority = priority
        self.served.lifecycle.check_open()
        self.ticket = self.served.admission.admit(self.tenant, num_requests, num_tokens, time.monotonic())
        self.served.lifecycle.enter()
        self.is_entered = True

    @property
    def remaining_s(self) -> float | None:
        """Seconds until the deadline."""
        return None if self.deadline_s is None else self.deadline_s - time.monotonic()

    def deadline_error(self) -> DeadlineError:
        assert self.deadline_s is not None
        return DeadlineError(
            f"the answer was not finished within the {self.deadline_s - self.arrived_s:.3g} s that the request gave; "
            "raise timeout, or ask for fewer tokens"
        )

    def sent(self, index: int, event: Event) -> None:
        """An event of a choice has reached the socket."""
        if self.meter is not None:
            self.meter.sent(index, event)

    def close(self) -> None:
        now = time.monotonic()
        if self.meter is not None:
            self.meter.close(self.error)
        if isinstance(self.error, OverloadedError) and not self.is_entered:
            self.served.metrics.rejected.labels(str(self.error.status)).inc()
            self.served.metrics.reject.observe(now - self.arrived_s)
        if self.ticket is not None:
            self.served.admission.release(self.ticket, now)
        if self.is_entered:
            self.served.lifecycle.leave()
        self.span.end(self, now)


class Front:
    """The outermost part of the application: when a request came, whose it is, and that everything it holds is given back."""

    def __init__(self, app: ASGIApp, served: Served) -> None:
        self._app = app
        self._served = served

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        arrived_s = scope.get("tripod.arrived_s") or time.monotonic()
        headers = Headers(scope=scope)
        keys = self._served.api_keys
        key_tenant = keys.tenant(_authorization(headers)) if keys.digests else None
        visit = Visit(
            served=self._served,
            arrived_s=arrived_s,
            tenant=key_tenant or headers.get("x-tenant", "")[:_MAX_TENANT],
            timeout_s=None,
            span=self._served.telemetry.begin(scope, headers),
        )
        scope["tripod.visit"] = visit

        async def noting_status(message: Message) -> None:
            if message["type"] == "http.response.start":
                visit.status = message["status"]
                if self._served.lifecycle.is_draining:
                    message["headers"] = [*message["headers"], (b"connection", b"close")]
            await send(message)

        try:
            if key_tenant is None and keys.guards(scope["path"]):
                await error_response(UnauthorizedError(), scope["path"])(scope, receive, noting_status)
                return
            try:
                visit.timeout_s = _timeout(headers.get("x-request-timeout"))
            except RequestError as error:
                await error_response(error, scope["path"])(scope, receive, noting_status)
                return
            if scope["method"] == "POST" and (scope["path"] in _WORK or scope["path"].startswith("/apps/")):
                try:
                    visit.enter()
                except OverloadedError as error:  # told from here: routing and reading would cost more than the refusal
                    visit.error = error
                    await error_response(error, scope["path"])(scope, receive, noting_status)
                    return
            await self._app(scope, receive, noting_status)
        finally:
            visit.close()


def _authorization(headers: Headers) -> str | None:
    """Anthropic's clients send their key in a header of its own."""
    key = headers.get("x-api-key")
    return headers.get("authorization") or (f"Bearer {key}" if key else None)


def _timeout(text: str | None) -> float | None:
    """Seconds of the header X-Request-Timeout."""
    if text is None:
        return None
    try:
        timeout_s = float(text)
    except ValueError:
        timeout_s = math.nan
    if not 0.0 < timeout_s < math.inf:
        raise RequestError(f"the header X-Request-Timeout is {text[:40]!r}; give seconds, a number above 0", param="timeout")
    return timeout_s
