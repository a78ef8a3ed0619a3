"""Bytes to text without mojibake: a byte order mark, a declaration or UTF-8, and otherwise a clear error."""

from __future__ import annotations

import codecs

from tripod.errors import ConversionError

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16: its mark begins with the mark of UTF-16
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def marked_encoding(content: bytes) -> str | None:
    """The encoding that a byte order mark at the start names, if there is one."""
    return next((name for mark, name in _MARKS if content.startswith(mark)), None)


def decode(content: bytes, declared: str | None = None) -> tuple[str, str]:
    """The text of a file and the encoding that it was read with.

    Args:
        content: the whole file.
        declared: what the file says about itself, such as in an HTML meta tag. A byte order mark is believed first.

    Raises:
        ConversionError: the bytes are not text in that encoding, or the text holds NUL characters.
    """
    encoding = marked_encoding(content) or declared or "utf-8"
    try:
        text = content.decode(encoding)
    except LookupError:
        raise ConversionError(f"it declares the encoding {encoding!r}, which is not known; convert it to UTF-8") from None
    except ValueError as error:
        origin = "is not" if encoding == "utf-8" else f"is marked or declared as {encoding}, but is neither that nor"
        raise ConversionError(f"it {origin} UTF-8 text ({_place(error)}); save it as UTF-8, or declare its encoding") from None
    if "\0" in text:
        raise ConversionError("it holds NUL characters: a binary file, or UTF-16 without a byte order mark")
    return text, encoding.removesuffix("-sig")


def _place(error: ValueError) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"byte 0x{error.object[error.start]:02x} at offset {error.start}"
    return str(error)
