"""Two scores of one passage to one, so that neither kind of evidence can drown the other.

`docs/decisions/0002-fusion.md` tells how this was chosen, on Cranfield alone, and what was refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tripod.protocols import Vectors

DENSE_WEIGHT = 0.5  # chosen on Cranfield; anything from 0.45 to 0.6 is as good there


def fuse(bm25: Vectors, bm25_bound: float, cosine: Vectors) -> Vectors:
    """The weighted mean of the cosine and of the share of the attainable BM25 score.

    BM25 is divided by what a passage would get that repeated every word of the query without end: the sum of the words'
    idf times (k1 + 1). So 1 means "all that was asked for", whichever other passages there are. The usual normalisation,
    by the best score of the result list, calls the best passage a perfect match however bad it is.

    Args:
        bm25: [N], zero where no word of the query occurs.
        bm25_bound: the largest value that BM25 could take for this query.
        cosine: [N], between -1 and 1.

    Returns:
        [N], at most 1.
    """
    return DENSE_WEIGHT * cosine + (1 - DENSE_WEIGHT) / bm25_bound * bm25
