"""HTML to readable text, with headings and lines."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tripod.documents import Document
from tripod.errors import ConversionError
from tripod.retrieval.converters.html import Html

PAGE = """<!doctype html>
<html><head><title>The
 page</title><style>p { color: red }</style></head>
<body><nav><a href="/">Home</a></nav>
<h1>Guide</h1>
<p>First <b>bold</b>, then
   <i>more</i>.</p>
<script>alert("no")</script>
<h2>Install</h2>
<ul><li>one<li>two</ul>
<pre>a = 1
b  = 2</pre>
<table><tr><td>x</td><td>y</td></tr></table>
<footer>Imprint</footer></body></html>
"""


def convert(page: str | bytes) -> Document:
    return Html().convert(page.encode() if isinstance(page, str) else page, "a.html")


def indexed(document: Document) -> str:
    return "".join(document.text[section.start : section.end] for section in document.sections)


def test_text_is_extracted_without_scripts_styles_and_navigation() -> None:
    document = convert(PAGE)
    assert document.title == "The page"
    assert document.text.split("\n\n") == ["Guide", "First bold, then more.", "Install", "one\ntwo", "a = 1\nb  = 2", "x | y", ""]
    assert [section.title for section in document.sections] == ["Guide", "Guide > Install"]


@pytest.mark.parametrize(("words", "line"), [("Guide", 5), ("First", 6), ("more", 7), ("two", 10), ("b  =", 12), ("x |", 13)])
def test_a_word_leads_back_to_its_line_in_the_file(words: str, line: int) -> None:
    document = convert(PAGE)
    assert document.line_at(document.text.index(words)) == line
    assert words.split(" |")[0] in PAGE.splitlines()[line - 1]


def test_only_the_main_part_is_indexed_where_it_is_marked() -> None:
    document = convert("<div>Menu</div><main><h1>T</h1><main>in</main>side</main><div>More from us</div>")
    assert indexed(document).split() == ["T", "in", "side"]


def test_an_unclosed_navigation_does_not_swallow_the_page() -> None:
    assert "The text" in indexed(convert("<nav><a>Home</a><p>The text.</p>"))


def test_a_page_that_only_a_script_draws_is_an_error() -> None:
    with pytest.raises(ConversionError, match="drawn by a script"):
        convert("<body><div id=root></div><script>render()</script></body>")


@pytest.mark.parametrize(
    "page",
    [
        '<meta charset="windows-1251"><p>Привет</p>'.encode("windows-1251"),
        '<meta http-equiv="Content-Type" content="text/html; charset=koi8-r"><p>Привет</p>'.encode("koi8-r"),
        '<?xml version="1.0" encoding="iso-8859-5"?><html><p>Привет</p></html>'.encode("iso-8859-5"),
        "<p>Привет</p>".encode("utf-16"),
        "<p>Привет</p>".encode(),
    ],
)
def test_declared_encodings_are_read(page: bytes) -> None:
    document = convert(page)
    assert document.text.strip() == "Привет"
    assert "encoding_is_guessed" not in document.metadata


def test_a_guessed_encoding_is_recorded() -> None:
    document = convert(b"<p>caf\xe9</p>")
    assert document.text.strip() == "café"
    assert document.metadata["encoding"] == "windows-1252"
    assert document.metadata["encoding_is_guessed"] is True


_TAGS = [
    "p",
    "/p",
    "h1",
    "/h1",
    "h3",
    "/h3",
    "nav",
    "/nav",
    "main",
    "/main",
    "pre",
    "/pre",
    "td",
    "li",
    "br/",
    "script",
    "/script",
    "!--",
    "b",
]


@given(
    st.lists(st.sampled_from(_TAGS).map(lambda tag: f"<{tag}>") | st.sampled_from(["word", " ", "\n", "&amp;", "&lt;", "x <"]), max_size=40)
)
def test_any_soup_of_tags_gives_ordered_sections_and_lines(pieces: list[str]) -> None:
    try:
        document = convert("".join(pieces))
    except ConversionError:
        return
    borders = [border for section in document.sections for border in (section.start, section.end)]
    assert borders == sorted(borders)
    starts = [line.start for line in document.lines]
    assert starts == sorted(starts)
    assert all(1 <= line.number <= "".join(pieces).count("\n") + 1 for line in document.lines)
