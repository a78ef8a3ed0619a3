"""EPUB, RTF, e-mail, notebooks, CSV, JSON and source code, written by hand or by the standard library."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from email.message import EmailMessage
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tripod.documents import Document
from tripod.errors import ConversionError
from tripod.retrieval.converters.csv_text import Csv
from tripod.retrieval.converters.email_message import Email
from tripod.retrieval.converters.epub import Epub
from tripod.retrieval.converters.json_text import Json
from tripod.retrieval.converters.notebook import Notebook
from tripod.retrieval.converters.rtf import Rtf
from tripod.retrieval.converters.running_lines import without_running_lines
from tripod.retrieval.converters.source_code import SourceCode


def sections(document: Document) -> list[tuple[str, str]]:
    return [(section.title, document.text[section.start : section.end].strip()) for section in document.sections]


# EPUB


def epub(*parts: str, order: tuple[int, ...] | None = None) -> bytes:
    buffer = io.BytesIO()
    manifest = "".join(f'<item id="p{i}" href="text/part%20{i}.xhtml" media-type="application/xhtml+xml"/>' for i in range(len(parts)))
    spine = "".join(f'<itemref idref="p{i}"/>' for i in order or range(len(parts)))
    with zipfile.ZipFile(buffer, "w") as book:
        book.writestr(
            "META-INF/container.xml",
            '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>'
            '<rootfile full-path="OEBPS/book.opf" media-type="application/oebps-package+xml"/></rootfiles></container>',
        )
        book.writestr(
            "OEBPS/book.opf",
            '<package xmlns="http://www.idpf.org/2007/opf" xmlns:dc="http://purl.org/dc/elements/1.1/"><metadata>'
            "<dc:title>The Book</dc:title><dc:creator>A. Writer</dc:creator><dc:language>en</dc:language></metadata>"
            f"<manifest>{manifest}</manifest><spine>{spine}</spine></package>",
        )
        for i, part in enumerate(parts):
            book.writestr(f"OEBPS/text/part {i}.xhtml", f"<html><body>{part}</body></html>")
    return buffer.getvalue()


def test_a_book_is_read_in_the_order_of_its_spine_a_page_a_part() -> None:
    document = Epub().convert(epub("<h1>Last</h1><p>end</p>", "<h1>First</h1><p>begin</p>", order=(1, 0)), "a.epub")
    assert [document.text[page.start : page.end].split() for page in document.pages] == [["First", "begin"], ["Last", "end"]]
    assert sections(document)[1:] == [("First", "First\n\nbegin"), ("Last", "Last\n\nend")]
    assert (document.title, document.metadata["creator"]) == ("The Book", "A. Writer")


def test_a_book_without_a_package_or_a_part_says_so() -> None:
    content = epub("<p>x</p>").replace(b"OEBPS/text/part 0", b"OEBPS/text/part 9")
    for bad in (b"", content):
        with pytest.raises(ConversionError, match="not an EPUB that can be read"):
            Epub().convert(bad, "a.epub")


# RTF


def test_rich_text_is_read_without_its_dress() -> None:
    document = Rtf().convert(rb"{\rtf1\ansi{\fonttbl\f0 Arial;}\f0 Caf\'e9 \b bold\b0.\par Second \u8364?.\par}", "a.rtf")
    assert document.text.split("\n\n") == ["Café bold.", "Second €.", ""]
    assert document.line_at(document.text.index("Second")) == 2
    with pytest.raises(ConversionError, match="does not begin like an RTF"):
        Rtf().convert(b"plain", "a.rtf")


# E-mail


def message(subject: str, body: str, html: str | None = None) -> EmailMessage:
    mail = EmailMessage()
    mail["Subject"], mail["From"], mail["To"], mail["Date"] = (
        subject,
        "ann@example.org",
        "bob@example.org",
        "Mon, 4 Mar 2024 10:00:00 +0000",
    )
    mail.set_content(body)
    if html:
        mail.add_alternative(html, subtype="html")
    return mail


def test_a_message_is_read_with_its_people_and_the_names_of_what_is_attached() -> None:
    mail = message("Grüße aus Øre", "The beds arrive on Monday: naïve.\n", "<p>ignored</p>")
    mail.add_attachment(b"%PDF", maintype="application", subtype="pdf", filename="plan.pdf")
    document = Email().convert(mail.as_bytes(), "a.eml")
    assert document.title == "Grüße aus Øre"
    assert "From: ann@example.org" in document.text
    assert "naïve" in document.text
    assert "ignored" not in document.text
    assert document.text.rstrip().endswith("Attachments: plan.pdf")
    assert document.metadata["date"] == "2024-03-04T10:00:00+00:00"


def test_a_message_in_html_alone_is_read_as_text() -> None:
    mail = EmailMessage()
    mail["Subject"] = "x"
    mail.set_content("<h1>Title</h1><p>Body &amp; soul</p><script>no()</script>", subtype="html")
    text = Email().convert(mail.as_bytes(), "a.eml").text
    assert "Body & soul" in text
    assert "no()" not in text


def test_a_box_is_a_page_a_message() -> None:
    box = b"".join(
        b"From ann@example.org Mon Mar  4 10:00:00 2024\n" + message(s, f"about {s}\n>From here on\n").as_bytes() + b"\n"
        for s in ("one", "two")
    )
    document = Email().convert(box, "a.mbox")
    assert [document.text[page.start : page.end].count("about") for page in document.pages] == [1, 1]
    assert [section.title for section in document.sections] == ["one", "two"]
    assert document.page_at(document.text.index("about two")) == 2
    assert document.text.count("\nFrom here on") == 2  # a box marks such a line, lest it begin a message


@pytest.mark.parametrize("source", ["a.eml", "a.mbox"])
def test_what_is_no_mail_says_so(source: str) -> None:
    with pytest.raises(ConversionError, match=r"headers of an e-mail|not a box"):
        Email().convert(b"just some text\n\nand more", source)


# Notebooks


def test_a_notebook_is_prose_code_and_what_it_printed() -> None:
    cells = [
        {"cell_type": "markdown", "source": ["# Study\n", "intro\n", "## Data\n", "more"]},
        {"cell_type": "code", "source": "load(1)", "outputs": [{"output_type": "stream", "text": ["42 rows\n"]}]},
        {"cell_type": "code", "source": "plot()", "outputs": [{"data": {"image/png": "AAAA", "text/plain": "<Figure>"}}]},
    ]
    document = Notebook().convert(json.dumps({"cells": cells, "metadata": {}, "nbformat": 4}).encode(), "a.ipynb")
    assert sections(document) == [
        ("Study", "# Study\nintro"),
        ("Study > Data", "## Data\nmore\n\nload(1)\n\n42 rows\n\nplot()\n\n<Figure>"),
    ]
    assert document.line_at(document.text.index("42")) == 2
    log = {"cell_type": "code", "source": "", "outputs": [{"output_type": "stream", "text": "0123456789" * 1000}]}
    assert len(Notebook().convert(json.dumps({"cells": [log]}).encode(), "a.ipynb").text) < 2100
    for bad in (b"{}", b"[]", b"not json"):
        with pytest.raises(ConversionError):
            Notebook().convert(bad, "a.ipynb")


# CSV


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_names_of_the_columns_title_a_table(delimiter: str) -> None:
    buffer = io.StringIO()
    csv.writer(buffer, delimiter=delimiter).writerows([["Name", "Town, land"], ["Ann", "Oslo"]])
    document = Csv().convert(buffer.getvalue().encode(), "a.csv")
    assert document.text == buffer.getvalue()
    assert [section.title for section in document.sections] == ["Name, Town, land"]


def test_a_first_row_with_numbers_names_nothing() -> None:
    assert Csv().convert(b"Ann,41\nBob,7\n", "a.csv").sections == ()
    assert Csv().convert(b"Ann\nBob\n", "a.csv").sections == ()  # one column is a list, whose first line is an item


# JSON


def test_members_and_records_are_sections() -> None:
    one = Json().convert(b'{\n "name": "Ann",\n "towns": ["Oslo", "Bern"]\n}', "a.json")
    assert sections(one) == [("name", '"name": "Ann"'), ("towns", '"towns": ["Oslo", "Bern"]')]
    many = Json().convert(b'[{"a": 1}, {"a": 2}]', "a.json")
    assert sections(many) == [("[0]", '{"a": 1}'), ("[1]", '{"a": 2}')]
    lines = Json().convert(b'{"a": 1}\n\n{"a": 2}\n', "a.jsonl")
    assert sections(lines) == [("", '{"a": 1}'), ("", '{"a": 2}')]
    assert lines.line_at(lines.sections[1].start) == 3


def test_escapes_are_read_and_lines_stay_where_they_are() -> None:
    document = Json().convert(rb'{"a": "caf\u00e9\nnext \ud83e\udd99 \"q\" \\u0041 \ud800",' + b'\n "b": 1}', "a.json")
    assert document.text == '{"a": "café next 🦙 \\"q\\" \\\\u0041  ",\n "b": 1}'
    assert sections(document)[1] == ("b", '"b": 1')
    assert document.line_at(document.text.index('"b"')) == 2


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=12,
)


@given(value=JSON_VALUES, indent=st.sampled_from([None, 1]), is_ascii=st.booleans())
def test_any_json_is_read_with_the_lines_of_its_file(value: Any, indent: int | None, is_ascii: bool) -> None:
    raw = json.dumps(value, indent=indent, ensure_ascii=is_ascii)
    try:
        document = Json().convert(raw.encode(), "a.json")
    except (UnicodeEncodeError, ConversionError):
        assert not is_ascii
        return
    assert document.text.count("\n") == raw.count("\n")
    if isinstance(value, dict) and value:
        assert [section.title for section in document.sections] == [name[:200] for name in value]


@pytest.mark.parametrize(("source", "content"), [("a.json", b"{"), ("a.jsonl", b'{"a": 1}\nx'), ("a.json", b"[" * 100_000)])
def test_what_is_no_json_says_where(source: str, content: bytes) -> None:
    with pytest.raises(ConversionError, match=r"not JSON|nested"):
        Json().convert(content, source)


# Source code


def test_source_code_is_itself_and_names_its_language() -> None:
    document = SourceCode().convert("func α() {}\n".encode(), "pkg/a.go")
    assert (document.text, document.metadata["code"]) == ("func α() {}\n", "go")


# Running headers and footers


def test_running_headers_and_footers_are_kept_once() -> None:
    bodies = ["one of\nmany", "two more\nof it", "third\nand last", "a fourth\nbody", "the fifth\nends"]
    pages = [f"ACME report\nChapter {i}\n{body}\n- {i} -" for i, body in enumerate(bodies, start=1)]
    cleaned, running = without_running_lines(pages)
    assert cleaned[0] == pages[0]
    assert cleaned[1:] == bodies[1:]
    assert running == ["- # -", "acme report", "chapter #"]


def test_what_repeats_within_pages_or_on_two_of_them_stays() -> None:
    inner = ["a\nsame\nb", "c\nd\nsame\ne\nf\ng\nh", "i\nj\nk\nl\nsame\nm\nn\no\np"]
    assert without_running_lines(inner) == (inner, [])
    assert without_running_lines(["head\nx", "head\ny"]) == (["head\nx", "head\ny"], [])


@given(pages=st.lists(st.lists(st.sampled_from(["head", "page 1", "page 2", "", "body", "other"]), max_size=9).map("\n".join), max_size=9))
def test_only_lines_are_taken_away_and_each_kind_of_line_stays_somewhere(pages: list[str]) -> None:
    cleaned, _ = without_running_lines(pages)
    assert len(cleaned) == len(pages)
    for before, after in zip(pages, cleaned, strict=True):
        rest = iter(before.split("\n"))
        assert all(line in rest for line in after.split("\n") if after)
    kept = {line[:4] for page in cleaned for line in page.split("\n") if line}
    assert kept == {line[:4] for page in pages for line in page.split("\n") if line}
