"""E-mail: one message (`.eml`) or a box of them (`.mbox`), read by the standard library. A page is a message of a box."""

from __future__ import annotations

import re
from email import message_from_bytes
from email.message import EmailMessage, MIMEPart
from email.policy import default

from tripod.documents import Document
from tripod.errors import ConversionError
from tripod.retrieval.converters.composed import Composed
from tripod.retrieval.converters.html import Html
from tripod.retrieval.converters.optional import reading

_HEADERS = ("Subject", "From", "To", "Cc", "Date")
_START_OF_MESSAGE = re.compile(rb"^From [^\n]*\d{4}[^\n]*\r?\n", re.MULTILINE)
_QUOTED_START = re.compile(rb"^>(>*From )", re.MULTILINE)


class Email:
    """Subject, people, date, the body as plain text, and the names of the attachments."""

    suffixes = frozenset({".eml", ".mbox"})

    def convert(self, content: bytes, source: str) -> Document:
        composed = Composed()
        if not source.lower().endswith(".mbox"):
            with reading("an e-mail"):
                title, metadata = _add(composed, content)
            return composed.document(source, title=title, metadata={"format": "email"} | metadata)
        starts = [(match.start(), match.end()) for match in _START_OF_MESSAGE.finditer(content)]
        if not starts or starts[0][0] != 0:
            raise ConversionError("it is not a box of messages: it does not begin with a line 'From ADDRESS DATE'")
        with reading("a box of messages"):
            for number, ((_, begin), (end, _)) in enumerate(zip(starts, [*starts[1:], (len(content), 0)], strict=True), start=1):
                start = composed.length
                _add(composed, _QUOTED_START.sub(rb"\1", content[begin:end]))
                composed.page(number, start)
                composed.add("")
        return composed.document(source, title=source.rpartition("/")[2], metadata={"format": "mbox", "num_messages": len(starts)})


def _add(composed: Composed, content: bytes) -> tuple[str, dict[str, str]]:
    """One message. Returns its subject, and what a filter may ask for."""
    message = message_from_bytes(content, policy=default)
    assert isinstance(message, EmailMessage)
    headers = {name: " ".join(str(message[name]).split()) for name in _HEADERS if message[name]}
    if not headers:
        raise ConversionError("it has none of the headers of an e-mail")
    composed.heading(1, headers.get("Subject", "") or f"From {headers.get('From', 'nobody')}")
    for name, value in headers.items():
        composed.add(f"{name}: {value}")
    composed.add("")
    body = message.get_body(preferencelist=("plain", "html"))
    if body is not None:
        composed.add(_text(body).strip("\n"))
    if names := [part.get_filename() or part.get_content_type() for part in message.iter_attachments()]:
        composed.add(f"Attachments: {', '.join(names)}")
    date = message["Date"]
    written = getattr(date, "datetime", None)
    metadata = {"from": headers.get("From", ""), "date": written.isoformat() if written else ""}
    return headers.get("Subject", ""), {name: value for name, value in metadata.items() if value}


def _text(part: MIMEPart) -> str:
    payload = part.get_payload(decode=True)
    content = payload if isinstance(payload, bytes) else b""
    if part.get_content_subtype() == "html":
        return Html().convert(content, "body.html").text
    try:
        return str(part.get_content())
    except (LookupError, ValueError):  # a character set that is unknown, or not the body's
        return content.decode("utf-8", "replace")
