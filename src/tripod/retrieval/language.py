"""The language of a document, as metadata that searches filter by and splitters are chosen by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from tripod.documents import Document
from tripod.protocols import Converter
from tripod.retrieval.converters.isolated import Isolated
from tripod.retrieval.converters.optional import reader
from tripod.retrieval.converters.registry import CONVERTERS

_READ_CHARACTERS = 4000  # of a document's middle: its head is often a licence or a menu
_MIN_LETTERS = 20  # of a shorter text nobody can tell the language


@dataclass(frozen=True, slots=True)
class WithLanguage:
    """A converter whose documents say their language: `metadata["language"]` is an ISO 639-1 code, absent where the text does not tell.

    What a file says of itself (an EPUB, a Word file) is believed.
    """

    inner: Converter
    languages: frozenset[str] = frozenset()  # the only ones that can be; empty: any of the 97 that py3langid knows

    @property
    def suffixes(self) -> frozenset[str]:
        return self.inner.suffixes

    def convert(self, content: bytes, source: str) -> Document:
        document = self.inner.convert(content, source)
        declared = str(document.metadata.get("language", ""))[:2].lower()
        if found := declared or detect_language(document.text, self.languages):
            return replace(document, metadata={**document.metadata, "language": found})
        return document


def with_languages(converters: Sequence[Converter] = CONVERTERS, languages: frozenset[str] = frozenset()) -> tuple[Converter, ...]:
    """Each converter with a `WithLanguage` around it; for those that read in a worker process, inside of that."""
    return tuple(
        replace(each, inner=WithLanguage(each.inner, languages)) if isinstance(each, Isolated) else WithLanguage(each, languages)
        for each in converters
    )


def detect_language(text: str, languages: frozenset[str] = frozenset()) -> str | None:
    """The ISO 639-1 code of the language that most of a text is written in; None where there are too few letters to tell.

    Args:
        text: its middle is read.
        languages: the only ones that can be; empty: any.

    Raises:
        MissingExtraError: py3langid is not installed.
    """
    middle = max(0, (len(text) - _READ_CHARACTERS) // 2)
    sample = text[middle : middle + _READ_CHARACTERS]
    if sum(character.isalpha() for character in sample) < _MIN_LETTERS:
        return None
    return str(_identifier(languages).classify(sample)[0])


@cache
def _identifier(languages: frozenset[str]) -> Any:
    langid = reader("py3langid.langid", "py3langid", "telling languages apart")
    identifier = langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE)
    if languages:
        identifier.set_languages(sorted(languages))
    return identifier
