"""Loads the compiled kernels: the best level that this processor runs, or the one that `TRIPOD_KERNELS` names (`off` for none).

A kernel's Python side declares its C function once, and calls it:

    _scale = KernelFunction("tripod_scale", POINTER, ctypes.c_int64)
    _scale(x.data_ptr(), x.numel())

The library is found at the first call. In a checkout whose objects are missing or stale it is compiled then, which takes seconds and is
logged; elsewhere that was done when the package was installed. A call holds no Python lock while it runs.
"""

from __future__ import annotations

import ctypes
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tripod.errors import ConfigError, ShapeError
from tripod.ops.kernels.cpu.build import LEVELS, build, find_compiler, levels_here, object_path

if TYPE_CHECKING:  # so that `tripod doctor` asks without loading torch
    from torch import Tensor

POINTER = ctypes.c_void_p
COST_OF_ABSENCE = "decoding takes the torch path, which is slower most of all in batches, and int4 is not available"

_log = logging.getLogger(__name__)
_loaded: dict[str, ctypes.CDLL | str] = {}  # by level: the library, or why there is none
_chosen: str | None = None  # the level in use, once known


class KernelFunction:
    """One C function of the library, bound when it is first called."""

    def __init__(self, name: str, *argtypes: Any, restype: Any = None) -> None:
        self._name = name
        self._argtypes = argtypes
        self._restype = restype
        self._bound: dict[str, Any] = {}

    def __call__(self, *arguments: Any) -> Any:
        bound = self._bound.get(_chosen) if _chosen is not None else None
        if bound is None:
            chosen = load()
            bound = getattr(_loaded[chosen], self._name)
            bound.argtypes, bound.restype = self._argtypes, self._restype
            self._bound[chosen] = bound
        return bound(*arguments)


def load() -> str:
    """Make the kernels ready and name their level; quick when they are ready already.

    Raises:
        ConfigError: there are none here; the message says why, what to do, and what it costs.
    """
    global _chosen
    if _chosen is None:
        level, reason = _choose()
        if level is None:
            raise ConfigError(f"no CPU kernels: {reason}. Without them {COST_OF_ABSENCE}")
        _chosen = level
    return _chosen


def is_available() -> bool:
    """Whether the kernels can be called here."""
    return why_not() is None


def why_not() -> str | None:
    """Why the kernels cannot be called here; None when they can."""
    return None if _chosen is not None else _choose()[1]


def describe() -> str:
    """What a person should know of the kernels here, in a line. Compiles nothing."""
    asked = os.environ.get("TRIPOD_KERNELS", "")
    level = asked if asked in LEVELS else levels_here()[0]
    if asked != "off" and not object_path(level).exists() and find_compiler() is not None:
        return f"for {level}, compiled when they are first used; to do it now: python -m tripod.ops.kernels.cpu.build"
    reason = why_not()
    return f"none, so {COST_OF_ABSENCE}: {reason}" if reason else f"for {load()}"


@contextmanager
def level_forced(level: str) -> Iterator[None]:
    """Run another level's kernels inside the block, for tests and comparisons.

    Raises:
        ConfigError: the level cannot run here.
    """
    global _chosen
    before = _chosen
    loaded = _load(level)
    if isinstance(loaded, str):
        raise ConfigError(f"the kernels of level '{level}' cannot run here: {loaded}")
    _chosen = level
    try:
        yield
    finally:
        _chosen = before


def _choose() -> tuple[str | None, str | None]:
    """The level to use and no reason, or none and the reason."""
    asked = os.environ.get("TRIPOD_KERNELS", "")
    if asked == "off":
        return None, "TRIPOD_KERNELS=off switches them off"
    if asked and asked not in LEVELS:
        return None, f"TRIPOD_KERNELS={asked} names no level; give one of {', '.join(LEVELS)}, or off"
    reason = None
    for level in (asked,) if asked else levels_here():
        loaded = _load(level)
        if not isinstance(loaded, str):
            return level, None
        reason = reason or loaded
    return None, reason


def _load(level: str) -> ctypes.CDLL | str:
    if level not in _loaded:
        _loaded[level] = _open(level)
    return _loaded[level]


def _open(level: str) -> ctypes.CDLL | str:
    if level not in levels_here():
        return f"this processor does not have what the level '{level}' needs ({', '.join(sorted(LEVELS[level][0]))})"
    path = object_path(level)
    try:
        if not path.exists() and find_compiler() is not None:
            _log.warning("compiling the CPU kernels for the level '%s'; this takes some seconds, once", level)
        build([level])
        return ctypes.CDLL(str(path))
    except (RuntimeError, OSError) as error:
        return str(error)


def expect_tensor(name: str, tensor: Tensor, shape: tuple[int | None, ...], dtypes: tuple[Any, ...]) -> None:
    """Check what C cannot: a CPU tensor of this shape (None: any size) and one of these types, its elements one after another.

    Raises:
        ShapeError: it has another shape, or gaps between its elements.
        ConfigError: another type, or on another device.
    """
    actual = tensor.shape
    if len(actual) != len(shape) or any(want is not None and want != have for want, have in zip(shape, actual, strict=True)):
        raise ShapeError(f"{name} has shape {list(actual)}; expected [{', '.join('any' if want is None else str(want) for want in shape)}]")
    if tensor.dtype not in dtypes:
        raise ConfigError(f"{name} has dtype {tensor.dtype}; expected {' or '.join(map(str, dtypes))}")
    if not tensor.is_contiguous():
        raise ShapeError(f"{name} of shape {list(actual)} has strides {list(tensor.stride())}; pass {name}.contiguous()")
    if tensor.device.type != "cpu":
        raise ConfigError(f"{name} is on {tensor.device}; the CPU kernels need it in main memory: pass {name}.cpu()")
