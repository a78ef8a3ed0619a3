"""JSON schemas rewritten so that llguidance can enforce more of them. Every rule keeps the set of valid values, or refuses by name.

llguidance has no negation. What is left of it after these rules is refused, as is every other assertion that it does not know:
a value that breaks a keyword must not come out because the keyword was skipped.

- A schema with `enum` or `const` allows finitely many values: those that are valid by all of it are listed (`jsonschema` decides).
- `not` moves inwards to where it has a positive form (`negation.py`): not `{"type": "string"}` is every other type, not
  `{"required": ["a"]}` is an object without `a`, and so on.
- `dependentRequired`, `dependentSchemas` and `dependencies`: the property is absent, or the rest holds.
- `if`: it holds and so does `then`, or its negation holds and so does `else`.
- `oneOf` whose branches may overlap: one branch holds, and the negations of all others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tripod.engine.grammar.negation import Negation, Schema
from tripod.engine.grammar.refusal import unsupported
from tripod.errors import MissingExtraError, RequestError

_REWRITTEN = ("not", "dependentRequired", "dependentSchemas", "dependencies", "if")
_REFUSED = (
    "contains", "maxContains", "minContains", "uniqueItems", "propertyNames", "unevaluatedItems", "unevaluatedProperties",
    "$dynamicRef", "$recursiveRef", "contentSchema", "extends", "disallow", "divisibleBy",
)  # fmt: skip
_ONE = ("additionalItems", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames")  # keyword -> a schema
_MANY = ("allOf", "anyOf", "oneOf", "prefixItems")  # keyword -> schemas
_NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")  # keyword -> name -> schema
_EXACT = 2.0**53  # beyond, floating-point numbers are not every integer
_MOST_BRANCHES = 16  # of a oneOf that is written out, which takes their number squared


def check_schema(schema: Schema) -> None:
    """Refuse what is no JSON schema by its own `$schema` (2020-12 where it names none).

    Raises:
        RequestError: a keyword has a value that it cannot have.
    """
    jsonschema = _jsonschema()
    try:
        jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator).check_schema(schema)
    except jsonschema.SchemaError as error:
        raise RequestError(f"{error.json_path} of the JSON schema is not valid: {error.message[:200]}", param="grammar") from error


def rewrite(schema: Schema, *, expand_one_of: bool = False) -> Schema:
    """The same set of values in keywords that llguidance knows.

    Args:
        schema: one that `check_schema` let pass.
        expand_one_of: write out every `oneOf` as well, by the negations of its branches.

    Raises:
        UnsupportedSchemaError: a keyword has no such form.
    """
    return _Rewriter(schema, expand_one_of).schema(schema, "#")


class _Rewriter:
    def __init__(self, root: Schema, expand_one_of: bool) -> None:
        self._root = root
        self._expand_one_of = expand_one_of

    def schema(self, schema: Any, place: str) -> Schema:
        """One schema and all below it. References stay as they are: one that leads into a rewritten part is refused later."""
        if not isinstance(schema, Mapping):
            return bool(schema)
        values = next(_value_lists(schema), None)
        if values is not None and any(map(_holds_huge_float, values)):
            raise unsupported("enum", place, "it holds a number beyond 2^53, and its spelling as an integer is another one to a validator")
        if values is not None and _is_beyond(schema):
            return self._finite(schema, values, place)
        result = {key: self._keyword(key, value, f"{place}/{key}") for key, value in schema.items() if key not in _REWRITTEN}
        added = [item for keyword in _REWRITTEN if keyword in schema for item in self._positive(keyword, schema, place)]
        if "if" in schema:
            result.pop("then", None)
            result.pop("else", None)
        if self._expand_one_of and "oneOf" in schema:
            del result["oneOf"]
            added.append(self._one_of(schema["oneOf"], f"{place}/oneOf"))
        for keyword in _REFUSED:
            if keyword in schema and not _asks_for_nothing(keyword, schema):
                raise unsupported(keyword, place)
        if schema.get("minProperties", 0) - len(set(schema.get("required", ()))) > 1:
            # The grammar lets the names of additional properties repeat, and a repeated name is one property.
            raise unsupported("minProperties", place)
        if added:
            result["allOf"] = [*result.get("allOf", ()), *added]
        return result

    def _keyword(self, key: str, value: Any, place: str) -> Any:
        if isinstance(value, list) and (key in _MANY or key == "items"):
            return [self.schema(item, f"{place}/{i}") for i, item in enumerate(value)]
        if key in _ONE or key == "items":
            return self.schema(value, place)
        if key in _NAMED and isinstance(value, Mapping):
            return {name: self.schema(item, f"{place}/{name}") for name, item in value.items()}
        return value

    def _finite(self, schema: Mapping[str, Any], values: Sequence[Any], place: str) -> Schema:
        jsonschema = _jsonschema()
        validator = jsonschema.validators.validator_for(self._root, default=jsonschema.Draft202012Validator)(self._root)
        try:
            valid = [value for value in values if validator.evolve(schema=schema).is_valid(value)]
        except Exception as error:  # a reference that leads nowhere; an expression that Python's `re` does not read
            raise unsupported("enum", place, f"its values cannot be checked against the rest of the schema: {error}"[:300]) from error
        if not valid:
            raise unsupported("enum", place, "none of its values is valid by the rest of the schema")
        return {"enum": valid, **{key: schema[key] for key in ("$defs", "definitions", "$id", "$schema") if key in schema}}

    def _positive(self, keyword: str, schema: Mapping[str, Any], place: str) -> list[Schema]:
        """What stands for a keyword, all of which must hold."""
        value, place = schema[keyword], f"{place}/{keyword}"
        match keyword:
            case "not":
                return [Negation("not", self.schema).of(value, place)]
            case "if":
                return self._conditional(schema, place)
            case _:
                return [self._dependent(name, needed, f"{place}/{name}") for name, needed in value.items()]

    def _conditional(self, schema: Mapping[str, Any], place: str) -> list[Schema]:
        condition, then, otherwise = schema["if"], schema.get("then", True), schema.get("else", True)
        if then is True and otherwise is True:
            return []
        holds = {"allOf": [self.schema(condition, place), self.schema(then, place)]}
        fails = {"allOf": [Negation("if", self.schema).of(condition, place), self.schema(otherwise, place)]}
        return [{"anyOf": [holds, fails]}]

    def _dependent(self, name: str, needed: Any, place: str) -> Schema:
        """`needed` holds names or is a schema."""
        rest: Schema = {"required": needed} if isinstance(needed, list) else self.schema(needed, place)
        return {"anyOf": [{"properties": {name: False}}, {"allOf": [{"required": [name]}, rest]}]}

    def _one_of(self, branches: Sequence[Schema], place: str) -> Schema:
        if len(branches) > _MOST_BRANCHES:
            raise unsupported("oneOf", place, f"its {len(branches)} branches may overlap, and are too many to write out")
        written = [self.schema(branch, f"{place}/{i}") for i, branch in enumerate(branches)]
        if len(branches) == 1:
            return written[0]
        negated = [Negation("oneOf", self.schema).of(branch, f"{place}/{i}") for i, branch in enumerate(branches)]
        return {"anyOf": [{"allOf": [branch, *negated[:i], *negated[i + 1 :]]} for i, branch in enumerate(written)]}


def _value_lists(schema: Mapping[str, Any]) -> Iterator[Sequence[Any]]:
    """The lists that a valid value must be on: of the schema itself, and of what it takes in by `allOf`."""
    if isinstance(schema.get("enum"), list):
        yield schema["enum"]
    if "const" in schema:
        yield [schema["const"]]
    for item in schema.get("allOf", ()):
        if isinstance(item, Mapping):
            yield from _value_lists(item)


def _holds_huge_float(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_holds_huge_float, value.values()))
    return any(map(_holds_huge_float, value)) if isinstance(value, list) else isinstance(value, float) and abs(value) > _EXACT


def _is_beyond(schema: Any) -> bool:
    """Some assertion in it may not be llguidance's."""
    if isinstance(schema, Mapping):
        return any(key in _REWRITTEN or key in _REFUSED or key == "oneOf" or _is_beyond(value) for key, value in schema.items())
    return isinstance(schema, list) and any(map(_is_beyond, schema))


def _asks_for_nothing(keyword: str, schema: Mapping[str, Any]) -> bool:
    if keyword == "uniqueItems":
        return schema[keyword] is False
    return keyword in ("minContains", "maxContains") and "contains" not in schema


def _jsonschema() -> Any:
    try:
        import jsonschema
        import jsonschema.validators
    except ImportError as error:
        raise MissingExtraError("jsonschema", "grammar", "a JSON schema as a grammar") from error
    return jsonschema
