"""OpenTelemetry spans: one for each request, with children for queue, prefill and decode.

Needs the package opentelemetry-api alone. Without an SDK in the process every span is a no-op; without the package, too.
Attributes are those of the semantic conventions for generative AI.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from starlette.types import Scope

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer

    from tripod.serving.visit import Visit
    from tripod.trace import Finished


def _epoch_ns(monotonic_s: float) -> int:
    return time.time_ns() - round((time.monotonic() - monotonic_s) * 1e9)


class Telemetry:
    """Opens the span of each request."""

    def __init__(self) -> None:
        self._tracer: Tracer | None = None
        try:
            from opentelemetry import trace
        except ModuleNotFoundError:
            return
        self._tracer = trace.get_tracer("tripod.serving")

    def begin(self, scope: Scope, headers: Mapping[str, str]) -> RequestSpan:
        """The span of a request, below the caller's where it sent a W3C `traceparent`."""
        if self._tracer is None:
            return RequestSpan(None, None)
        from opentelemetry.propagate import extract
        from opentelemetry.trace import SpanKind

        span = self._tracer.start_span(f"{scope['method']} {scope['path']}", context=extract(headers), kind=SpanKind.SERVER)
        return RequestSpan(self._tracer, span)


class RequestSpan:
    """The span of one request; a no-op where nobody records."""

    def __init__(self, tracer: Tracer | None, span: Span | None) -> None:
        self._tracer = tracer
        self._span = span if span is not None and span.is_recording() else None

    def phases(self, finished: Finished, asked_s: float) -> None:
        """The children of one choice, from the moment that the engine was asked for it."""
        if self._span is None or self._tracer is None:
            return
        from opentelemetry.trace import set_span_in_context

        context = set_span_in_context(self._span)
        timings = finished.timings
        begin = _epoch_ns(asked_s)
        for name, seconds in (("queue", timings.queue_s), ("prefill", timings.prefill_s), ("decode", timings.decode_s)):
            child = self._tracer.start_span(name, context=context, start_time=begin)
            begin += round(seconds * 1e9)
            child.end(end_time=begin)

    def end(self, visit: Visit, now: float) -> None:
        """Close the span with what is known of the request."""
        if self._span is None:
            return
        from opentelemetry.trace import Status, StatusCode

        span = self._span
        span.set_attribute("http.response.status_code", visit.status)
        for name, value in visit.attributes.items():
            span.set_attribute(name, value)
        if visit.error is not None:
            span.set_attribute("error.type", type(visit.error).__name__)
        if visit.error is not None or visit.status >= 500:
            span.set_status(Status(StatusCode.ERROR, str(visit.error) if visit.error is not None else None))
        span.end(end_time=_epoch_ns(now))
