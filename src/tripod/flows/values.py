"""Arguments and results as the journal keeps them: JSON by the type hint, so that what comes back is what went in."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from tripod.errors import JournalError
from tripod.flows.hints import show

if TYPE_CHECKING:
    from pydantic import TypeAdapter


def encode(value: Any, hint: Any, what: str) -> str:
    """JSON text.

    Args:
        value: what is to be kept.
        hint: its type; Any keeps what JSON knows, and a tuple as a list.
        what: names it in an error, such as "the result of 'charge'".

    Raises:
        JournalError: it cannot be kept, or would come back as something else.
    """
    try:
        text = _adapter(hint).dump_json(value, warnings="error").decode()
        returned = _adapter(hint).validate_json(text)
    except (ValueError, TypeError) as error:
        raise JournalError(
            f"{what} cannot be journalled as {show(hint)}: {str(error).splitlines()[0]}; give it a type hint that says what it is"
        ) from error
    if hint is Any and type(returned) is not type(value) and not isinstance(value, tuple):
        raise JournalError(
            f"{what} is a {type(value).__name__}, which would come back from the journal as a {type(returned).__name__}, because it has no "
            "type hint; give it one that says what it is"
        )
    return text


def decode(text: str, hint: Any, what: str) -> Any:
    """The value of JSON text.

    Raises:
        JournalError: it is not of that type.
    """
    try:
        return _adapter(hint).validate_json(text)
    except ValueError as error:
        raise JournalError(f"{what} is in the journal as {text:.200}, which is no {show(hint)}: {str(error).splitlines()[0]}") from error


def encode_untyped(value: Any) -> str:
    """JSON text of what a person gives in place of a result; its type is checked where it is used."""
    from pydantic_core import PydanticSerializationError, to_json

    try:
        return to_json(value).decode()
    except PydanticSerializationError as error:
        raise JournalError(f"{value!r:.200} cannot be journalled: {error}; give what JSON knows") from error


def encode_arguments(arguments: Mapping[str, Any], hints: Mapping[str, Any], what: str) -> str:
    """A JSON object by name, always the same text for the same arguments."""
    import json

    kept = {name: json.loads(encode(value, hints.get(name, Any), f"the argument {name!r} of {what}")) for name, value in arguments.items()}
    return json.dumps(kept, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def decode_arguments(text: str, hints: Mapping[str, Any], what: str) -> dict[str, Any]:
    import json

    return {
        name: decode(json.dumps(value), hints.get(name, Any), f"the argument {name!r} of {what}")
        for name, value in json.loads(text).items()
    }


def key_of(execution: str, path: str) -> str:
    """The idempotency key of a step: the same whenever this step of this execution runs."""
    return hashlib.sha256(f"{execution}\n{path}".encode()).hexdigest()[:32]


def _adapter(hint: Any) -> TypeAdapter[Any]:
    try:
        return _kept_adapter(hint)
    except TypeError:  # a hint that cannot be hashed, such as Annotated with a list
        return _new_adapter(hint)


def _new_adapter(hint: Any) -> TypeAdapter[Any]:
    from pydantic import PydanticUserError, TypeAdapter

    try:
        return TypeAdapter(hint)
    except PydanticUserError as error:
        raise JournalError(f"{show(hint)} cannot be journalled: {str(error).splitlines()[0]}") from error


_kept_adapter = lru_cache(maxsize=1024)(_new_adapter)
