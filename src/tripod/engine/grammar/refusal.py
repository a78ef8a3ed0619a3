"""How a JSON schema that cannot be enforced is refused."""

from __future__ import annotations

import re

from tripod.errors import RequestError


class UnsupportedSchemaError(RequestError):
    """A schema that can be read and cannot be enforced; `keyword` says because of what ("" where no single one is at fault)."""

    code = "unsupported_grammar"

    def __init__(self, keyword: str, message: str) -> None:
        super().__init__(message, param="grammar")
        self.keyword = keyword


def unsupported(keyword: str, place: str, reason: str = "it cannot be enforced while a text is generated") -> UnsupportedSchemaError:
    """`place` is where it stands, as a JSON pointer such as "#/properties/a"."""
    return UnsupportedSchemaError(
        keyword, f"the JSON schema's keyword {keyword!r} at {place} is not supported: {reason}. Leave it out, or say it in other keywords"
    )


_REASONS = (  # what llguidance says, the keyword that it means, and the reason in our words where its own would mislead
    (re.compile(r"Unimplemented keys: \[\"([^\"]+)\""), None, "it cannot be enforced while a text is generated"),
    (re.compile(r"Unknown format"), "format", None),
    (re.compile(r"oneOf constraints"), "oneOf", "its branches may overlap, and their negations have no form that can be enforced"),
    (re.compile(r"min/maxProperties"), "minProperties", "with maxProperties, it needs every property that is listed to be required"),
    (re.compile(r"circular references|^Resource|[Pp]ointer|\$ref"), "$ref", None),
    (re.compile(r"patternProperties"), "patternProperties", None),
    (re.compile(r"regex"), "pattern", None),
)


def refusal_of(message: str) -> UnsupportedSchemaError | None:
    """What llguidance says against a schema, as our error; None where it says nothing."""
    if not message:
        return None
    message = first_paragraph(message)
    for pattern, keyword, reason in _REASONS:
        if found := pattern.search(message):
            keyword = keyword or found[1]
            return UnsupportedSchemaError(keyword, f"the JSON schema's keyword {keyword!r} is not supported here: {reason or message}")
    return UnsupportedSchemaError("", f"the JSON schema cannot be enforced: {message}")


def first_paragraph(message: str) -> str:
    """The reason without the dump of the grammar that follows it."""
    return " ".join(message.partition("\n\n")[0].partition("\n<state>")[0].split())[:500]
