"""Readers that come as optional packages, and one way to say that a file is not what its name promises."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from tripod.errors import ConversionError, MissingExtraError


def reader(module: str, package: str, purpose: str, *, extra: str = "documents") -> Any:
    """The module that reads a format.

    Raises:
        MissingExtraError: its package is not installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError:
        raise MissingExtraError(package, extra, purpose) from None


@contextmanager
def reading(kind: str) -> Iterator[None]:
    """Whatever a library raises inside says that the file is no readable `kind`, such as "an EPUB"."""
    try:
        yield
    except (ConversionError, MissingExtraError, MemoryError):
        raise
    except Exception as error:  # what a malformed file leads the library into
        raise ConversionError(f"it is not {kind} that can be read: {type(error).__name__}: {error}") from None
