"""DOCX, read by python-docx. `Document.lines` counts paragraphs, because a Word file has no lines; pages are known only to its printer."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tripod.documents import Document
from tripod.errors import ConversionError
from tripod.retrieval.converters.composed import Composed
from tripod.retrieval.converters.optional import reader, reading

_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_M = "{http://schemas.openxmlformats.org/officeDocument/2006/math}"
_WP = "{http://schemas.openxmlformats.org/drawingml/2006/wordprocessingDrawing}"
_MC = "{http://schemas.openxmlformats.org/markup-compatibility/2006}"
_TEXT = frozenset({f"{_W}t", f"{_M}t"})
_WHITE = {f"{_W}tab": "\t", f"{_W}br": "\n", f"{_W}cr": "\n", f"{_W}noBreakHyphen": "-", f"{_W}ptab": "\t"}
_UNREAD = frozenset({f"{_W}del", f"{_W}moveFrom", f"{_MC}Fallback", f"{_W}pPr", f"{_W}rPr", f"{_W}instrText"})
_HEADING = re.compile(r"heading (\d)\b")
_NOTES = {"footnotes": "Footnotes", "endnotes": "Endnotes", "comments": "Comments"}  # the part's name -> our heading


class Docx:
    """Text, tables, text boxes, equations, descriptions of pictures, notes, comments; not what was deleted. Headings become sections."""

    suffixes = frozenset({".docx"})

    def convert(self, content: bytes, source: str) -> Document:
        docx = reader("docx", "python-docx", "reading a DOCX")
        with reading("a DOCX"):
            file = docx.Document(io.BytesIO(content))
            composed = Composed()
            styles = _Styles.of(file.styles)
            for number, block in enumerate(_blocks(file.element.body), start=1):
                _add(composed, block, number, styles)
            for part in sorted(file.part.package.iter_parts(), key=lambda part: str(part.partname)):
                name = str(part.partname).rpartition("/")[2].removesuffix(".xml")
                if name in _NOTES:
                    _add_notes(composed, part.blob, _NOTES[name])
            properties = file.core_properties
            metadata = {"format": "docx"} | {name: value for name in ("author", "language") if (value := getattr(properties, name))}
            document = composed.document(source, title=properties.title or "", metadata=metadata)
        if not document.text.strip():
            raise ConversionError("it holds no text; pictures of text must go through OCR first")
        return document


@dataclass(frozen=True, slots=True)
class _Styles:
    """What the styles of paragraphs mean: inside of a file their names are English in every language."""

    levels: dict[str, int]  # style id -> level, of headings
    items: frozenset[str]  # the ids of the styles of list items

    @staticmethod
    def of(styles: Any) -> _Styles:
        names = {style.style_id: (style.name or "").lower() for style in styles}
        levels = {style_id: int(found[1]) for style_id, name in names.items() if (found := _HEADING.match(name))}
        titles = {style_id: 1 for style_id, name in names.items() if name == "title"}
        return _Styles(levels | titles, frozenset(style_id for style_id, name in names.items() if name.startswith("list ")))


def _blocks(parent: Any) -> Iterator[Any]:
    """Paragraphs and tables in the order of the text, out of the content controls that wrap them."""
    for child in parent:
        if child.tag in (f"{_W}p", f"{_W}tbl"):
            yield child
        elif child.tag not in _UNREAD and isinstance(child.tag, str):
            yield from _blocks(child)


def _add(composed: Composed, block: Any, number: int, styles: _Styles) -> None:
    composed.line(number)
    if block.tag == f"{_W}tbl":
        for row in block.iter(f"{_W}tr"):
            cells = [" ".join(_text(cell).split()) for cell in row.iter(f"{_W}tc")]
            composed.add(" | ".join(cells))
        composed.add("")
        return
    text = _text(block)
    if not text.strip():
        return
    style = block.find(f"{_W}pPr/{_W}pStyle")
    style_id = style.get(f"{_W}val") if style is not None else ""
    if style_id in styles.levels:
        composed.heading(styles.levels[style_id], text)
    is_item = style_id in styles.items or block.find(f"{_W}pPr/{_W}numPr") is not None
    composed.add(f"- {text}" if is_item else text, end="\n" if is_item else "\n\n")


def _text(element: Any) -> str:
    """The text of a paragraph or a cell, text boxes included; the paragraphs inside it stand on lines of their own."""
    pieces: list[str] = []

    def visit(node: Any) -> None:
        if node.tag in _TEXT:
            pieces.append(node.text or "")
        elif node.tag == f"{_WP}docPr":
            pieces.append(f"[{description}]" if (description := " ".join(node.get("descr", "").split())) else "")
        elif node.tag in _WHITE:
            pieces.append(_WHITE[node.tag])
        elif node.tag not in _UNREAD:
            for child in node:
                visit(child)
            if node.tag == f"{_M}r":
                pieces.append(" ")  # sin x, not sinx
            if node.tag == f"{_W}p" and node is not element:
                pieces.append("\n")

    visit(element)
    return "".join(pieces).rstrip("\n")


def _add_notes(composed: Composed, blob: bytes, title: str) -> None:
    from lxml import etree  # comes with python-docx

    root = etree.fromstring(blob, etree.XMLParser(resolve_entities=False, no_network=True))
    notes = [text for note in root if note.get(f"{_W}type") is None and (text := _text(note).strip())]
    if notes:
        composed.heading(1, title)
        for note in notes:
            composed.add(note)
