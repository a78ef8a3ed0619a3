"""From a passage to what stands around it: its neighbours, the section that it was cut from, or one passage in place of several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Protocol

from tripod.documents import Document, Passage, Section
from tripod.errors import ConfigError


class KnowsDocuments(Protocol):
    """Where passages come from, such as an `Index`."""

    async def document(self, source: str) -> Document: ...


async def with_context(passages: Sequence[Passage], index: KnowsDocuments, *, characters: int = 400) -> list[Passage]:
    """Each passage with what stands before and after it in its section, up to the nearest line or word within so many characters.

    Passages that then overlap become one, at the place and with the score of the better.

    Raises:
        ConfigError: `characters` is negative.
        NotFoundError: a source is no longer in the index.
    """
    if characters < 0:
        raise ConfigError(f"characters={characters} is negative; 0 adds nothing")
    documents = await _documents(passages, index)
    wider = []
    for passage in passages:
        document = documents[passage.source]
        section = _section(passage, document)
        start = _next_word(document.text, max(section.start, passage.start - characters), passage.start, section.start)
        end = _last_word(document.text, passage.end, min(section.end, passage.end + characters), section.end)
        wider.append(_cut(passage, document, start, end))
    return joined(wider, documents)


async def with_parents(passages: Sequence[Passage], index: KnowsDocuments, *, max_characters: int = 6000) -> list[Passage]:
    """Each passage's whole section instead of it, once; a section that is longer is read around the passage."""
    documents = await _documents(passages, index)
    parents = []
    for passage in passages:
        section = _section(passage, documents[passage.source])
        if section.end - section.start <= max_characters:
            parents.append(_cut(passage, documents[passage.source], section.start, section.end))
        else:
            room = max(0, max_characters - (passage.end - passage.start)) // 2
            parents += await with_context([passage], index, characters=room)
    return joined(parents, documents)


async def merged(passages: Sequence[Passage], index: KnowsDocuments, *, share: float = 0.5) -> list[Passage]:
    """A section in the place of its passages where these are more than so large a share of it; the others stay (LlamaIndex' auto-merging).

    Raises:
        ConfigError: `share` is not between 0 and 1.
    """
    if not 0.0 <= share <= 1.0:
        raise ConfigError(f"share={share} is no share; give a number between 0 and 1")
    documents = await _documents(passages, index)
    sections = [_section(passage, documents[passage.source]) for passage in passages]
    read: dict[tuple[str, Section], int] = {}
    for passage, section in zip(passages, sections, strict=True):
        read[passage.source, section] = read.get((passage.source, section), 0) + passage.end - passage.start
    grown = [
        _cut(passage, documents[passage.source], section.start, section.end)
        if read[passage.source, section] > share * (section.end - section.start)
        else passage
        for passage, section in zip(passages, sections, strict=True)
    ]
    return joined(grown, documents)


def joined(passages: Sequence[Passage], documents: Mapping[str, Document]) -> list[Passage]:
    """Passages of one document that overlap or touch become one, at the place and with the score of the first of them in the list."""
    ranks = {passage.id: rank for rank, passage in reversed(list(enumerate(passages)))}
    united: list[Passage] = []
    for source, of_source in groupby(sorted(passages, key=lambda one: (one.source, one.start, -one.end)), key=lambda one: one.source):
        current: list[Passage] = []
        for passage in of_source:
            if current and passage.start > max(one.end for one in current):
                united.append(_union(current, documents[source], ranks))
                current = []
            current.append(passage)
        united.append(_union(current, documents[source], ranks))
    return [one for _, one in sorted(zip((ranks[one.id] for one in united), united, strict=True), key=lambda pair: pair[0])]


def _union(passages: Sequence[Passage], document: Document, ranks: dict[str, int]) -> Passage:
    first = min(passages, key=lambda one: ranks[one.id])
    union = _cut(first, document, min(one.start for one in passages), max(one.end for one in passages))
    ranks[union.id] = ranks[first.id]
    return union


def _cut(passage: Passage, document: Document, start: int, end: int) -> Passage:
    """Another stretch of the passage's document, without outer white space; it keeps its score, section and metadata."""
    text = document.text[start:end]
    start += len(text) - len(text.lstrip())
    end -= len(text) - len(text.rstrip())
    return replace(
        passage,
        start=start,
        end=end,
        text=document.text[start:end],
        page=document.page_at(start),
        line=document.line_at(start),
    )


def _section(passage: Passage, document: Document) -> Section:
    """The narrowest section around the passage; the whole text where the document has none."""
    around = [section for section in document.sections if section.start <= passage.start and passage.end <= section.end]
    return min(around, key=lambda section: section.end - section.start, default=Section(0, len(document.text)))


def _next_word(text: str, start: int, limit: int, floor: int) -> int:
    """The first place from `start` on where a word begins."""
    while floor < start < limit and not text[start - 1].isspace():
        start += 1
    return start


def _last_word(text: str, floor: int, end: int, ceiling: int) -> int:
    """The last place up to `end` where a word ends."""
    while floor < end < ceiling and not text[end].isspace():
        end -= 1
    return end


async def _documents(passages: Sequence[Passage], index: KnowsDocuments) -> dict[str, Document]:
    return {source: await index.document(source) for source in dict.fromkeys(passage.source for passage in passages)}
