"""Small passages that stand inside longer documents, so that offsets of passage and document differ."""

from __future__ import annotations

from tripod.documents import Passage


def passage(text: str, *, source: str = "guide.md", start: int = 100, line: int | None = 7, section: str = "Guide") -> Passage:
    return Passage(source=source, start=start, end=start + len(text), text=text, section=section, line=line)


BLOCKS = passage("A block is freed when its\nlast request ends. Then it may be\nallocated again.", source="blocks.md", section="Blocks")
LOCKS = passage("Locks are not reentrant.\n\nThe ``with`` statement releases a lock.", source="locks.md", start=0, line=1, section="Locks")
