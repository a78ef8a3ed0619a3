"""HTML to readable text, with headings and lines."""

from __future__ import annotations

import time

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


@pytest.mark.parametrize("tag", ["p", "pre"])
def test_each_line_of_a_long_text_is_its_own(tag: str) -> None:
    page = f"<{tag}>one\r\ntwo \x0c three\u2028four\n\n five</{tag}>\n<p>six</p>"
    document = convert(page)
    for word in ("one", "two", "three", "four", "five", "six"):
        assert document.line_at(document.text.index(word)) == page.count("\n", 0, page.index(word)) + 1, word


def test_only_the_main_part_is_indexed_where_it_is_marked() -> None:
    document = convert("<div>Menu</div><main><h1>T</h1><main>in</main>side</main><div>More from us</div>")
    assert indexed(document).split() == ["T", "in", "side"]


def test_the_main_part_ends_with_its_own_element_however_deep_it_is_nested() -> None:
    page = "<div>Menu</div><div role=main><div><div>first</div></div><p>last</p></div><div>Imprint</div>"
    assert indexed(convert(page)).split() == ["first", "last"]


@pytest.mark.parametrize("tag", ["nav", "button", "svg"])
def test_an_unclosed_element_that_is_not_read_does_not_swallow_the_page(tag: str) -> None:
    assert "The text" in indexed(convert(f"<p>Before.</p><{tag}><a>Home</a><p>The text.</p>"))


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


@pytest.mark.parametrize("page", [b"<\0p\0>\0x", b"<\0\x00\xd8", b"<\0p\0>\0\0\0"])  # cut, half of a pair, NUL
def test_what_only_begins_like_utf_16_is_an_error(page: bytes) -> None:
    with pytest.raises(ConversionError, match="begins like UTF-16"):
        convert(page)


@pytest.mark.parametrize("mark", ["<![if IE]>", "<![", "<![<!", "<![CDATA[ x > y ]]>", "<![endif]-->"])
def test_marked_sections_are_skipped(mark: str) -> None:
    assert indexed(convert(f"<p>before {mark} <p>after")).split()[::2][0] == "before"
    assert "after" in indexed(convert(f"<p>before {mark}> <p>after"))


def test_a_page_of_many_articles_takes_no_time_for_each_pair_of_them() -> None:
    started_s = time.process_time()
    assert len(convert("<article><h2>t</h2>x</article>" * 10_000).sections) == 10_000
    assert time.process_time() - started_s < 3.0  # in steps of all articles for each it is 6 s and more


@pytest.mark.parametrize(
    ("page", "text"),
    [
        ("<p>a</p><p> b</p>", "a\n\nb"),  # no space at the start of a line
        ("<script>x</script >\n<p>a</p><script>y</script type=z><p>b</p>", "a\n\nb"),
        ("<p>a<script src=x/></script><nav/>b</p>", "ab"),
        ('<!-- <meta charset="koi8-r"> --><p>\u2019</p>', "\u2019"),
    ],
)
def test_what_only_looks_like_something_else(page: str, text: str) -> None:
    assert convert(page).text.strip("\n") == text


def test_latin_1_means_windows_1252() -> None:
    assert convert(b'<meta charset="iso-8859-1"><p>\x93word\x94</p>').text.strip() == "\u201cword\u201d"


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
