"""What /metrics says, in Prometheus' text format. The names have the shape that vLLM's dashboards use.

Each app has its own registry, so two servers in one process do not mix. Latencies are taken here, from the arrival of
a request, so they include tokenising, queueing and everything else that a client waits for.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from tripod.chat.closing import closing
from tripod.trace import Delta, Event, Finished

if TYPE_CHECKING:
    from tripod.engine.engine import Engine

_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class Metrics:
    """Counters and histograms of one app, and gauges read from its engine at each scrape."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, engine: Engine | None) -> None:
        self._registry = CollectorRegistry()
        if engine is not None:
            self._registry.register(_EngineGauges(engine))
        self._prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts, cached ones included")
        self._generation_tokens = self._counter("generation_tokens", "Tokens generated")
        self._cached_tokens = self._counter("cached_tokens", "Tokens of prompts whose keys and values were reused")
        self._success = Counter("tripod_request_success", "Requests finished, by reason", ("finished_reason",), registry=self._registry)
        self._aborted = self._counter("num_aborted_requests", "Requests whose client went away")
        self._failed = self._counter("num_failed_requests", "Requests that the engine refused or failed")
        self._first_token = self._histogram("time_to_first_token", "Arrival to first token")
        self._inter_token = self._histogram("inter_token_latency", "Between two tokens of one request")
        self._end_to_end = self._histogram("e2e_request_latency", "Arrival to last token")
        self._queue = self._histogram("request_queue_time", "Arrival at the engine to the first step")
        self._prefill = self._histogram("request_prefill_time", "First step to first token")
        self._decode = self._histogram("request_decode_time", "First token to last")

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(f"tripod_{name}", text, registry=self._registry)

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(f"tripod_{name}_seconds", text, buckets=_SECONDS, registry=self._registry)

    def text(self) -> bytes:
        return generate_latest(self._registry)

    def refused(self, num_requests: int) -> None:
        """The engine would not take these."""
        self._failed.inc(num_requests)

    async def watch(self, stream: AsyncIterator[Event], arrived_s: float) -> AsyncGenerator[Event, None]:
        """Passes the events of one request on, and counts them. `arrived_s` is of the monotonic clock."""
        last_s: float | None = None
        is_finished = False
        try:
            async with closing(stream) as events:
                async for event in events:
                    now_s = time.monotonic()
                    match event:
                        case Delta() if event.token_ids:
                            if last_s is None:
                                self._first_token.observe(now_s - arrived_s)
                            else:
                                self._inter_token.observe((now_s - last_s) / len(event.token_ids))
                            last_s = now_s
                        case Finished():
                            is_finished = True
                            self._count(event, now_s - arrived_s)
                    yield event
        except Exception:
            self._failed.inc()
            is_finished = True
            raise
        finally:
            if not is_finished:
                self._aborted.inc()

    def _count(self, event: Finished, elapsed_s: float) -> None:
        self._prompt_tokens.inc(event.usage.prompt_tokens)
        self._generation_tokens.inc(event.usage.completion_tokens)
        self._cached_tokens.inc(event.usage.cached_tokens)
        self._success.labels(event.finish_reason).inc()
        self._end_to_end.observe(elapsed_s)
        self._queue.observe(event.timings.queue_s)
        self._prefill.observe(event.timings.prefill_s)
        self._decode.observe(event.timings.decode_s)


class _EngineGauges(Collector):
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        stats = self._engine.stats()
        yield GaugeMetricFamily("tripod_num_requests_running", "Requests in the batch", value=stats.running)
        yield GaugeMetricFamily("tripod_num_requests_waiting", "Requests in the queue", value=stats.waiting)
        used = stats.total_blocks - stats.free_blocks - stats.cached_blocks
        yield GaugeMetricFamily(
            "tripod_kv_cache_usage_perc", "Share of the key/value blocks in use, from 0 to 1", value=used / stats.total_blocks
        )
