"""EPUB: a zip of XHTML, each file of which is a page of the document, in the book's reading order."""

from __future__ import annotations

import io
import posixpath
import zipfile
from urllib.parse import unquote
from xml.etree import ElementTree

from tripod.documents import Document, Page, Section
from tripod.errors import ConversionError
from tripod.retrieval.converters.composed import characters
from tripod.retrieval.converters.html import Html
from tripod.retrieval.converters.optional import reading

_CONTAINER = "{urn:oasis:names:tc:opendocument:xmlns:container}"
_OPF = "{http://www.idpf.org/2007/opf}"
_DC = "{http://purl.org/dc/elements/1.1/}"
_PARTS = frozenset({"application/xhtml+xml", "text/html"})
_ABOUT = {  # elements of Dublin Core -> what a reader calls them
    "title": "Title",
    "creator": "Authors",
    "publisher": "Publisher",
    "date": "Date",
    "language": "Language",
    "subject": "Subjects",
    "description": "Description",
    "identifier": "Identifier",
}
_BETWEEN_PARTS = "\n\n"


class Epub:
    """What a reader reads, and before it the title, authors, publisher and description."""

    suffixes = frozenset({".epub"})

    def convert(self, content: bytes, source: str) -> Document:
        with reading("an EPUB"), zipfile.ZipFile(io.BytesIO(content)) as book:
            container = ElementTree.fromstring(book.read("META-INF/container.xml"))
            root = container.find(f".//{_CONTAINER}rootfile")
            if root is None:
                raise ConversionError("it is not an EPUB that can be read: its container names no package")
            package_path = root.attrib["full-path"]
            package = ElementTree.fromstring(book.read(package_path))
            about = {
                name: [" ".join((node.text or "").split()) for node in package.iter(_DC + name) if (node.text or "").strip()]
                for name in _ABOUT
            }
            parts = [Html().convert(book.read(name), name) for name in _spine(package, posixpath.dirname(package_path))]
        head = "\n".join(f"{_ABOUT[name]}: {characters(', '.join(values))}" for name, values in about.items() if values)
        if not any(part.text.strip() for part in parts):
            raise ConversionError("none of its parts holds text; pictures of text must go through OCR first")
        text, pages, sections = head, [], [Section(0, len(head), "About this book")]
        for number, part in enumerate(parts, start=1):
            text += _BETWEEN_PARTS
            start = len(text)
            text += part.text
            pages.append(Page(number, start, len(text)))
            spans = part.sections or (Section(0, len(part.text)),)
            sections += [Section(start + span.start, start + span.end, span.title) for span in spans]
        metadata = {"format": "epub"} | {name: about[name][0] for name in ("creator", "language") if about[name]}
        return Document(
            source=source,
            text=text,
            title=characters(about["title"][0]) if about["title"] else "",
            sections=tuple(sections),
            pages=tuple(pages),
            metadata=metadata,
        )


def _spine(package: ElementTree.Element, folder: str) -> list[str]:
    """The names of the files in the zip that hold the text, in reading order."""
    manifest = {item.attrib["id"]: item.attrib for item in package.iter(f"{_OPF}item")}
    found: list[str] = []
    for reference in package.iter(f"{_OPF}itemref"):
        item = manifest.get(reference.attrib["idref"])
        if item is not None and item.get("media-type") in _PARTS:
            found.append(posixpath.normpath(posixpath.join(folder, unquote(item["href"]))))
    return found
