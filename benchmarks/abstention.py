"""When to abstain: how well an extractive answer's confidence tells what the documents answer from what they do not.

    python -m benchmarks.abstention --data FOLDER [--questions 80]

FOLDER holds squad-dev/dev-v2.0.half.json and docs-rst-flask/. The titles of SQuAD 2.0 are split in two halves by their order: on one the
weights of `tripod.rag.extractive` are fitted (printed, to be copied there by hand), on the other what stands there is reported. Three
kinds of questions are asked of an index of paragraphs:

- answered: a paragraph of the index holds the answer;
- adversarial: written by people to look answerable from a paragraph of the index, and not answered by it;
- off topic: about articles that are not in the index.

The third kind is what abstaining must get right. On the second, words and sentence vectors alone are known to be weak.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np

import tripod
from benchmarks.shared_data import DATA
from tripod.documents import Document
from tripod.protocols import Embedder
from tripod.rag.ask import ask
from tripod.rag.extractive import THRESHOLD, Evidence
from tripod.retrieval.index import Index
from tripod.retrieval.local_embedder import find_default_embedder

RESULTS = Path(__file__).parent / "results"
Kind = Literal["answered", "adversarial", "off topic"]


@dataclass(frozen=True, slots=True)
class Outcome:
    kind: Kind
    confidence: float
    evidence: Evidence | None
    is_right: bool  # a quoted sentence holds an annotated answer


class Remembering:
    """An embedder that embeds a text once: the same sentences are candidates of many questions."""

    def __init__(self, inner: Embedder) -> None:
        self.inner = inner
        self.fingerprint = inner.fingerprint
        self.dim = inner.dim
        self._vectors: dict[str, Any] = {}

    async def embed(self, texts: Sequence[str], *, kind: Literal["query", "passage"]) -> Any:
        new = [text for text in dict.fromkeys(texts) if text not in self._vectors]
        if new:
            self._vectors.update(zip(new, await self.inner.embed(new, kind=kind), strict=True))
        return np.stack([self._vectors[text] for text in texts])


async def ask_half(articles: Sequence[dict[str, Any]], embedder: Embedder | None, num_questions: int) -> list[Outcome]:
    """Index one half of the titles and ask about both, then the other way round."""
    outcomes: list[Outcome] = []
    for inside in (articles[0::2], articles[1::2]):
        names = {article["title"] for article in inside}
        with tempfile.TemporaryDirectory() as scratch:
            async with Index(Path(scratch) / "kb.db", embedder=embedder) as index:
                await index.add(
                    Document(source=f"{article['title']}/{i}", text=paragraph["context"])
                    for article in inside
                    for i, paragraph in enumerate(article["paragraphs"])
                )
                for article in articles:
                    for question in spread(article, num_questions):
                        answers = [answer["text"] for answer in question["answers"]]
                        kind: Kind = (
                            "off topic" if article["title"] not in names else "adversarial" if question["is_impossible"] else "answered"
                        )
                        if kind == "off topic" and question["is_impossible"]:
                            continue
                        outcomes.append(await outcome_of(question["question"], index, kind, answers))
    return outcomes


async def outcome_of(question: str, index: Index, kind: Kind, answers: Sequence[str]) -> Outcome:
    answer = await ask(question, index, min_confidence=0.0)
    extract = next(span for span in answer.trace if span.name == "extract")
    return Outcome(kind, answer.confidence, extract.attributes["evidence"], any(text in answer.text for text in answers))


def spread(article: dict[str, Any], num_questions: int) -> list[dict[str, Any]]:
    """Questions from all over an article."""
    questions = [question for paragraph in article["paragraphs"] for question in paragraph["qas"]]
    return [questions[i * len(questions) // num_questions] for i in range(min(num_questions, len(questions)))]


def auroc(positives: Sequence[float], negatives: Sequence[float]) -> float:
    """How often a positive stands above a negative (Mann-Whitney); ties count half."""
    above = np.subtract.outer(np.asarray(positives), np.asarray(negatives))
    return float((above > 0).mean() + 0.5 * (above == 0).mean())


def fit(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Logistic regression of answered against off topic, both of equal weight, with a little ridge; by Newton's method."""
    used = [outcome for outcome in outcomes if outcome.evidence is not None and outcome.kind != "adversarial"]
    names = [
        "bias",
        "coverage",
        "context",
        "known",
        *(["similarity"] if used[0].evidence and used[0].evidence.similarity is not None else []),
    ]
    features = np.array([[1.0, *(getattr(outcome.evidence, name) for name in names[1:])] for outcome in used])
    target = np.array([outcome.kind == "answered" for outcome in used], dtype=float)
    weight = np.where(target == 1, 0.5 / target.sum(), 0.5 / (1 - target).sum()) * len(target)
    beta = np.zeros(len(names))
    for _ in range(50):
        probability = 1.0 / (1.0 + np.exp(-features @ beta))
        curvature = (features * (weight * probability * (1 - probability))[:, None]).T @ features + 1e-2 * np.eye(len(names))
        beta += np.linalg.solve(curvature, features.T @ (weight * (target - probability)) - 1e-2 * beta)
    return {name: round(float(value), 1) for name, value in zip(names, beta, strict=True)}


def report(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """What the confidence does, with the weights and the threshold as they stand in `tripod.rag.extractive`."""
    by_kind = {kind: [outcome for outcome in outcomes if outcome.kind == kind] for kind in ("answered", "adversarial", "off topic")}
    confidences = {kind: [outcome.confidence for outcome in members] for kind, members in by_kind.items()}
    kept = [outcome for outcome in by_kind["answered"] if outcome.confidence >= THRESHOLD]
    found: dict[str, Any] = {
        "questions": {kind: len(members) for kind, members in by_kind.items()},
        "auroc_off_topic": auroc(confidences["answered"], confidences["off topic"]),
        "auroc_adversarial": auroc(confidences["answered"], confidences["adversarial"]),
        "answered_though": {kind: float(np.mean(np.asarray(values) >= THRESHOLD)) for kind, values in confidences.items()},
        "right_of_answered": float(np.mean([outcome.is_right for outcome in kept])),
        "right_of_all": float(np.mean([outcome.is_right and outcome.confidence >= THRESHOLD for outcome in by_kind["answered"]])),
    }
    found["coverage_at_off_topic_5_percent"] = float(
        np.mean(np.asarray(confidences["answered"]) >= np.quantile(confidences["off topic"], 0.95))
    )
    return found


async def other_subject(folder: Path, articles: Sequence[dict[str, Any]], embedder: Embedder | None, num_questions: int) -> float:
    """The share of questions about SQuAD's articles that technical documentation is taken to answer."""
    with tempfile.TemporaryDirectory() as scratch:
        async with Index(Path(scratch) / "kb.db", embedder=embedder) as index:
            await index.sync(folder)
            questions = [question["question"] for article in articles for question in spread(article, num_questions)]
            answers = [await ask(question, index) for question in questions]
    return sum(answer.kind != "abstained" for answer in answers) / len(answers)


async def run(data: Path, num_questions: int) -> dict[str, Any]:
    articles = json.loads((data / "squad-dev" / "dev-v2.0.half.json").read_text(encoding="utf-8"))["data"]
    articles.sort(key=lambda article: article["title"])
    tuning, held_out = articles[0::2], articles[1::2]
    found, why_not = find_default_embedder()
    modes: dict[str, Embedder | None] = {"words": None}
    if found is None:
        print(f"with vectors: not measured, {why_not}")
    else:
        modes["words and vectors"] = Remembering(found)
    results: dict[str, Any] = {"threshold": THRESHOLD}
    for mode, embedder in modes.items():
        fitted = fit(await ask_half(tuning, embedder, num_questions))
        measured = report(await ask_half(held_out, embedder, num_questions))
        measured["flask_docs_answer_squad_questions"] = await other_subject(data / "docs-rst-flask", held_out, embedder, num_questions // 4)
        results[mode] = {"fitted_on_the_tuning_half": fitted, "held_out": measured}
        print(f"\n{mode}\n  fitted on {len(tuning)} titles: {fitted}")
        print(f"  on {len(held_out)} other titles, with the weights in tripod.rag.extractive and threshold {THRESHOLD}:")
        for name, value in measured.items():
            print(f"    {name}: {json.dumps(value) if isinstance(value, dict) else round(value, 3)}")
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="folder that holds squad-dev/ and docs-rst-flask/")
    parser.add_argument("--questions", type=int, default=80, help="of each title (default 80)")
    arguments = parser.parse_args()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    results = tripod.run(run(arguments.data, arguments.questions))
    results |= {
        "command": f"python -m benchmarks.abstention --data FOLDER --questions {arguments.questions}",
        "commit": commit,
        "python": platform.python_version(),
        "numpy": version("numpy"),
        "machine": platform.machine(),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "abstention.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(f"\nwrote {RESULTS / 'abstention.json'}")


if __name__ == "__main__":
    main()
