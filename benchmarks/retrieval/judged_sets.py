"""Three judged sets, read where they lie (`TRIPOD_SHARED`, or the folder `shared` beside the checkout): never copied.

Cranfield: 1400 abstracts, 225 queries; any grade from 1 to 4 is relevant, -1 is not; the title is put in front of the body
where the body does not begin with it. This copy's five appended junk documents (1401 and up) and its junk 226th query are dropped.
SQuAD: 1121 paragraphs of half of the 1.1 development set; the paragraph of a question is relevant to it.
HotpotQA: 991 paragraphs of 100 development questions, pooled by title; the supporting titles are relevant.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.shared_data import DATA


@dataclass(frozen=True, slots=True)
class JudgedSet:
    """Texts, queries, and which texts answer which query."""

    name: str
    documents: Mapping[str, str]  # id -> text
    queries: Mapping[str, str]  # id -> text; only those with a relevant document
    gains: Mapping[str, Mapping[str, float]]  # query id -> document id -> gain


def cranfield(data: Path = DATA) -> JudgedSet:
    folder = data / "cranfield"
    records = [record for record in _records(folder / "cran.all.1400") if int(record["I"]) <= 1400]
    # Queries are judged by their order in the file, not by their number in it.
    queries = {str(i): record["W"] for i, record in enumerate(_records(folder / "cran.qry")[:225], start=1)}
    gains: dict[str, dict[str, float]] = {}
    for line in (folder / "cranqrel").read_text(encoding="utf-8").splitlines():
        if line.split():
            query, document, grade = line.split()[:3]
            if int(grade) >= 1:
                gains.setdefault(query, {})[document] = 1.0
    documents = {record["I"]: _title_and_body(record) for record in records}
    return JudgedSet("cranfield", documents, {i: text for i, text in queries.items() if i in gains}, gains)


def squad(data: Path = DATA) -> JudgedSet:
    articles = json.loads((data / "squad-dev" / "dev-v1.1.half.json").read_text(encoding="utf-8"))["data"]
    ids: dict[str, str] = {}  # paragraph -> id
    queries: dict[str, str] = {}
    gains: dict[str, dict[str, float]] = {}
    for article in articles:
        for paragraph in article["paragraphs"]:
            document = ids.setdefault(paragraph["context"], f"p{len(ids)}")
            for question in paragraph["qas"]:
                queries[question["id"]] = question["question"]
                gains[question["id"]] = {document: 1.0}
    return JudgedSet("squad", {document: text for text, document in ids.items()}, queries, gains)


def hotpotqa(data: Path = DATA) -> JudgedSet:
    rows = json.loads((data / "hotpotqa-100" / "hotpot_dev_distractor_100.json").read_text(encoding="utf-8"))
    documents: dict[str, str] = {}
    for row in rows:
        for title, sentences in zip(row["context"]["title"], row["context"]["sentences"], strict=True):
            documents.setdefault(title, f"{title}. {''.join(sentences)}")
    queries = {f"q{i}": row["question"] for i, row in enumerate(rows)}
    gains = {f"q{i}": dict.fromkeys(row["supporting_facts"]["title"], 1.0) for i, row in enumerate(rows)}
    return JudgedSet("hotpotqa", documents, queries, gains)


SETS: Mapping[str, Callable[[], JudgedSet]] = {"cranfield": cranfield, "squad": squad, "hotpotqa": hotpotqa}

_FIELD = re.compile(r"\.([A-Z])(?:\s+(\d+))?\s*\Z")


def _records(path: Path) -> list[dict[str, str]]:
    """Records of SMART's format: `.I 1` begins one, `.T`, `.A`, `.B` and `.W` begin its fields."""
    records: list[dict[str, list[str]]] = []
    field: list[str] = []
    for line in path.read_text(encoding="utf-8-sig", errors="replace").splitlines():
        mark = _FIELD.match(line)
        if mark and mark[1] == "I":
            records.append({"I": [mark[2]]})
        elif mark and records:
            field = records[-1].setdefault(mark[1], [])
        elif records:
            field.append(line)
    return [{name: " ".join(" ".join(lines).split()) for name, lines in record.items()} for record in records]


def _title_and_body(record: Mapping[str, str]) -> str:
    title, body = record.get("T", ""), record.get("W", "")
    return body if body.startswith(title) else f"{title} {body}".strip()
