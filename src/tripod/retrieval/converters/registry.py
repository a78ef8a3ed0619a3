"""Which files are read, and by what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

from tripod.protocols import Converter
from tripod.retrieval.converters.html import Html
from tripod.retrieval.converters.markdown import Markdown
from tripod.retrieval.converters.pdf import Pdf
from tripod.retrieval.converters.plain_text import PlainText
from tripod.retrieval.converters.python_source import PythonSource
from tripod.retrieval.converters.restructuredtext import RestructuredText

CONVERTERS: tuple[Converter, ...] = (PlainText(), Markdown(), RestructuredText(), Html(), PythonSource(), Pdf())


def by_suffix(converters: Sequence[Converter] = CONVERTERS) -> Mapping[str, Converter]:
    """The converter of each suffix; where two take the same one, the later."""
    return {suffix: converter for converter in converters for suffix in sorted(converter.suffixes)}


def suffix_of(source: str) -> str:
    """The last suffix of a file's name in lower case, with the dot; empty where there is none."""
    return PurePosixPath(source).suffix.lower()
