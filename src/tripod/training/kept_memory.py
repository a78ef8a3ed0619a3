"""What a training run asks of the C library's allocator."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # mallopt(3)
_NEVER = -1


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees, for whatever it allocates next, until it ends.

    A training step frees what the next one allocates again. glibc's malloc gives large blocks back at once, and the kernel clears them page
    by page when they return: up to a quarter of a small model's step (docs/experiments.md). The price is memory: what was free between
    blocks of other sizes stays with the process.

    Returns:
        Whether glibc's malloc took the advice. Another allocator, or one that stands in its place, does not hear it.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, _NEVER))
