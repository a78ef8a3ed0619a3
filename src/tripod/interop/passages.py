"""What another library found, as passages, and the reverse."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any, Protocol

from tripod.documents import Passage

_SOURCES = ("source", "file_path", "file_name", "url", "source_id")  # where others write it into the metadata


class Search(Protocol):
    """What finds passages, the best first: `index.search`, one of `retrieval.recipes` with its index bound, or a wrapped retriever."""

    async def __call__(self, question: str, /, *, k: int) -> Sequence[Passage]: ...


def passage_of(
    text: str,
    metadata: Mapping[str, Any],
    *,
    source: str | None = None,
    start: Any = None,
    id: str | None = None,
    score: float | None = None,
) -> Passage:
    """A chunk as a passage.

    Args:
        source: None: as the metadata says.
        start: where it begins in its document, in characters. Where nobody knows, or nobody knows the document, a chunk is a source of
            its own, so that two chunks are never taken for one.
        id: names the chunk, where nothing says what it was cut from.
    """
    source = source or next((str(metadata[key]) for key in _SOURCES if metadata.get(key)), "")
    if not source or not isinstance(start, int):
        digest = sha256(text.encode(errors="surrogatepass")).hexdigest()[:8]
        source, start = f"{source}#{digest}" if source else id or digest, 0
    kept = {key: value for key, value in metadata.items() if isinstance(value, str | bool | int | float) and math.isfinite(_number(value))}
    return Passage(source=source, start=start, end=start + len(text), text=text, metadata=kept, score=score)


def told_of(passage: Passage) -> dict[str, Any]:
    """The metadata that another library is given: that of the source, and where in it the passage stands."""
    where = {"source": passage.source, "section": passage.section, "page": passage.page, "line": passage.line}
    return {**passage.metadata, **{key: value for key, value in where.items() if value not in ("", None)}}


def _number(value: str | float) -> float:
    return value if isinstance(value, float) else 0.0
