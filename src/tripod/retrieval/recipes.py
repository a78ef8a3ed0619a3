"""Ways to retrieve, each a few lines over the functions of this floor: to be used, or copied and changed. None is a framework."""

from __future__ import annotations

from collections.abc import Mapping

from tripod.documents import Passage, Scalar
from tripod.errors import ConfigError
from tripod.protocols import ChatModel, Reranker
from tripod.retrieval.expand import merged, with_context, with_parents
from tripod.retrieval.index import Index
from tripod.retrieval.lists import best_at_both_ends, rrf
from tripod.retrieval.mmr import mmr
from tripod.retrieval.questions import decomposed, imagined, rephrased, routed, self_queried
from tripod.retrieval.rerank import rerank

DEPTH = 5  # times as many candidates as are wanted, for whatever chooses among them


async def reranked(question: str, index: Index, reranker: Reranker, k: int = 10) -> list[Passage]:
    """Hybrid search, read again by a cross-encoder or a model."""
    return await rerank(question, await index.search(question, k=DEPTH * k), reranker, k)


async def diverse(question: str, index: Index, k: int = 10) -> list[Passage]:
    """Relevant passages that do not repeat each other."""
    if index.embedder is None:
        raise ConfigError(f"passages are told apart by their vectors, and {index.mode_note}")
    return await mmr(question, await index.search(question, k=DEPTH * k), index.embedder, k)


async def multi_query(question: str, index: Index, model: ChatModel, k: int = 10) -> list[Passage]:
    """One search for each way to ask, fused by ranks."""
    return rrf([await index.search(asked, k=DEPTH * k) for asked in await rephrased(question, model)], k)


async def hyde(question: str, index: Index, model: ChatModel, k: int = 10) -> list[Passage]:
    """A search by words for the question, and by meaning for an imagined answer, fused by ranks."""
    by_words = await index.search(question, k=DEPTH * k, mode="bm25")
    return rrf([by_words, await index.search(await imagined(question, model), k=DEPTH * k, mode="dense")], k)


async def in_parts(question: str, index: Index, model: ChatModel, k: int = 10) -> list[Passage]:
    """The smaller questions' passages in turn: the best of each first, so that no part is left without."""
    found = [await index.search(part, k=k) for part in await decomposed(question, model)]
    in_turn = [ranking[rank] for rank in range(k) for ranking in found if rank < len(ranking)]
    return list({passage.id: passage for passage in in_turn}.values())[:k]


async def from_the_right_index(
    question: str, indexes: Mapping[str, Index], descriptions: Mapping[str, str], model: ChatModel, k: int = 10
) -> list[Passage]:
    """A search of the one index that the model chooses by its description."""
    return await indexes[await routed(question, descriptions, model)].search(question, k=k)


async def filtered(question: str, index: Index, fields: Mapping[str, type[Scalar]], model: ChatModel, k: int = 10) -> list[Passage]:
    """What the question says of year, author, language and the like becomes a filter."""
    asked, where = await self_queried(question, fields, model)
    return await index.search(asked, k=k, where=where)


async def small_to_big(question: str, index: Index, k: int = 10) -> list[Passage]:
    """Found by passages, read by sections."""
    return await with_parents(await index.search(question, k=k), index)


async def in_context(question: str, index: Index, k: int = 10) -> list[Passage]:
    """Each passage with its neighbours."""
    return await with_context(await index.search(question, k=k), index)


async def auto_merged(question: str, index: Index, k: int = 10) -> list[Passage]:
    """A section in the place of its passages where most of it was found; the best at both ends, for a long prompt."""
    return best_at_both_ends(await merged(await index.search(question, k=k), index))
