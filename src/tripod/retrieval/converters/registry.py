"""Which files are read, and by what.

A package adds a format by an entry point of the group `tripod.converters` that names a `Converter`, or a function without
arguments that makes one. It reads its files in a worker process, as do those here whose format or library could hang or crash.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import PurePosixPath

from tripod.errors import ConfigError
from tripod.protocols import Converter
from tripod.retrieval.converters.csv_text import Csv
from tripod.retrieval.converters.docx import Docx
from tripod.retrieval.converters.email_message import Email
from tripod.retrieval.converters.epub import Epub
from tripod.retrieval.converters.html import Html
from tripod.retrieval.converters.isolated import Isolated
from tripod.retrieval.converters.json_text import Json
from tripod.retrieval.converters.markdown import Markdown
from tripod.retrieval.converters.notebook import Notebook
from tripod.retrieval.converters.pdf import Pdf
from tripod.retrieval.converters.plain_text import PlainText
from tripod.retrieval.converters.pptx import Pptx
from tripod.retrieval.converters.python_source import PythonSource
from tripod.retrieval.converters.restructuredtext import RestructuredText
from tripod.retrieval.converters.rtf import Rtf
from tripod.retrieval.converters.source_code import SourceCode
from tripod.retrieval.converters.xlsx import Xlsx

PLUGINS = "tripod.converters"

# Here: what reads a text in one pass, in the time that a worker would need to be told of it. In a worker: the others.
CONVERTERS: tuple[Converter, ...] = (
    *(PlainText(), Markdown(), RestructuredText(), SourceCode(), PythonSource(), Csv()),
    *(Isolated(reader) for reader in (Html(), Json(), Notebook(), Email(), Pdf(), Docx(), Pptx(), Xlsx(), Epub(), Rtf())),
)


def all_converters() -> tuple[Converter, ...]:
    """Our own converters, and after them, so that they are preferred, those that installed packages add.

    Raises:
        ConfigError: a package's converter cannot be loaded.
    """
    plugins = sorted(entry_points(group=PLUGINS), key=lambda point: point.name)
    return (*CONVERTERS, *(Isolated(_load(point)) for point in plugins))


def by_suffix(converters: Sequence[Converter] = CONVERTERS) -> Mapping[str, Converter]:
    """The converter of each suffix; where two take the same one, the later."""
    return {suffix: converter for converter in converters for suffix in sorted(converter.suffixes)}


def suffix_of(source: str) -> str:
    """The last suffix of a file's name in lower case, with the dot; empty where there is none."""
    return PurePosixPath(source).suffix.lower()


def _load(point: EntryPoint) -> Converter:
    package = point.dist.name if point.dist else point.value
    try:
        made = point.load()
        converter: Converter = made if hasattr(made, "convert") and not isinstance(made, type) else made()
        if not all(suffix.startswith(".") and suffix == suffix.lower() for suffix in converter.suffixes):
            raise ValueError(f"its suffixes {sorted(converter.suffixes)} are not lower case with a dot")
    except Exception as error:  # someone else's code may raise anything
        raise ConfigError(
            f"the converter {point.name!r} of the package {package!r} cannot be used: {type(error).__name__}: {error}; "
            f"mend or uninstall the package, or give Index(converters=...)"
        ) from error
    return converter
