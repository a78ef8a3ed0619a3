"""Splitters around a splitter: one tells each passage what it is about, one chooses by a document's metadata."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from tripod.documents import Document, Passage
from tripod.protocols import Splitter

_SEPARATOR = " > "  # as between the headings of a path


@dataclass(frozen=True, slots=True)
class Enriched:
    """Puts the document's title before the path of headings of every passage, and behind it what a model says about its place.

    A passage's section is read by the embedder and searched by words together with its text, which stays as it is. What `describe`
    returns is one or two sentences that place a passage in its document (Anthropic 2024, "Introducing contextual retrieval"); a
    `ChatModel` is called in it by `tripod.run`.
    """

    inner: Splitter
    has_title: bool = True
    describe: Callable[[Document, Passage], str] | None = None
    described_by: str = ""  # the model and the prompt, for the fingerprint

    @property
    def fingerprint(self) -> str:
        return f"{self.inner.fingerprint}, told{' the title' * self.has_title}{f' what {self.described_by} says' if self.describe else ''}"

    def split(self, document: Document) -> list[Passage]:
        return [replace(passage, section=self._section(document, passage)) for passage in self.inner.split(document)]

    def _section(self, document: Document, passage: Passage) -> str:
        steps = [passage.section] if passage.section else []
        if self.has_title and document.title and not passage.section.startswith(document.title):
            steps.insert(0, document.title)
        section = _SEPARATOR.join(steps)
        if self.describe is not None and (context := " ".join(self.describe(document, passage).split())):
            section = f"{section}: {context}" if section else context
        return section


@dataclass(frozen=True, slots=True)
class Routed:
    """The splitter that a field of the document's metadata names, such as its language or its format; another one for all others."""

    name: str  # the field: "language", "format", "code"
    routes: Mapping[str, Splitter] = field(hash=False)
    otherwise: Splitter

    @property
    def fingerprint(self) -> str:
        routes = "; ".join(f"{value}: {splitter.fingerprint}" for value, splitter in sorted(self.routes.items()))
        return f"by {self.name} ({routes}; otherwise: {self.otherwise.fingerprint})"

    def split(self, document: Document) -> list[Passage]:
        return self.routes.get(str(document.metadata.get(self.name, "")), self.otherwise).split(document)
