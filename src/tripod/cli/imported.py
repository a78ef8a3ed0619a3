"""Something of the user's own, by its name."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from tripod.errors import ConfigError


def imported(name: str) -> Any:
    """What MODULE:NAME names. The working directory is looked at first, as by `python -m`.

    Raises:
        ConfigError: there is no such module, or nothing of the name in it.
    """
    module, _, attribute = name.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{name} cannot be imported: {error}; give MODULE:NAME, such as my_tools:search") from error
    finally:
        sys.path.pop(0)
