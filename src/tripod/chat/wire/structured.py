"""What a text must be, as requests say it: `response_format` of the OpenAI API, `structured_outputs` and `guided_*` of vLLM."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from tripod.errors import RequestError
from tripod.sampling import Grammar

_FIELDS = ("response_format", "structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class JsonSchemaFormat(_Strict):
    """`json_schema` of a response format. It is enforced whatever `strict` says: best effort would be free text now and then."""

    name: str
    description: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class ResponseFormat(_Strict):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None

    def grammar(self) -> Grammar | None:
        """None asks for free text.

        Raises:
            RequestError: the schema is missing, or stands where none belongs.
        """
        if (self.json_schema is not None) != (self.type == "json_schema"):
            raise RequestError(
                f"response_format.json_schema belongs to type 'json_schema', and to no other; the type is {self.type!r}",
                param="response_format",
            )
        match self.type:
            case "text":
                return None
            case "json_object":
                return Grammar.json_object()
            case "json_schema":
                assert self.json_schema is not None
                return Grammar.json_schema(self.json_schema.schema_ if self.json_schema.schema_ is not None else {"type": "object"})

    @classmethod
    def of(cls, grammar: Grammar) -> ResponseFormat | None:
        """None for a grammar that the OpenAI API has no words for."""
        if grammar.is_compact:
            return None
        if grammar.kind == "json_object":
            return cls(type="json_object")
        schema = grammar.schema if grammar.kind == "json_schema" else None
        if not isinstance(schema, dict):
            return None
        return cls(type="json_schema", json_schema=JsonSchemaFormat(name="answer", schema=schema, strict=True))


class StructuredOutputs(_Strict):
    """Exactly one of the first five; without blanks between the parts of a JSON text, if so asked."""

    json_: dict[str, Any] | bool | str | None = Field(default=None, alias="json")
    regex: str | None = None
    choice: Annotated[list[str], Field(fail_fast=True)] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    disable_any_whitespace: bool | None = None

    def to_grammar(self, place: str) -> Grammar:
        """`place` names the field in errors."""
        is_compact = bool(self.disable_any_whitespace)
        given = [name for name, value in self if value is not None and value is not False and name != "disable_any_whitespace"]
        if self.json_ is False:
            given.append("json_")
        if len(given) != 1:
            raise RequestError(f"{place} takes exactly one of json, regex, choice, grammar and json_object", param=place)
        if is_compact and given[0] not in ("json_", "json_object"):
            raise RequestError(f"{place}.disable_any_whitespace is for json and json_object, not for {given[0]}", param=place)
        match given[0]:
            case "json_":
                return _json(self.json_, is_compact=is_compact)
            case "regex":
                return Grammar.regex(self.regex or "")
            case "choice":
                return Grammar.choice(self.choice or ())
            case "grammar":
                return Grammar.ebnf(self.grammar or "")
            case _:
                return Grammar.json_object(is_compact=is_compact)

    @classmethod
    def of(cls, grammar: Grammar) -> StructuredOutputs:
        match grammar.kind:
            case "json_schema":
                return cls(json=grammar.schema, disable_any_whitespace=grammar.is_compact or None)
            case "json_object":
                return cls(json_object=True, disable_any_whitespace=grammar.is_compact or None)
            case "regex":
                return cls(regex=grammar.source)
            case "ebnf":
                return cls(grammar=grammar.source)
            case "choice":
                return cls(choice=list(grammar.texts))
            case "tool_calls":
                raise RequestError("rules for tool calls are no grammar to send; give the prompt its tools", param="grammar")


class Structured(_Strict):
    """The fields of a request that say what the text must be. At most one of them may ask for anything."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: dict[str, Any] | str | None = None  # as vLLM had it before structured_outputs
    guided_regex: str | None = None
    guided_choice: Annotated[list[str], Field(fail_fast=True)] | None = None
    guided_grammar: str | None = None

    @property
    def grammar_field(self) -> str | None:
        """Which of them asks; None where the text is free.

        Raises:
            RequestError: two ask.
        """
        asking = [name for name in _FIELDS if getattr(self, name) is not None]
        if self.response_format is not None and self.response_format.type == "text" and self.response_format.json_schema is None:
            asking.remove("response_format")
        if len(asking) > 1:
            raise RequestError(f"{' and '.join(asking)} both say what the text must be; send one of them", param=asking[1])
        return asking[0] if asking else None

    def to_grammar(self) -> Grammar | None:
        """What the text must be; None where it is free.

        Raises:
            RequestError: two fields ask, or what one asks for has a mistake; `param` names the field.
        """
        field = self.grammar_field
        try:
            match field:
                case None:
                    return None
                case "response_format":
                    return self.response_format.grammar() if self.response_format else None
                case "structured_outputs":
                    return self.structured_outputs.to_grammar(field) if self.structured_outputs else None
                case "guided_json":
                    return _json(self.guided_json)
                case "guided_regex":
                    return Grammar.regex(self.guided_regex or "")
                case "guided_choice":
                    return Grammar.choice(self.guided_choice or ())
                case _:
                    return Grammar.ebnf(self.guided_grammar or "")
        except RequestError as error:
            raise in_field(error, field) from error


def in_field(error: RequestError, field: str | None) -> RequestError:
    """The same error about a grammar, with the name of the field that brought it."""
    if error.param != "grammar":
        return error
    named = RequestError(str(error), param=field)  # a new one: a refusal is kept beside the grammar, for whoever asks by other fields
    named.code = error.code
    return named


def _json(schema: dict[str, Any] | bool | str | None, *, is_compact: bool = False) -> Grammar:
    if isinstance(schema, str):
        return Grammar("json_schema", schema, is_compact)
    return Grammar.json_schema(schema if schema is not None else True, is_compact=is_compact)
