"""A retrieval pipeline of one's own, as data: search by words and meaning, then a closer reading of what was found.

    python examples/hybrid_pipeline.py docs/ "How are blocks freed?"

The steps are functions of the library; what they take is inferred from names and types, or said. The flow prints, draws and checks itself.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import tripod
from tripod.flows.step import step
from tripod.retrieval.rerank import rerank


class Overlap:
    """A `Reranker` for an example: counts the words of the question. A cross-encoder or a model stands here else."""

    async def rerank(self, question: str, passages: Sequence[tripod.Passage]) -> list[float]:
        words = set(question.lower().split())
        return [float(len(words & set(passage.text.lower().split()))) for passage in passages]


def pipeline(index: tripod.Index) -> tripod.Flow:
    search = step(index.search, q="question", k="num_candidates")
    return tripod.Flow(search, rerank, name="hybrid")


async def main(folder: str, question: str) -> None:
    async with tripod.Index(":memory:") as index:
        await index.sync(folder)
        flow = pipeline(index)
        print(flow)
        for passage in await flow(question=question, num_candidates=20, reranker=Overlap(), k=3):
            print(f"{passage.score:.0f}  {passage.source}: {passage.text[:60]!r}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(f"usage: python {sys.argv[0]} FOLDER QUESTION")
    tripod.run(main(sys.argv[1], sys.argv[2]))
