"""Spans, as an SDK in the same process receives them."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.serving.live_server import live_server
from tests.serving.test_raw_http import wait_until
from tests.serving.tiny import NAME
from tripod.engine.engine import Engine
from tripod.serving.app import build_app

sdk = pytest.importorskip("opentelemetry.sdk.trace")


def test_a_request_is_a_span_below_its_callers_with_children_for_its_phases(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    from opentelemetry import trace
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    provider = sdk.TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)  # a provider can be set once a process; this one goes again
    trace_id = "0af7651916cd43dd8448eb211c80319c"

    def ours() -> list[Any]:  # and not those of the probes that waited for the server
        return [span for span in exporter.get_finished_spans() if format(span.context.trace_id, "032x") == trace_id]

    with live_server(build_app(engine)) as server:
        body = {"model": NAME, "prompt": "Hi", "max_tokens": 4, "ignore_eos": True}
        headers = {"traceparent": f"00-{trace_id}-b7ad6b7169203331-01"}
        assert httpx.post(f"{server.url}/completions", json=body, headers=headers, trust_env=False).status_code == 200
        assert wait_until(lambda: len(ours()) == 4)
    spans = {span.name: span for span in ours()}
    assert set(spans) == {"POST /v1/completions", "queue", "prefill", "decode"}
    request = spans["POST /v1/completions"]
    assert format(request.parent.span_id, "016x") == "b7ad6b7169203331"
    assert request.attributes["gen_ai.usage.output_tokens"] == 4
    assert request.attributes["http.response.status_code"] == 200
    for phase in ("queue", "prefill", "decode"):
        assert spans[phase].parent.span_id == request.context.span_id
    assert request.start_time <= spans["queue"].start_time <= spans["queue"].end_time == spans["prefill"].start_time
    assert spans["prefill"].end_time == spans["decode"].start_time < spans["decode"].end_time <= request.end_time
