"""Where the real collections lie: below `TRIPOD_SHARED`, or in `shared` beside the checkout. They are read there, never copied."""

from __future__ import annotations

import os
from pathlib import Path

DATA = Path(os.environ.get("TRIPOD_SHARED", Path(__file__).parents[2] / "shared")) / "data"
