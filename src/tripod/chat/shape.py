"""What a value must look like, as a JSON schema for a model and as a check of what it wrote."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from tripod.errors import ConfigError

if TYPE_CHECKING:
    from pydantic import TypeAdapter, ValidationError

T = TypeVar("T")

_VALUE = "value"  # the only property of an object around a value that is none


class WrongValueError(ValueError):
    """A text is not a value of the type; the message says where and why, in words for the model that wrote it."""


class Shape(Generic[T]):
    """A dataclass, TypedDict, pydantic model or any other type that JSON can hold: what servers call structured output.

    Servers take only objects at the top, with all properties required and no others. So a type that is no object stands inside one,
    under "value", and a model says also what has a default.

    Raises:
        ConfigError: no JSON schema can be made of the type.
    """

    def __init__(self, returns: type[T]) -> None:
        from pydantic import PydanticSchemaGenerationError, PydanticUndefinedAnnotation, PydanticUserError, TypeAdapter

        self.returns = returns
        self.name = getattr(returns, "__name__", str(returns))
        try:
            self._adapter: TypeAdapter[T] = TypeAdapter(returns)
            schema = self._adapter.json_schema()
        except (PydanticUserError, PydanticSchemaGenerationError, PydanticUndefinedAnnotation) as error:
            raise ConfigError(
                f"{self.name} cannot be written as a JSON schema: {str(error).splitlines()[0]} "
                "(dataclasses, TypedDicts, pydantic models and what they are made of can)"
            ) from error
        self._is_wrapped = not _is_object(schema)
        if self._is_wrapped:
            definitions = schema.pop("$defs", None)
            schema = {"type": "object", "properties": {_VALUE: schema}, **({"$defs": definitions} if definitions else {})}
        self.schema: dict[str, Any] = rewritten(schema, _closed)

    def read(self, text: str) -> T:
        """The value that a text holds.

        Raises:
            WrongValueError: it holds none.
        """
        from pydantic import ValidationError
        from pydantic_core import from_json, to_json

        try:
            if not self._is_wrapped:
                return self._adapter.validate_json(text)
            return self._adapter.validate_json(to_json(self._unwrapped(from_json(text))))
        except ValidationError as error:
            raise WrongValueError(described(error)) from error
        except ValueError as error:
            raise WrongValueError(f"it is not valid JSON: {error}") from error

    def write(self, value: T) -> str:
        """The value as JSON."""
        return self._adapter.dump_json(value).decode()

    def begun(self, text: str) -> Any:
        """What the beginning of a text holds so far, as plain JSON values; None where it is too short to tell."""
        from pydantic_core import from_json

        try:
            value = from_json(text, allow_partial="trailing-strings")
        except ValueError:
            return None
        return value.get(_VALUE) if self._is_wrapped and isinstance(value, dict) else value

    def _unwrapped(self, value: Any) -> Any:
        if not isinstance(value, dict) or set(value) != {_VALUE}:
            raise WrongValueError(f"it must be an object with the one property {_VALUE!r}")
        return value[_VALUE]


def described(error: ValueError) -> str:
    """The first complaints of a pydantic `ValidationError`, one a line, in words that a model can act on."""
    lines = []
    for complaint in cast("ValidationError", error).errors(include_url=False, include_context=False)[:5]:
        place = ".".join(map(str, complaint["loc"])) or "the whole"
        lines.append(f"{place}: {complaint['msg']} (given {repr(complaint['input'])[:80]})")
    return "\n".join(lines)


def _is_object(schema: dict[str, Any]) -> bool:
    while "$ref" in schema:  # of a type that holds itself
        schema = schema["$defs"][schema["$ref"].removeprefix("#/$defs/")] | {"$defs": schema["$defs"]}
    return schema.get("type") == "object" and "properties" in schema


def _closed(schema: dict[str, Any]) -> dict[str, Any]:
    """Without titles and defaults; an object with named properties requires all of them, and allows no others."""
    closed = {key: value for key, value in schema.items() if key not in ("title", "default")}
    if "properties" in closed:
        closed |= {"required": list(closed["properties"]), "additionalProperties": False}
    return closed


def rewritten(schema: Any, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    """A JSON schema with every schema in it changed, the inner ones first."""
    if isinstance(schema, list):
        return [rewritten(item, change) for item in schema]
    if not isinstance(schema, dict):
        return schema
    changed: dict[str, Any] = {}
    for key, value in schema.items():
        if key in ("properties", "$defs"):  # the keys below are names, not keywords
            changed[key] = {name: rewritten(inner, change) for name, inner in value.items()}
        else:
            changed[key] = value if key in ("enum", "const", "default", "examples") else rewritten(value, change)  # those hold values
    return change(changed)
