"""How a campaign ends that promises something: its raw result is kept, and each promise is said to be kept or broken."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def keep_and_tell(path: Path, raw: Mapping[str, Any], promises: Mapping[str, bool]) -> int:
    """Writes the raw result, with the promises in it, and prints one line a promise; 0 if all are kept."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**raw, "promises": promises}, indent=1) + "\n", encoding="utf-8")
    for promise, is_kept in promises.items():
        print(f"{'kept  ' if is_kept else 'BROKEN'} {promise}")
    return 0 if all(promises.values()) else 1
