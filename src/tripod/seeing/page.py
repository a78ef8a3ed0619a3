"""One HTML page for a run: a timeline, each span with what it was given. No script, nothing fetched."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

from tripod.seeing.trace_file import plain
from tripod.trace import Span

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --bar: #4a7fc1; --bad: #c1443a; }
body { font: 14px/1.45 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.3rem; } h2 { font-size: 1rem; margin: 2rem 0 .3rem; }
details { border-top: 1px solid var(--line); } details:last-child { border-bottom: 1px solid var(--line); }
summary { display: grid; grid-template-columns: minmax(12rem, 1fr) 6.5rem 9rem 3fr; gap: .8rem; padding: .25rem 0; cursor: pointer; }
summary span { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.num { text-align: right; font-variant-numeric: tabular-nums; color: #888; }
.lane { position: relative; height: 1.1rem; background: #8881; border-radius: 3px; }
.lane i { position: absolute; top: 0; bottom: 0; min-width: 2px; background: var(--bar); border-radius: 3px; }
.bad i { background: var(--bad); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; margin: .3rem 0 1rem 1.5rem; }
dt { color: #888; } dd { margin: 0; }
pre { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; font: 12px/1.4 ui-monospace, monospace; }
"""


def page(spans: Sequence[Span], title: str = "trace") -> str:
    """The page.

    Args:
        spans: those that no other holds, each with a timeline of its own.
        title: of the page.
    """
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(title)}</title><style>{_STYLE}</style><h1>{escape(title)}</h1>"
    ]
    for root in spans:
        told = f"{escape(root.name)}: {seconds(root.duration_s)}, {sum(1 for _ in root.walk())} spans"
        tokens = [count for span in root.walk() if (count := num_tokens(span)) and not any(num_tokens(one) for one in span.children)]
        told += f", {sum(given for given, _ in tokens)} tokens in, {sum(made for _, made in tokens)} out" if tokens else ""
        parts.append(f"<h2>{told}</h2>")
        parts.extend(_row(span, depth, root) for span, depth in with_depth(root))
    return "\n".join(parts) + "\n"


def with_depth(span: Span, depth: int = 0) -> Iterator[tuple[Span, int]]:
    """A span and all below it, parents first."""
    yield span, depth
    for child in span.children:
        yield from with_depth(child, depth + 1)


def num_tokens(span: Span) -> tuple[int, int] | None:
    """Tokens of prompt and completion that a span says it used."""
    usage = usage_of(plain(span.attributes))
    return (int(usage["prompt_tokens"]), int(usage["completion_tokens"])) if usage is not None else None


def usage_of(attributes: Any) -> dict[str, Any] | None:
    """What a span says it used, of its attributes as JSON knows them."""
    reply = attributes.get("reply")
    usage = attributes.get("usage") or (reply.get("usage") if isinstance(reply, dict) else None)
    return usage if isinstance(usage, dict) and "prompt_tokens" in usage else None


def seconds(duration_s: float) -> str:
    """In the unit in which one reads it best."""
    scale, unit = (1.0, "s") if duration_s >= 1 else (1e3, "ms") if duration_s >= 1e-3 else (1e6, "us")
    return f"{duration_s * scale:.3g} {unit}"


def _row(span: Span, depth: int, root: Span) -> str:
    whole_s = root.duration_s or 1e-9
    left, width = 100 * (span.start_s - root.start_s) / whole_s, 100 * span.duration_s / whole_s
    tokens = "{} + {} tokens".format(*count) if (count := num_tokens(span)) else ""
    bad = " bad" if "error" in span.attributes else ""
    attributes = "".join(f"<dt>{escape(name)}<dd><pre>{escape(_text(value))}</pre>" for name, value in span.attributes.items())
    return (
        f'<details><summary><span style="padding-left:{depth * 1.2}rem">{escape(label(span))}</span>'
        f"<span class=num>{seconds(span.duration_s)}</span><span class=num>{tokens}</span>"
        f'<span class="lane{bad}"><i style="left:{left:.3f}%;width:{width:.3f}%"></i></span></summary><dl>{attributes}</dl></details>'
    )


def label(span: Span) -> str:
    """Its name, and of whom: `tool search`."""
    return f"{span.name} {span.attributes['name']}" if isinstance(span.attributes.get("name"), str) else span.name


def _text(value: Any) -> str:
    found = plain(value)
    return found if isinstance(found, str) else json.dumps(found, ensure_ascii=False, indent=1)
