"""Passages at several sizes, the smaller within the larger: searched by the small ones, read by the large ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tripod.documents import Document, Passage, Section
from tripod.errors import ConfigError
from tripod.text.passages import passages_at
from tripod.text.splitter import approximate_tokens, check_budget, split


@dataclass(frozen=True, slots=True)
class Hierarchical:
    """Indexed are the smallest passages; `ancestors` and `children` lead up and down.

    The tree needs no place in an index: it follows from the document, whose text the index keeps, and the place of a passage in it.
    Laws: the passages of a level are cut from those of the level above, never across their borders, and hold the same words.
    """

    levels: tuple[int, ...] = (800, 200)  # tokens, the largest first
    count_tokens: Callable[[str], int] = approximate_tokens

    def __post_init__(self) -> None:
        if not self.levels or list(self.levels) != sorted(set(self.levels), reverse=True):
            raise ConfigError(f"levels={self.levels} are not sizes that shrink; give the largest first, such as (800, 200)")
        check_budget(self.levels[-1])

    @property
    def fingerprint(self) -> str:
        return f"within each other, {', '.join(map(str, self.levels))} tokens"

    def split(self, document: Document) -> list[Passage]:
        return self.tree(document)[-1]

    def tree(self, document: Document) -> list[list[Passage]]:
        """The passages of each level, the largest first."""
        tree = [split(document, max_tokens=self.levels[0], count_tokens=self.count_tokens)]
        for max_tokens in self.levels[1:]:
            spans: list[Section] = []
            for parent in tree[-1]:
                alone = Document(source=document.source, text=parent.text)
                children = split(alone, max_tokens=max_tokens, count_tokens=self.count_tokens)
                spans += [Section(parent.start + child.start, parent.start + child.end, parent.section) for child in children]
            tree.append(passages_at(document, spans))
        return tree

    def ancestors(self, document: Document, passage: Passage) -> list[Passage]:
        """The larger passages that hold this one, the nearest first."""
        levels = self.tree(document)[:-1]
        return [large for level in reversed(levels) for large in level if large.start <= passage.start and passage.end <= large.end]

    def children(self, document: Document, passage: Passage) -> list[Passage]:
        """The smallest passages within this one: how many of them a search found says whether to read the whole (auto-merging)."""
        return [small for small in self.split(document) if passage.start <= small.start and small.end <= passage.end]
