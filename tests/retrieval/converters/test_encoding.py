"""Bytes to text: marks and declarations are believed, guesses are not made."""

from __future__ import annotations

import codecs

import pytest

from tripod.errors import ConversionError
from tripod.retrieval.converters.encoding import decode


@pytest.mark.parametrize(
    ("content", "encoding"),
    [
        ("naïve ﬁ 𝔘".encode(), "utf-8"),
        (codecs.BOM_UTF8 + "naïve ﬁ 𝔘".encode(), "utf-8"),
        ("naïve ﬁ 𝔘".encode("utf-16"), "utf-16"),
        (codecs.BOM_UTF16_BE + "naïve ﬁ 𝔘".encode("utf-16-be"), "utf-16"),
        ("naïve ﬁ 𝔘".encode("utf-32"), "utf-32"),
    ],
)
def test_marked_and_unmarked_unicode_is_read_without_its_mark(content: bytes, encoding: str) -> None:
    assert decode(content) == ("naïve ﬁ 𝔘", encoding)


def test_a_declared_encoding_is_used() -> None:
    assert decode("Привет".encode("koi8-r"), "koi8-r") == ("Привет", "koi8-r")


@pytest.mark.parametrize(
    ("content", "declared", "message"),
    [
        (b"caf\xe9", None, "byte 0xe9 at offset 3"),
        (b"x", "klingon", "'klingon', which is not known"),
        (b"x", "hex", "'hex', which is not known"),
        (b"PK\x03\x04\x00\x00", None, "NUL characters"),
        ("text".encode("utf-16-le"), None, "NUL characters"),
    ],
)
def test_anything_else_is_an_error_with_the_place(content: bytes, declared: str | None, message: str) -> None:
    with pytest.raises(ConversionError, match=message):
        decode(content, declared)
