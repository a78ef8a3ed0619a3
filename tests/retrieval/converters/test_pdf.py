"""PDF: pages, clear reasons, and an end to files that never end."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from pypdf import PdfWriter

from tripod.errors import ConversionError
from tripod.retrieval.converters.isolated import Isolated, Limits
from tripod.retrieval.converters.pdf import Pdf


def pdf(*pages: str, password: str | None = None) -> bytes:
    """A PDF by hand: a page a text, in Helvetica. Encrypted by pypdf's writer, if at all."""
    kids = " ".join(f"{4 + 2 * i} 0 R" for i in range(len(pages)))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for i, text in enumerate(pages):
        stream = f"BT /F1 12 Tf 72 700 Td ({text}) Tj ET"
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Resources << /Font << /F1 3 0 R >> >> /Contents {5 + 2 * i} 0 R >>"
        )
        objects.append(f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream")
    out, places = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, start=1):
        places.append(len(out))
        out += f"{number} 0 obj\n{body}\nendobj\n".encode()
    table = "".join(f"{place:010} 00000 n \n" for place in places)
    out += f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}trailer\n<< /Size {len(objects) + 1} /Root 1 0 R >>\n".encode()
    out += f"startxref\n{out.rindex(b'xref')}\n%%EOF\n".encode()
    if password is None:
        return out
    writer = PdfWriter(clone_from=io.BytesIO(out))
    writer.encrypt(password, algorithm="RC4-128")
    buffer = io.BytesIO()
    writer.write(buffer)
    return buffer.getvalue()


def test_pages_are_kept() -> None:
    document = Pdf().convert(pdf("The first page.", "The second page."), "a.pdf")
    assert [(page.number, document.text[page.start : page.end].strip()) for page in document.pages] == [
        (1, "The first page."),
        (2, "The second page."),
    ]
    assert document.page_at(document.text.index("second")) == 2


@pytest.mark.parametrize("content", [b"[628 FR 13674] Tj", b"/NoSuchFont 12 Tf (hello) Tj"])  # malformed; without a known encoding
def test_one_unreadable_page_is_named_and_the_others_are_read(content: bytes) -> None:
    broken = pdf("The first page.", "The second page.").replace(b"(The second page.) Tj", content)
    document = Pdf().convert(broken, "a.pdf")
    assert document.text.strip() == "The first page."
    assert document.metadata["unreadable_pages"] == "2"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (pdf("secret", password="x"), "encrypted; save it without its password"),
        (pdf("", ""), "none of its 2 pages holds text"),
        (b"%PDF-1.4 and then nothing", "not a PDF that can be read"),
        (b"", "not a PDF that can be read"),
    ],
)
def test_what_cannot_be_read_says_why(content: bytes, reason: str) -> None:
    with pytest.raises(ConversionError, match=reason):
        Pdf().convert(content, "a.pdf")


def test_no_module_is_taken_from_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pypdf.py").write_text("raise SystemExit('a document was run as a program')")
    monkeypatch.chdir(tmp_path)
    assert "The first page." in Isolated(Pdf()).convert(pdf("The first page."), "a.pdf").text


def test_a_file_that_takes_too_long_is_given_up() -> None:
    with pytest.raises(ConversionError, match=r"more than 0\.01 s"):
        Isolated(Pdf(), Limits(timeout_s=0.01)).convert(pdf("text"), "a.pdf")


def test_a_file_that_takes_too_much_memory_is_given_up() -> None:
    with pytest.raises(ConversionError, match="memory"):
        Isolated(Pdf(), Limits(memory_bytes=60 << 20)).convert(pdf("text " * 10_000_000), "a.pdf")
