"""Where a command draws: checked before the work whose result is drawn, which may take long."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from tripod.errors import ConfigError, MissingExtraError

_SUFFIXES = (".png", ".svg", ".pdf")


def check_picture(path: Path) -> None:
    """
    Raises:
        ConfigError: there is no folder for it, or its name does not end in a format that is written.
        MissingExtraError: matplotlib is not installed.
    """
    if path.suffix not in _SUFFIXES:
        raise ConfigError(f"the picture {path} has no format that is written; end its name in {', '.join(_SUFFIXES)}")
    if not path.parent.is_dir():
        raise ConfigError(f"there is no folder {path.parent} for the picture {path.name}; make it first")
    if find_spec("matplotlib") is None:
        raise MissingExtraError("matplotlib", "plots", "drawing a picture")
