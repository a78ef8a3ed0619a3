"""Which evaluation items a checkpoint had read in training, how much of each, and when first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tripod.errors import ConfigError
from tripod.training.ngrams.provenance import Provenance
from tripod.training.ngrams.trace import TracedSpan

MIN_TOKENS = 13  # GPT-3's measure of overlap, there in words (Brown et al. 2020, arXiv:2005.14165, appendix C)


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemOverlap:
    """What of one item was read. An item shorter than the measure counts only where all of it was."""

    item: int  # its place among those given, from 0
    num_tokens: int
    num_covered: int  # of them in stretches that were read
    longest: TracedSpan | None  # None: the item is clean

    @property
    def share(self) -> float:
        """Of the item's tokens."""
        return self.num_covered / self.num_tokens

    @property
    def first_step(self) -> int | None:
        """In which the longest stretch was first read."""
        return None if self.longest is None else self.longest.seen[0].step


@dataclass(frozen=True, slots=True, kw_only=True)
class Contamination:
    """Evaluation items beside what a checkpoint had read."""

    model: str
    min_tokens: int
    items: tuple[ItemOverlap, ...]

    @property
    def touched(self) -> tuple[ItemOverlap, ...]:
        """Items of which something was read, those of which most was first."""
        return tuple(sorted((item for item in self.items if item.num_covered), key=lambda item: (-item.share, item.item)))

    def num_at_least(self, share: float) -> int:
        """Items of which at least this share was read."""
        return sum(item.share >= share for item in self.items)


def check_contamination(provenance: Provenance, items: Sequence[str], *, min_tokens: int = MIN_TOKENS) -> Contamination:
    """Look for evaluation items in what a checkpoint was trained on.

    Args:
        provenance: of the checkpoint.
        items: the text of each, such as question and right answer together.
        min_tokens: that must have been read together to count.

    Raises:
        ConfigError: there is no item, or one is empty.
    """
    if not items:
        raise ConfigError("no item was given; give the texts of an evaluation set")
    overlaps = []
    for number, text in enumerate(items):
        if not text.strip():
            raise ConfigError(f"item {number} is empty; leave it out")
        traced = provenance.trace(text.strip(), min_tokens=min_tokens)
        overlaps.append(ItemOverlap(item=number, num_tokens=len(traced.ids), num_covered=traced.num_covered, longest=traced.longest))
    return Contamination(model=provenance.model, min_tokens=min_tokens, items=tuple(overlaps))
