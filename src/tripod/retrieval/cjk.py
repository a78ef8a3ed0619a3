"""Words of scripts that are written without spaces: overlapping pairs of characters, as in Lucene's CJKBigramFilter.

The tokenizers of FTS5 and PostgreSQL take a run of Chinese, Japanese or Korean characters for one word. Beside each text its runs are
indexed as their single characters and pairs, and a run in a query is asked for by its pairs.
"""

from __future__ import annotations

import re

_RUN = re.compile("[\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff]+")
_WORD = re.compile(r"\w+")


def indexed(text: str) -> str:
    """What is indexed beside a text: the pieces of its words that hold such characters; empty for other scripts."""
    if not _RUN.search(text):
        return ""
    pieces: list[str] = []
    for word in _WORD.findall(text):
        if _RUN.search(word):
            for piece, is_run in _split(word):
                pieces += [*piece, *_pairs(piece)] if is_run else [piece]
    return " ".join(pieces)


def asked(word: str) -> list[str]:
    """What is asked for in the place of a word: the pairs of its runs, and what stands between them; mostly the word itself."""
    if not _RUN.search(word):
        return [word]
    pieces = [part for piece, is_run in _split(word) for part in (_pairs(piece) or [piece] if is_run else [piece])]
    return list(dict.fromkeys(pieces))


def _split(word: str) -> list[tuple[str, bool]]:
    """The runs of a word, and what is between them."""
    parts: list[tuple[str, bool]] = []
    end = 0
    for run in _RUN.finditer(word):
        parts += [(word[end : run.start()], False), (run[0], True)]
        end = run.end()
    parts.append((word[end:], False))
    return [(piece, is_run) for piece, is_run in parts if piece]


def _pairs(run: str) -> list[str]:
    return [run[i : i + 2] for i in range(len(run) - 1)]
