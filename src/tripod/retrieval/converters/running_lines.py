"""Running headers and footers: what stands at the edge of page after page is said once."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence

_EDGE_LINES = 3  # looked at from either edge of a page
_MIN_PAGES = 3
_MIN_SHARE = 0.4  # of the pages: left and right pages have headers of their own

_NUMBER = re.compile(r"\d+|\b[ivxlc]+\b")


def without_running_lines(pages: Sequence[str]) -> tuple[list[str], list[str]]:
    """The pages without their running headers and footers, each of which stays where it stands first.

    A line runs if it is among the outer three lines at one edge of at least three pages and two in five of all, numbers not
    counted. It is taken away together with what else runs outside of it, never from the middle of a page.

    Returns:
        The pages, and the lines that run, with `#` for each number.
    """
    lines = [page.split("\n") for page in pages]
    running: set[tuple[bool, str]] = set()
    for is_top in (True, False):
        counts = Counter(key for page in lines for key in {_key(page[i]) for i in _edge(page, is_top)})
        running |= {(is_top, key) for key, count in counts.items() if count >= max(_MIN_PAGES, _MIN_SHARE * len(pages))}
    seen: set[tuple[bool, str]] = set()
    cleaned: list[str] = []
    for page in lines:
        dropped: set[int] = set()
        for is_top in (True, False):
            for i in _edge(page, is_top):
                name = (is_top, _key(page[i]))
                if name not in running:
                    break
                if name in seen:
                    dropped.add(i)
                seen.add(name)
        cleaned.append("\n".join(line for i, line in enumerate(page) if i not in dropped))
    return cleaned, sorted({key for _, key in running})


def _edge(page: Sequence[str], is_top: bool) -> Iterator[int]:
    """The outermost lines that are not blank, from the edge inwards; never more than half of the page's."""
    solid = [i for i, line in enumerate(page) if line.strip()]
    num_lines = min(_EDGE_LINES, len(solid) // 2)
    return iter(solid[:num_lines]) if is_top else iter(solid[: len(solid) - num_lines - 1 : -1])


def _key(line: str) -> str:
    return _NUMBER.sub("#", " ".join(line.casefold().split()))
