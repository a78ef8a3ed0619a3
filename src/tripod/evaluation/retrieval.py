"""Searches with known relevant sources: a data set as JSONL, one report with intervals, by the definitions of trec_eval."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio

from tripod.documents import Passage
from tripod.errors import ConfigError, DatasetError
from tripod.evaluation.answers import jsonl
from tripod.evaluation.report import Report
from tripod.evaluation.retrieval_metrics import average_precision, ndcg, recall, reciprocal_rank

METRICS = {"ndcg": ndcg, "recall": recall, "mrr": reciprocal_rank, "map": average_precision}


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrievalCase:
    """A query, with the gain of each relevant source."""

    id: str
    query: str
    gains: Mapping[str, float] = field(hash=False)


def load_retrieval_cases(path: Path) -> list[RetrievalCase]:
    """Read JSONL: an object a line with `query` (or `question`) and `relevant`, a list of sources or an object of sources with gains.

    Raises:
        DatasetError: a line is none, or has no relevant source, so that no metric is defined for it.
    """
    cases = []
    for number, row in jsonl(path):
        query, relevant = row.get("query", row.get("question")), row.get("relevant", row.get("sources"))
        if not isinstance(query, str) or not query.strip():
            raise DatasetError(f"{path}:{number} has query={query!r}; expected a text")
        if isinstance(relevant, list):
            relevant = dict.fromkeys(relevant, 1.0)
        if not isinstance(relevant, dict) or not any(isinstance(gain, int | float) and gain > 0 for gain in relevant.values()):
            raise DatasetError(f"{path}:{number} has relevant={relevant!r}; expected sources, of which at least one has a gain above 0")
        cases.append(RetrievalCase(id=str(row.get("id", number)), query=query, gains={str(s): float(g) for s, g in relevant.items()}))
    return cases


async def evaluate_retrieval(
    cases: Sequence[RetrievalCase],
    search: Callable[[str], Awaitable[Sequence[Passage]]],
    *,
    k: int = 10,
    name: str = "retrieval",
    at_once: int = 4,
    settings: Mapping[str, Any] | None = None,
) -> Report:
    """Search for every query, and look where the relevant sources stand. A source counts where its first passage does.

    Args:
        cases: queries with relevant sources.
        search: such as `lambda query: index.search(query, k=50)`: enough passages to hold k sources.
        k: how far the metrics look.
        name: of the report.
        at_once: searches under way.
        settings: kept in the report.

    Raises:
        ConfigError: no cases, or `k` or `at_once` below 1.
    """
    if not cases or k < 1 or at_once < 1:
        raise ConfigError(f"{len(cases)} cases, k={k}, {at_once} at once, is nothing to evaluate; give at least one of each")
    rankings: dict[int, list[str]] = {}
    seconds: dict[int, float] = {}
    limiter = anyio.CapacityLimiter(at_once)

    async def one(place: int, case: RetrievalCase) -> None:
        async with limiter:
            began_s = time.perf_counter()
            found = await search(case.query)
            seconds[place] = time.perf_counter() - began_s
            rankings[place] = list(dict.fromkeys(passage.source for passage in found))

    async with anyio.create_task_group() as tasks:
        for place, case in enumerate(cases):
            tasks.start_soon(one, place, case)
    values: dict[str, list[float | None]] = {
        f"{metric}@{k}": [function(rankings[place], case.gains, k) for place, case in enumerate(cases)]
        for metric, function in METRICS.items()
    }
    values["seconds"] = [seconds[place] for place in range(len(cases))]
    return Report(
        name=name,
        cases=tuple(case.id for case in cases),
        values=values,
        lower_is_better=frozenset({"seconds"}),
        curves={f"ndcg@{k} of the queries, worst first": ("share of queries", f"ndcg@{k}", *_sorted(values[f"ndcg@{k}"]))},
        settings=settings or {},
    )


def _sorted(values: Sequence[float | None]) -> tuple[list[float], list[float]]:
    known = sorted(value for value in values if value is not None)
    return [(place + 1) / len(known) for place in range(len(known))], known
