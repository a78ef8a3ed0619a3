"""Nothing that other readers find is lost: the words of markitdown's and of pypdf's plain output are in ours."""

from __future__ import annotations

import io
import re
import warnings
from collections import Counter
from pathlib import Path

import pytest

from tripod.documents import Document
from tripod.errors import ConversionError
from tripod.retrieval.converters.isolated import Isolated
from tripod.retrieval.converters.registry import by_suffix, suffix_of

LEAST = 0.95
_GLUED = 12  # letters from which on a word may be several whose spaces the other reader lost
COMPARED = {".pdf", ".docx", ".pptx", ".xlsx", ".epub", ".html"}
# What markitdown writes around the words of a file: images, targets of links, comments, numbers of list items, commands of LaTeX.
_ITS_OWN = re.compile(
    r"!\[[^\]]*\]\([^)]*\)|\]\([^)]*\)|<!--.*?-->|(?:^|[|*+]|\s\s)\s*(?:\d+\.\s+)+|\\[a-zA-Z]+|NaN|Unnamed: \d+", re.MULTILINE | re.DOTALL
)
_MARKS = re.compile(r"[*\\]|(?<!\w)_|_(?!\w)")


def words(text: str) -> Counter[str]:
    return Counter(re.findall(r"[^\W_]+", text.lower()))


def recall(ours: str, reference: str) -> float:
    """The share of the reference's words, each as often as it stands there, that ours holds."""
    wanted = words(reference)
    run = "".join(re.findall(r"[^\W_]+", ours.lower()))
    missing = sum(count for word, count in (wanted - words(ours)).items() if len(word) < _GLUED or word not in run)
    return 1.0 - missing / max(1, wanted.total())


@pytest.fixture(scope="module")
def converted(shared_data: Path) -> dict[Path, Document]:
    """Every document of the compared formats that we read."""
    converters, found = by_suffix(), dict[Path, Document]()
    for path in sorted((shared_data / "documents").rglob("*")):
        if path.suffix in COMPARED:
            converter = converters[suffix_of(path.name)]
            assert isinstance(converter, Isolated)
            try:
                found[path] = converter.inner.convert(path.read_bytes(), path.name)
            except ConversionError:
                continue  # test_real_documents says which, and why
    return found


def test_the_words_of_markitdown_are_in_ours(converted: dict[Path, Document]) -> None:
    markitdown = pytest.importorskip("markitdown", reason="the package markitdown is not installed")
    bs4 = pytest.importorskip("bs4")
    reader = markitdown.MarkItDown(enable_plugins=False)
    shares, unreadable = dict[str, float](), list[str]()
    for path, document in converted.items():
        content = path.read_bytes()
        if path.suffix == ".html":  # of a page, we mean the main part
            page = bs4.BeautifulSoup(content, "html.parser")
            for part in page(["nav", "aside", "footer", "button", "select", "textarea"]):
                part.decompose()
            content = str(page).encode()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reference = reader.convert_stream(io.BytesIO(content), file_extension=path.suffix).text_content
        if reference.count("(cid:") > 100:  # glyphs that it could not read, which are no words of the file
            unreadable.append(path.name)
            continue
        shares[path.name] = recall(document.text, _MARKS.sub("", _ITS_OWN.sub(" ", reference)))
    assert (len(shares) > 40, unreadable) == (True, ["testPDF_bad_page_303226.pdf"])
    assert {name: round(share, 3) for name, share in shares.items() if share < LEAST} == {}


def test_the_words_of_pypdf_are_in_ours_on_the_pages_where_they_stand(converted: dict[Path, Document]) -> None:
    import logging

    import pypdf

    logging.getLogger("pypdf").setLevel(logging.CRITICAL)
    num_pages = 0
    for path, document in converted.items():
        if path.suffix != ".pdf":
            continue
        plain = []
        for page in pypdf.PdfReader(path).pages:
            try:
                plain.append(page.extract_text())
            except Exception:  # a broken page, which our metadata names
                plain.append("")
        broken = str(document.metadata.get("unreadable_pages", "")).split(", ")
        assert len(document.pages) == len(plain)
        read = [(page, text) for page, text in zip(document.pages, plain, strict=True) if str(page.number) not in broken]
        assert recall(document.text, "\n".join(text for _, text in read)) >= LEAST, path.name
        for page, text in read:
            num_pages += 1
            # Running headers and footers stay on the first page that has them.
            assert recall(document.text[page.start : page.end], text) >= 0.9, (path.name, page.number)
            for place in range(page.start, page.end):
                assert document.page_at(place) == page.number
    assert num_pages > 40
