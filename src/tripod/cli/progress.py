"""A progress bar on stderr for the making of an index."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tripod.retrieval.index import Index, SyncReport


async def sync_with_progress(index: Index, folder: Path) -> SyncReport:
    return await index.sync(folder)
