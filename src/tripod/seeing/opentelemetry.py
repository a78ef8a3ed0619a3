"""Finished spans to OpenTelemetry, with the attributes of its semantic conventions for generative AI, by one line:

`tripod.trace.listeners.append(send)` sends every run of this process; `send(span)` sends one.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from tripod.errors import MissingExtraError
from tripod.seeing.page import label, usage_of
from tripod.seeing.trace_file import plain
from tripod.trace import Span

if TYPE_CHECKING:
    from opentelemetry.context import Context

_OPERATIONS = {"model": "chat", "generate": "chat", "tool": "execute_tool", "agent": "invoke_agent", "retrieve": "retrieval"}
_NAMES = {"tool": "gen_ai.tool.name", "agent": "gen_ai.agent.name"}
_USAGE = {"prompt_tokens": "input_tokens", "completion_tokens": "output_tokens", "cached_tokens": "cache_read.input_tokens"}
_REQUEST = {"stop": "stop_sequences"} | {
    name: name for name in ("temperature", "top_p", "top_k", "max_tokens", "seed", "presence_penalty", "frequency_penalty")
}


def send(span: Span) -> None:
    """Give a span, and all below it, to the tracer of this process; without an SDK this does nothing.

    Raises:
        MissingExtraError: opentelemetry-api is not installed.
    """
    offset_ns = time.time_ns() - time.monotonic_ns()
    _send(span, None, offset_ns)


def conventional(span: Span) -> dict[str, Any]:
    """The attributes of a span: those that the conventions name under their names, the others as `tripod.NAME`."""
    attributes = plain(span.attributes)
    found: dict[str, Any] = {}
    if span.name in _OPERATIONS:
        found["gen_ai.operation.name"] = _OPERATIONS[span.name]
    if span.name in _NAMES and "name" in attributes:
        found[_NAMES[span.name]] = attributes.pop("name")
    if (usage := usage_of(attributes)) is not None:
        found |= {f"gen_ai.usage.{told}": usage[name] for name, told in _USAGE.items() if name in usage}
    if isinstance(sampling := attributes.get("sampling"), dict):
        given = {told: sampling.get(name) for name, told in _REQUEST.items()}
        found |= {f"gen_ai.request.{told}": value for told, value in given.items() if value not in (None, [])}
    reply = attributes.get("reply") if isinstance(attributes.get("reply"), dict) else attributes
    if reply.get("model"):
        found["gen_ai.response.model"] = str(reply["model"])
    if reply.get("finish_reason"):
        found["gen_ai.response.finish_reasons"] = [str(reply["finish_reason"])]
    if "error" in attributes:
        found["error.type"] = str(attributes["error"]).partition(":")[0]
    for name, value in attributes.items():
        found[f"tripod.{name}"] = value if isinstance(value, str | bool | int | float) else json.dumps(value, ensure_ascii=False)
    return found


def _send(span: Span, above: Context | None, offset_ns: int) -> None:
    try:
        from opentelemetry import trace
    except ImportError:
        raise MissingExtraError("opentelemetry-api", "serve", "sending spans to OpenTelemetry") from None
    started_ns = round(span.start_s * 1e9) + offset_ns
    sent = trace.get_tracer("tripod").start_span(label(span), context=above, start_time=started_ns, attributes=conventional(span))
    if "error" in span.attributes:
        sent.set_status(trace.Status(trace.StatusCode.ERROR, str(span.attributes["error"])))
    context = trace.set_span_in_context(sent)
    for child in span.children:
        _send(child, context, offset_ns)
    sent.end(end_time=started_ns + round(span.duration_s * 1e9))
