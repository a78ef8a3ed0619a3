"""What the bodies have in common: a request is strict, and its errors speak of the API's fields; a reply has what was set."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, ValidationError
from pydantic_core import PydanticCustomError

from tripod.errors import RequestError

_MAX_ERRORS = 1000  # in one body, to name the first: pydantic describes them all, a kilobyte each


def _refuse(value: object) -> None:
    """Accepts only what asks for nothing: null, false, an empty list."""
    if value:
        raise PydanticCustomError("unsupported", "is not supported by this server; leave it out")


Unsupported = Annotated[None, BeforeValidator(_refuse)]


def only(*kinds: str, default: str = "", what: str = "is of type") -> BeforeValidator:
    """Refuses an object where it stands, by its `type`, unless it is one of these; `default` is the type of one that names none."""

    def check(value: object) -> object:
        if isinstance(value, dict) and (kind := value.get("type", default)) not in kinds:
            values = {"what": what, "kind": repr(kind)[:100], "kinds": ", ".join(kinds)}
            raise PydanticCustomError("unsupported", "{what} {kind}; this server takes {kinds}", values)
        return value

    return BeforeValidator(check)


def _shape(value: object) -> str:
    return "<list>" if isinstance(value, list) else "<object>" if isinstance(value, dict | BaseModel) else "<text>"


def _type(value: Any) -> str:
    return f"<{value.get('type', 'message') if isinstance(value, dict) else getattr(value, 'type', None)}>"


# Which branch of a union a value belongs to. Tags that are no identifiers stay out of the paths in our errors.
BY_SHAPE = Discriminator(_shape, custom_error_type="shape", custom_error_message="has a shape that this API does not know")
BY_TYPE = Discriminator(_type, custom_error_type="shape", custom_error_message="must be an object with a type")


class WireBody(BaseModel):
    """Strict: "0.5" is not a number; an unknown field is an error, not a typo that nobody sees; NaN is not JSON."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @classmethod
    def parse(cls, body: bytes) -> Self:
        """Reads a request.

        Raises:
            RequestError: it is not JSON, not an object, or a field is wrong; `param` names the field.
        """
        try:
            return cls.model_validate_json(body)
        except ValidationError as error:
            raise request_error(error) from error

    def to_json(self) -> dict[str, Any]:
        """What the client sends: only the fields that were set."""
        return self.model_dump(mode="json", exclude_unset=True, by_alias=True)


def request_error(errors: ValidationError) -> RequestError:
    """Pydantic's first complaint, in the words of the API. The message has the whole path, `param` the field's name."""
    if errors.error_count() > _MAX_ERRORS:
        return RequestError(f"the body is wrong in {errors.error_count()} places, too many to name one; compare it with /openapi.json")
    error = errors.errors(include_url=False)[0]
    path = ""
    param = None
    for place in error["loc"]:
        if isinstance(place, int):
            path += f"[{place}]"
        elif place.isidentifier():  # the others name a branch of a union, such as "list[str]"
            path += f".{place}" if path else place
            param = path
    match error["type"]:
        case "json_invalid":
            return RequestError(f"the body is not valid JSON: {error['ctx']['error']}")
        case "model_type" if not path:
            return RequestError('the body must be a JSON object, such as {"model": "..."}')
        case "missing":
            return RequestError(f"{path} is missing", param=param)
        case "extra_forbidden":
            return RequestError(f"{path} is not a parameter that this server knows; remove it or check its spelling", param=param)
        case "unsupported" | "shape" | "token_id" | "too_many":
            return RequestError(f"{path} {error['msg']}", param=param)
        case _:
            given = repr(error["input"])
            return RequestError(f"{path}: {error['msg']}, given {given[:100]}", param=param)


class ReplyBody(BaseModel):
    """What a server sends: every field that was set, null included, because strict clients look for the keys; and no others."""

    model_config = ConfigDict(extra="ignore")

    def to_json(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude_unset=True)
