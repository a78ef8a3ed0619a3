"""What /metrics says, in Prometheus' text format. The names have the shape that vLLM's dashboards use.

Each app has its own registry, so two servers in one process do not mix. Latencies are taken here, from the arrival of
a request to the moment its bytes were handed to the socket, so they are what a client waits for: tokenising, queueing
and writing included.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from tripod.serving.histogram import Histogram
from tripod.trace import Delta, Event, Finished

if TYPE_CHECKING:
    from tripod.engine.engine import Engine
    from tripod.serving.admission import Admission


class Metrics:
    """Counters and histograms of one app, and gauges read from its engine at each scrape."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, engine: Engine | None, admission: Admission) -> None:
        self._registry = CollectorRegistry()
        self.prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts, cached ones included")
        self.generation_tokens = self._counter("generation_tokens", "Tokens generated")
        self.cached_tokens = self._counter("cached_tokens", "Tokens of prompts whose keys and values were reused")
        self.prefix_cache_queries = self._counter("prefix_cache_queries", "Tokens of prompts that were looked up in the prefix cache")
        self.prefix_cache_hits = self._counter("prefix_cache_hits", "Of these, the ones that were found there")
        self.embedding_tokens = self._counter("embedding_tokens", "Tokens of texts that were embedded")
        self.success = Counter("tripod_request_success", "Requests finished, by reason", ("finished_reason",), registry=self._registry)
        self.aborted = self._counter("num_aborted_requests", "Requests whose client went away")
        self.failed = self._counter("num_failed_requests", "Requests that the engine refused or failed")
        self.rejected = Counter("tripod_num_rejected_requests", "HTTP requests not let in, by status", ("status",), registry=self._registry)
        self.first_token = Histogram("time_to_first_token", "Arrival to first token")
        self.inter_token = Histogram("inter_token_latency", "Between two tokens of one request")
        self.end_to_end = Histogram("e2e_request_latency", "Arrival to last token")
        self.queue = Histogram("request_queue_time", "Arrival at the engine to the first step")
        self.prefill = Histogram("request_prefill_time", "First step to first token")
        self.decode = Histogram("request_decode_time", "First token to last")
        self.tokenize = Histogram("request_tokenize_time", "Making token ids of the prompts of one HTTP request")
        self.reject = Histogram("reject_time", "Arrival to the refusal of a request for which there was no place")
        self._registry.register(_Histograms(self))
        self._registry.register(_Queue(admission))
        if engine is not None:
            self._registry.register(_EngineNumbers(engine))

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(f"tripod_{name}", text, registry=self._registry)

    def text(self) -> bytes:
        return generate_latest(self._registry)

    def meter(self, num_choices: int, arrived_s: float) -> Meter:
        """Counts the choices of one HTTP request that came at `arrived_s`, of the monotonic clock."""
        return Meter(self, num_choices, arrived_s)


@dataclass(slots=True)
class Meter:
    """Watches the choices of one HTTP request."""

    metrics: Metrics
    num_open: int
    arrived_s: float
    _last_s: dict[int, float] = field(default_factory=dict)
    _num_counted: dict[int, int] = field(default_factory=dict)  # generated tokens by choice: counted as they come, whatever the end

    def sent(self, index: int, event: Event) -> None:
        """An event of a choice has been sent to the client, or has come where the answer is sent as a whole."""
        now = time.monotonic()
        metrics = self.metrics
        match event:
            case Delta() if event.token_ids:
                last_s, num_tokens = self._last_s.get(index), len(event.token_ids)
                metrics.generation_tokens.inc(num_tokens)
                self._num_counted[index] = self._num_counted.get(index, 0) + num_tokens
                if last_s is None:
                    metrics.first_token.observe(now - self.arrived_s)
                else:
                    metrics.inter_token.observe((now - last_s) / num_tokens, num_tokens)
                self._last_s[index] = now
            case Finished():
                self.num_open -= 1
                metrics.prompt_tokens.inc(event.usage.prompt_tokens)
                unseen = event.usage.completion_tokens - self._num_counted.get(index, 0)  # such as an end of sequence, which has no text
                metrics.generation_tokens.inc(max(0, unseen))
                metrics.cached_tokens.inc(event.usage.cached_tokens)
                metrics.prefix_cache_queries.inc(event.usage.prompt_tokens)
                metrics.prefix_cache_hits.inc(event.usage.cached_tokens)
                metrics.success.labels(event.finish_reason).inc()
                metrics.end_to_end.observe(now - self.arrived_s)
                metrics.queue.observe(event.timings.queue_s)
                metrics.prefill.observe(event.timings.prefill_s)
                metrics.decode.observe(event.timings.decode_s)

    def close(self, error: Exception | None) -> None:
        """What has not finished was failed by an error, or left by its client."""
        (self.metrics.aborted if error is None else self.metrics.failed).inc(self.num_open)
        self.num_open = 0


class _Histograms(Collector):
    def __init__(self, metrics: Metrics) -> None:
        self._histograms = [value for value in vars(metrics).values() if isinstance(value, Histogram)]

    def collect(self) -> Iterator[Metric]:
        for histogram in self._histograms:
            yield histogram.family()


class _Queue(Collector):
    def __init__(self, admission: Admission) -> None:
        self._admission = admission

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "tripod_num_requests_admitted",
            "Requests that were let in and have not ended",
            self._admission.num_waiting + self._admission.num_started,
        )
        yield CounterMetricFamily("tripod_num_admitted_http_requests", "HTTP requests let in", self._admission.num_admitted)
        yield GaugeMetricFamily("tripod_num_tokens_waiting", "Estimated tokens of prompts that wait", self._admission.waiting_tokens)


class _EngineNumbers(Collector):
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        stats = self._engine.stats()
        yield GaugeMetricFamily("tripod_num_requests_running", "Requests in the batch", stats.running)
        yield GaugeMetricFamily("tripod_num_requests_waiting", "Requests in the engine's queue", stats.waiting)
        used = stats.total_blocks - stats.free_blocks - stats.cached_blocks
        yield GaugeMetricFamily(
            "tripod_kv_cache_usage_perc", "Share of the key/value blocks in use, from 0 to 1", used / stats.total_blocks
        )
        yield CounterMetricFamily("tripod_num_preemptions", "Requests that gave up their blocks to others", stats.preemptions)
        yield CounterMetricFamily("tripod_engine_steps", "Steps of the engine", stats.steps)
        yield CounterMetricFamily("tripod_expert_cache_hits", "Experts asked for that were in memory", stats.expert_hits)
        yield CounterMetricFamily("tripod_expert_cache_misses", "Experts asked for that were not", stats.expert_misses)
        yield CounterMetricFamily(
            "tripod_num_leaked_blocks", "Blocks without an owner, reclaimed when idle; above 0 is a defect", stats.leaked_blocks
        )
