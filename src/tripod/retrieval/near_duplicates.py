"""Texts that say nearly the same: MinHash finds the pairs to look at, and their words decide.

Broder 1997, "On the resemblance and containment of documents"; bands as in Leskovec, Rajaraman & Ullman, "Mining of Massive Datasets", 3.4.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from itertools import combinations
from typing import TYPE_CHECKING

from tripod.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_NUM_HASHES = 128
_SHINGLE_WORDS = 3
_MIN_CAUGHT = 0.99  # of the pairs exactly at the threshold, how many share a band
_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class NearDuplicate:
    """Two texts and the share of their three-word runs that stand in both (Jaccard)."""

    first: str
    second: str
    similarity: float


def near_duplicates(texts: Mapping[str, str], *, threshold: float = 0.8) -> list[NearDuplicate]:
    """The pairs of texts whose similarity is at least the threshold, most similar first.

    Time grows with the texts and with the pairs that are similar, not with all pairs. Of pairs at the threshold at least 99 in 100
    are found, of more similar ones nearly all; what is found is exact. Texts without a word are like nothing.

    Args:
        texts: name -> text; of an index, `{source: (await index.document(source)).text for source in await index.sources()}`.
        threshold: above 0, at most 1.

    Raises:
        ConfigError: no such threshold.
    """
    if not 0 < threshold <= 1:
        raise ConfigError(f"threshold={threshold} is no similarity to look for; give one above 0 and at most 1")
    shingles = {name: found for name, text in sorted(texts.items()) if (found := _shingles(text))}
    num_bands = _num_bands(threshold)
    buckets: defaultdict[tuple[int, bytes], list[str]] = defaultdict(list)
    for name, found in shingles.items():
        signature = _signature(found)
        rows = _NUM_HASHES // num_bands
        for band in range(num_bands):
            buckets[band, signature[band * rows : (band + 1) * rows].tobytes()].append(name)
    candidates = {pair for names in buckets.values() for pair in combinations(names, 2)}
    pairs = [NearDuplicate(first, second, _jaccard(shingles[first], shingles[second])) for first, second in candidates]
    return sorted((pair for pair in pairs if pair.similarity >= threshold), key=lambda pair: (-pair.similarity, pair.first, pair.second))


def groups(pairs: list[NearDuplicate]) -> list[list[str]]:
    """The texts that chains of pairs hold together, each group sorted: keep its first, leave out the others."""
    leader: dict[str, str] = {}

    def find(name: str) -> str:
        while leader.setdefault(name, name) != name:
            leader[name] = leader[leader[name]]
            name = leader[name]
        return name

    for pair in pairs:
        first, second = sorted((find(pair.first), find(pair.second)))
        leader[second] = first
    members: defaultdict[str, list[str]] = defaultdict(list)
    for name in sorted(leader):
        members[find(name)].append(name)
    return sorted(members.values())


def _shingles(text: str) -> frozenset[int]:
    """The runs of three words, as numbers of 61 bits; of a shorter text, the one run of all its words."""
    words = _WORD.findall(text.casefold())
    runs = {" ".join(words[i : i + _SHINGLE_WORDS]) for i in range(max(1, len(words) - _SHINGLE_WORDS + 1))} if words else set()
    return frozenset(int.from_bytes(blake2b(run.encode(errors="replace"), digest_size=8).digest(), "big") >> 3 for run in runs)


def _signature(shingles: frozenset[int]) -> NDArray[np.uint64]:
    """For each of `_NUM_HASHES` orders of all numbers, the first of the shingles in it."""
    import numpy as np

    values = np.fromiter(shingles, dtype=np.uint64, count=len(shingles))
    generator = np.random.default_rng(20260101)  # any fixed seed: signatures are compared with each other
    masks = generator.integers(0, 1 << 63, size=_NUM_HASHES, dtype=np.uint64)
    odd = generator.integers(0, 1 << 63, size=_NUM_HASHES, dtype=np.uint64) | np.uint64(1)
    mixed = (values[None, :] ^ masks[:, None]) * odd[:, None]  # [hashes, shingles]; products wrap, which is the mixing
    mixed ^= mixed >> np.uint64(32)
    return np.asarray((mixed * odd[::-1, None]).min(axis=1), dtype=np.uint64)


def _num_bands(threshold: float) -> int:
    """The fewest bands, which look at the fewest pairs, that catch enough: a pair of similarity s shares one of b with 1 - (1 - s^r)^b."""
    for num_bands in (4, 8, 16, 32, 64):
        if 1 - (1 - threshold ** (_NUM_HASHES // num_bands)) ** num_bands >= _MIN_CAUGHT:
            return num_bands
    return _NUM_HASHES


def _jaccard(first: frozenset[int], second: frozenset[int]) -> float:
    return len(first & second) / len(first | second)
