"""A flow as a picture: Mermaid's text, and SVG."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from tripod.flows.hints import show

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tripod.flows.flow import Flow

_SHAPES = {"call": ("[", "]"), "each": ("[[", "]]"), "loop": ("([", "])"), "branch": ("{", "}"), "flow": ("[/", "/]")}
_WIDTH, _HEIGHT, _GAP = 170, 44, 46


def mermaid(flow: Flow) -> str:
    """A flowchart: inputs round, steps by their kind, edges with the types that go along them."""
    lines = ["flowchart TD"]
    lines += [f"    {_id(name, True)}(({_text(name)}))" for name in sorted(flow.inputs)]
    for step in flow.steps:
        left, right = _SHAPES[step.kind]
        lines.append(f"    {_id(step.name, False)}{left}{_text(_label(flow, step.name))}{right}")
    lines += [f"    {_id(source, is_input)} -->|{_text(kind)}| {_id(name, False)}" for source, is_input, name, kind in _edges(flow)]
    return "\n".join(lines) + "\n"


def svg(flow: Flow) -> str:
    """A picture without scripts or fonts: each step below all that it takes from."""
    levels: dict[tuple[str, bool], int] = {(name, True): 0 for name in sorted(flow.inputs)}
    for step in flow.steps:
        sources = [(source, edge.is_input) for edge in flow.wiring.edges[step.name].values() for source in edge.sources]
        levels[step.name, False] = 1 + max((levels[source] for source in sources), default=0)
    rows: dict[int, list[tuple[str, bool]]] = {}
    for node, level in levels.items():
        rows.setdefault(level, []).append(node)
    width = max(len(row) for row in rows.values()) * (_WIDTH + _GAP) + _GAP
    height = (max(rows) + 1) * (_HEIGHT + _GAP) + _GAP
    places = {
        node: (width * (number + 1) // (len(row) + 1), _GAP + level * (_HEIGHT + _GAP))
        for level, row in rows.items()
        for number, node in enumerate(row)
    }
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="system-ui, sans-serif" font-size="12" text-anchor="middle">',
        f"<title>{escape(flow.name)}</title>",
        '<defs><marker id="end" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 8 4 0 8z" fill="#666"/></marker></defs>',
    ]
    for source, is_input, name, kind in _edges(flow):
        (x0, y0), (x1, y1) = places[source, is_input], places[name, False]
        y0 += _HEIGHT
        bend = (y0 + y1) // 2
        parts.append(f'<path d="M{x0} {y0}C{x0} {bend} {x1} {bend} {x1} {y1}" fill="none" stroke="#666" marker-end="url(#end)"/>')
        parts.append(f'<text x="{(x0 + x1) // 2 + 6}" y="{bend}" fill="#666" font-size="10" text-anchor="start">{escape(kind)}</text>')
    for (name, is_input), (x, y) in places.items():
        fill, radius = ("#eef3fb", _HEIGHT // 2) if is_input else ("#fff", 5)
        parts.append(
            f'<rect x="{x - _WIDTH // 2}" y="{y}" width="{_WIDTH}" height="{_HEIGHT}" rx="{radius}" fill="{fill}" stroke="#345"/>'
            f'<text x="{x}" y="{y + _HEIGHT // 2 + 4}" fill="#123">{escape(name if is_input else _label(flow, name))}</text>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"


def _edges(flow: Flow) -> Iterator[tuple[str, bool, str, str]]:
    """Source, whether it is an input, step, type."""
    for step in flow.steps:
        for parameter, edge in flow.wiring.edges[step.name].items():
            for source in edge.sources:
                yield source, edge.is_input, step.name, show(step.inputs[parameter].hint)


def _label(flow: Flow, name: str) -> str:
    step = flow.wiring.steps[name]
    match step.kind:
        case "each":
            return f"each {name}, {step.parts['limit']} at once"
        case "loop":
            return f"loop {name}, at most {step.parts['at_most']}"
        case "branch":
            return f"{name}: {step.parts['then'].name} or {step.parts['otherwise'].name}"
        case _:
            return name


def _id(name: str, is_input: bool) -> str:
    return ("in_" if is_input else "step_") + "".join(c if c.isascii() and (c.isalnum() or c == "_") else f"_{ord(c):x}" for c in name)


def _text(text: str) -> str:
    return '"' + escape(text, quote=False).replace('"', "#quot;") + '"'
