"""A report as one HTML file: its means, the comparison with a baseline, and plots. Nothing is loaded from elsewhere."""

from __future__ import annotations

import io
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from tripod.errors import MissingExtraError
from tripod.evaluation.report import Comparison, Report

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0 } th, td { padding: .2rem .8rem; text-align: right; border-bottom: 1px solid #ddd }
th:first-child, td:first-child { text-align: left } .better { color: #176639 } .worse { color: #a3222a }
svg { max-width: 100%; height: auto }
caption { text-align: left; font-weight: 600; padding-bottom: .3rem } code { white-space: pre-wrap }
"""


def write_html(report: Report, path: Path, comparison: Comparison | None = None) -> None:
    """Write the page.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    rows = []
    for metric, values in report.values.items():
        interval = report.interval(metric)
        known = sum(value is not None for value in values)
        cells = ("", "", "") if interval is None else (f"{interval.mean:.3f}", f"{interval.low:.3f}", f"{interval.high:.3f}")
        rows.append((metric, *cells, str(known)))
    rows += [(name, f"{one.mean:.3f}", f"{one.low:.3f}", f"{one.high:.3f}", "") for name, one in report.statistics.items()]
    parts = [
        f"<h1>{escape(report.name)}</h1><p>{len(report.cases)} cases</p>",
        _table("Means with 95 % bootstrap intervals", ("metric", "mean", "low", "high", "cases"), rows),
    ]
    if comparison is not None:
        parts.append(_comparison(comparison))
    parts += [_svg(_intervals_plot(report)), *(_svg(_curve_plot(name, *curve)) for name, curve in report.curves.items())]
    settings = "\n".join(f"{escape(str(name))}: {escape(str(value))}" for name, value in report.settings.items())
    parts.append(f"<h2>Setting</h2><code>{settings}</code>")
    head = f'<meta charset="utf-8"><title>{escape(report.name)}</title><style>{_STYLE}</style>'
    page = f'<!doctype html><html lang="en">{head}{"".join(parts)}</html>\n'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")


def _table(caption: str, header: tuple[str, ...], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><caption>{escape(caption)}</caption><tr>{head}</tr>{body}</table>"


def _comparison(comparison: Comparison) -> str:
    rows = []
    for metric, difference in comparison.differences.items():
        kind = "better" if difference.is_better else "worse" if difference.is_worse else ""
        rows.append(f'<tr><td>{escape(metric)}</td><td class="{kind}">{escape(str(difference))}</td></tr>')
    note = f"<p>{comparison.num_new} cases are new, {comparison.num_gone} are gone; they are not compared.</p>"
    return f"<table><caption>Against the baseline, paired</caption>{''.join(rows)}</table>" + (
        note if comparison.num_new or comparison.num_gone else ""
    )


def _figure(width: float, height: float) -> Figure:
    try:
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise MissingExtraError("matplotlib", "plots", "a report with plots") from error
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    return figure


def _intervals_plot(report: Report) -> Figure:
    """Metrics between 0 and 1, with their intervals."""
    intervals = {metric: report.interval(metric) for metric in report.values} | dict(report.statistics)
    shown = {metric: one for metric, one in intervals.items() if one is not None and one.low >= 0.0 and one.high <= 1.0}
    figure = _figure(8, 0.6 + 0.32 * max(1, len(shown)))
    axis = figure.subplots()
    for place, one in enumerate(reversed(shown.values())):
        axis.errorbar(
            one.mean, place, xerr=[[max(0.0, one.mean - one.low)], [max(0.0, one.high - one.mean)]], fmt="o", color="#1f4e8c", capsize=3
        )
        axis.text(1.02, place, f"{one.mean:.3f}", va="center", fontsize=8)
    axis.set(yticks=range(len(shown)), yticklabels=list(reversed(shown)), xlim=(0, 1), title="means and 95 % intervals")
    axis.grid(axis="x", alpha=0.3)
    return figure


def _curve_plot(name: str, x_name: str, y_name: str, xs: object, ys: object) -> Figure:
    figure = _figure(6, 3.6)
    axis = figure.subplots()
    axis.plot(xs, ys, color="#1f4e8c")  # type: ignore[arg-type]
    axis.set(title=name, xlabel=x_name, ylabel=y_name)
    axis.grid(alpha=0.3)
    return figure


def _svg(figure: Figure) -> str:
    content = io.StringIO()
    figure.savefig(content, format="svg", metadata={"Date": None})
    text = content.getvalue()
    return text[text.index("<svg") :]
