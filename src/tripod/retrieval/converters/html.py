"""HTML: the readable text of a page, without scripts, styles and navigation.

The document's text is the extracted text, so offsets point into that; `Document.lines` leads back to the file.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from html.parser import HTMLParser

from tripod.documents import Document, Line, Section
from tripod.errors import ConversionError
from tripod.retrieval.converters.encoding import decode, marked_encoding
from tripod.retrieval.converters.outline import Heading, sections_of

_META_CHARSET = re.compile(rb"<meta[^>]+?charset\s*=\s*[\"']?\s*([\w.:-]+)", re.IGNORECASE)
_XML_ENCODING = re.compile(rb"\A\s*<\?xml[^>]+?encoding\s*=\s*[\"']([\w.:-]+)", re.IGNORECASE)
_COMMENT = re.compile(rb"<!--.*?-->", re.DOTALL)
_PRESCAN_BYTES = 1 << 16  # the standard looks at 1024; pages with a long preamble of scripts exist
_ENCODINGS = {  # what the encoding standard makes of these labels (encoding.spec.whatwg.org)
    "utf-16": "utf-8",  # a page whose meta tag could be read is not UTF-16
    "utf-16le": "utf-8",
    "unicode": "utf-8",
    "utf-16be": "utf-8",
    "iso-8859-1": "windows-1252",
    "latin1": "windows-1252",
    "us-ascii": "windows-1252",
    "ascii": "windows-1252",
}

_UNREAD = frozenset({"script", "style", "noscript", "template", "svg", "iframe", "object", "select", "button", "textarea"})
_RAW = frozenset({"script", "style"})
_BOILERPLATE = frozenset({"nav", "aside", "footer"})
_PARAGRAPHS = frozenset({"p", "pre", "table", "ul", "ol", "dl", "blockquote", "section", "article", "main", "figure", "hr"})
_BLOCKS = frozenset(
    {"div", "li", "tr", "br", "dt", "dd", "header", "form", "fieldset", "address", "caption", "figcaption", "details", "body"}
)
_HEADINGS = {f"h{level}": level for level in range(1, 7)}
_END_OF_RAW = re.compile(r"</(script|style)[ \t]+[^>\n]*>", re.IGNORECASE)  # html.parser before 3.14 does not see these end
_SPACES = re.compile(r"[ \t\n\r\f\v]+")  # what HTML collapses: not the no-break space


class Html:
    """Headings become the sections' titles. Where a page marks its main part (`main`, `article`), only that is indexed."""

    suffixes = frozenset({".html", ".htm", ".xhtml"})

    def convert(self, content: bytes, source: str) -> Document:
        page, encoding, is_guessed = _decode(content)
        reader = _read(page, unread=_UNREAD | _BOILERPLATE)
        if reader.skipping or not reader.text.strip():  # an unclosed <nav> would swallow the page
            reader = _read(page, unread=_UNREAD)
        if not _RAW.issuperset(reader.skipping):  # so would an unclosed <button>
            reader = _read(page, unread=_RAW)
        text = reader.text
        if not text.strip() and reader.has_script:
            raise ConversionError("it holds no readable text; a page that is drawn by a script must be saved after it ran")
        metadata: dict[str, str | bool] = {"format": "html", "encoding": encoding}
        if is_guessed:
            metadata["encoding_is_guessed"] = True
        return Document(
            source=source,
            text=text,
            title=" ".join("".join(reader.title).split()) or next((heading.title for heading in reader.headings), ""),
            sections=reader.sections(),
            lines=tuple(reader.lines),
            metadata=metadata,
        )


def _decode(content: bytes) -> tuple[str, str, bool]:
    """The page, its encoding, and whether that encoding is a guess."""
    if marked_encoding(content) is None and content[1:2] == b"\0":  # '<' and most of the markup after it are ASCII
        try:
            return *decode(content, "utf-16-le"), True
        except ConversionError:
            raise ConversionError("it begins like UTF-16 without a byte order mark, and goes on otherwise; save it as UTF-8") from None
    head = _COMMENT.sub(b"", content[:_PRESCAN_BYTES])
    found = _XML_ENCODING.search(head) or _META_CHARSET.search(head)
    declared = found[1].decode("ascii", "replace").lower() if found else None
    try:
        return *decode(content, _ENCODINGS.get(declared, declared) if declared else None), False
    except ConversionError:
        if declared or marked_encoding(content) or b"\0" in content:
            raise
    # The standard's default for a page that says nothing; recorded, because it may be wrong.
    return *decode(content, "windows-1252"), True


def _read(page: str, unread: frozenset[str]) -> _Reader:
    reader = _Reader(unread)
    reader.feed(_END_OF_RAW.sub(r"</\1>", page))
    reader.close()
    reader.finish()
    return reader


class _Reader(HTMLParser):
    def __init__(self, unread: frozenset[str]) -> None:
        super().__init__(convert_charrefs=True)
        self.unread = unread
        self.has_script = False
        self.skipping: list[str] = []  # the unread elements that are open
        self.pieces: list[str] = []
        self.length = 0
        self.line_feeds = 2  # at the end of the text so far; two at the start: nothing to separate
        self.has_space = False  # a space is due before the next word
        self.pre_depth = 0
        self.in_title = False
        self.title: list[str] = []
        self.headings: list[Heading] = []
        self.heading: tuple[int, int, list[str]] | None = None  # start, level and pieces of the open heading
        self.main_tag = ""  # of the open main part
        self.main_depth = 0  # how many elements of that name are open in it, itself included
        self.main_start = 0
        self.main_spans: list[tuple[int, int]] = []
        self.lines: list[Line] = []

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.has_script = self.has_script or tag == "script"
        if self.skipping:
            if tag == self.skipping[-1]:
                self.skipping.append(tag)
            return
        if tag in self.unread:
            self.skipping.append(tag)
        elif tag == "title":
            self.in_title = not self.title
        elif tag in _HEADINGS:
            self._end_heading()
            self._break(2)
            self.heading = (self.length, _HEADINGS[tag], [])
        elif tag in ("td", "th") and self.line_feeds == 0:
            self._append(" | ")
            self.has_space = False
        elif tag in _PARAGRAPHS or tag in _BLOCKS:
            self._break(2 if tag in _PARAGRAPHS else 1)
        if tag == "pre":
            self.pre_depth += 1
        if self.main_depth:
            self.main_depth += tag == self.main_tag
        elif tag in ("main", "article") or ("role", "main") in attrs:
            self.main_tag, self.main_depth, self.main_start = tag, 1, self.length

    def handle_endtag(self, tag: str) -> None:
        if self.skipping:
            if tag == self.skipping[-1]:
                self.skipping.pop()
            return
        if tag == "title":
            self.in_title = False
        elif tag in _HEADINGS:
            self._end_heading()
            self._break(2)
        elif tag in _PARAGRAPHS or tag in _BLOCKS:
            self._break(2 if tag in _PARAGRAPHS else 1)
        if tag == "pre":
            self.pre_depth = max(0, self.pre_depth - 1)
        if self.main_depth and tag == self.main_tag:
            self.main_depth -= 1
            if not self.main_depth:
                self.main_spans.append((self.main_start, self.length))

    def handle_data(self, data: str) -> None:
        if self.in_title:
            self.title.append(data)
        elif not self.skipping:
            for number, row in enumerate(data.split("\n"), start=self.getpos()[0]):  # only a line feed ends a line of the file
                if number > self.getpos()[0]:
                    self._end_row()
                if row:
                    self._append_row(row, number)

    def parse_marked_section(self, i: int, report: bool = True) -> int:
        """`<![CDATA[...]]>`, `<![if IE]>` and worse: skipped. html.parser before 3.14 fails on what it does not know."""
        end = self.rawdata.find("]]>", i) if self.rawdata.startswith("<![CDATA[", i) else -1
        return end + len("]]>") if end >= 0 else self.parse_bogus_comment(i)

    def finish(self) -> None:
        """Closes what the page left open."""
        self._end_heading()
        if self.main_depth:
            self.main_spans.append((self.main_start, self.length))

    def sections(self) -> tuple[Section, ...]:
        text = self.text
        spans = [(start, end) for start, end in self.main_spans if text[start:end].strip()] or [(0, self.length)]
        found: list[Section] = []
        for start, end in spans:
            first, last = (bisect_left(self.headings, border, key=lambda heading: heading.start) for border in (start, end))
            found.extend(sections_of(self.headings[first:last], start, end))
        return tuple(found)

    def _append_row(self, row: str, line: int) -> None:
        """The part of a text that stands on one line of the file."""
        if self.pre_depth:
            self._mark_line(line)
            self._append(row)
            return
        words = _SPACES.sub(" ", row)
        inner = words.strip(" ")
        if not inner:
            self.has_space = True
            return
        if (self.has_space or words[0] == " ") and self.line_feeds == 0:
            self._append(" ")
        self._mark_line(line)
        self._append(inner)
        self.has_space = words[-1] == " "

    def _end_row(self) -> None:
        if self.pre_depth:
            self._append("\n")
        else:
            self.has_space = True

    def _mark_line(self, number: int) -> None:
        if not self.lines or self.lines[-1].number != number:
            self.lines.append(Line(self.length, number))

    def _append(self, piece: str) -> None:
        self.pieces.append(piece)
        self.length += len(piece)
        self.line_feeds = len(piece) - len(piece.rstrip("\n"))
        if self.heading is not None:
            self.heading[2].append(piece)

    def _break(self, line_feeds: int) -> None:
        self.has_space = False
        if self.line_feeds < line_feeds:
            missing = "\n" * (line_feeds - self.line_feeds)
            self._append(missing)
            self.line_feeds = line_feeds

    def _end_heading(self) -> None:
        if self.heading is not None:
            start, level, pieces = self.heading
            title = " ".join("".join(pieces).split())
            if title:
                self.headings.append(Heading(start, level, title))
            self.heading = None
