"""How many threads the kernels may use, and when their pool stays awake.

    set_num_threads(default_num_threads())      # once, where the engine is built; torch.set_num_threads(1) beside it
    with held_awake():                          # around one step: its calls follow one another within microseconds
        ...

The pool is of one thread until it is told otherwise. Two pools that spin at once, ours and torch's, slow each other tenfold: kernels that
a trainer calls between torch's operations therefore run on torch's own threads.
"""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from tripod.errors import ConfigError
from tripod.ops.kernels.cpu.library import KernelFunction

_set_num_threads = KernelFunction("tripod_set_num_threads", ctypes.c_int)
_num_threads = KernelFunction("tripod_num_threads", restype=ctypes.c_int)
_work_alone = KernelFunction("tripod_work_alone", ctypes.c_int)
_hold_awake = KernelFunction("tripod_hold_awake", ctypes.c_int)
_has_threads_of_torch = KernelFunction("tripod_has_threads_of_torch", restype=ctypes.c_int)


def set_num_threads(count: int) -> None:
    """Make the pool of the kernels `count` threads big, the calling thread included; the threads start with the next call of a kernel.

    Raises:
        ConfigError: count is below 1, or there are no kernels here.
    """
    if count < 1:
        raise ConfigError(f"set_num_threads({count}): the calling thread is one of them, so give 1 or more")
    _set_num_threads(count)


def num_threads() -> int:
    """The size of the pool, the calling thread included."""
    return int(_num_threads())


def work_alone() -> None:
    """From now on the calling thread computes its kernels by itself: several such threads work side by side, and never wait for each other.

    Raises:
        ConfigError: there are no kernels here.
    """
    _work_alone(1)


def follow_torch() -> None:
    """Prepare a kernel of a trainer: it runs on as many threads as torch's operations do.

    Those are torch's own, unless its OpenMP is not found in this process; then the pool is made as big as torch's.
    """
    count = torch.get_num_threads()  # the first look of a thread sets its number
    if not _has_threads_of_torch() and num_threads() != count:
        set_num_threads(count)


@contextmanager
def held_awake() -> Iterator[None]:
    """Let the workers wait for the next call by spinning, at most a millisecond at a time, instead of parking after each one."""
    _hold_awake(1)
    try:
        yield
    finally:
        _hold_awake(0)


def default_num_threads() -> int:
    """The least of: this process's affinity, the processor time that its control groups grant, and `OMP_NUM_THREADS`."""
    allowed = [len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1]
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if asked.isdigit() and int(asked) > 0:
        allowed.append(int(asked))
    quota = cgroup_cpus(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))
    if quota is not None:
        allowed.append(
            max(1, math.floor(quota))
        )  # a thread more than the quota is stopped in the middle of a step, and the others wait for it
    return min(allowed)


def cgroup_cpus(membership: Path, root: Path) -> float | None:
    """Processors that the control groups (versions 1 and 2) grant, the least from its own group up to the root; None: no limit."""
    try:
        entries = [line.split(":", 2) for line in membership.read_text().splitlines()]
    except OSError:
        return None
    limits = []
    for number, controllers, path in (entry for entry in entries if len(entry) == 3):
        if number == "0" and not controllers:
            mount, read = root, _quota_v2
        elif "cpu" in controllers.split(","):
            mount, read = root / "cpu", _quota_v1
        else:
            continue
        own = mount / path.lstrip("/")
        for folder in (own, *own.parents):
            limits.append(read(folder))
            if folder == mount:
                break
    return min((limit for limit in limits if limit is not None), default=None)


def _quota_v2(folder: Path) -> float | None:
    quota, _, period = _text(folder / "cpu.max").partition(" ")
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() and int(period) else None


def _quota_v1(folder: Path) -> float | None:
    quota, period = _text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() and int(period) else None  # "-1" says: no limit


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
