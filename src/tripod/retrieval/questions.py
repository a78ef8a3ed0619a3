"""Better questions, by a language model: other words, an imagined answer, smaller questions, the right index, the right filter."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tripod.documents import Scalar
from tripod.errors import ConfigError, RequestError
from tripod.prompts import Part, Prompt
from tripod.protocols import ChatModel
from tripod.sampling import Grammar, SamplingParams

MAX_TOKENS = 300
_TYPES: Mapping[type, str] = {str: "string", int: "integer", float: "number", bool: "boolean"}


async def rephrased(question: str, model: ChatModel, n: int = 3) -> list[str]:
    """The question and up to n ways to ask it in other words; for a search each (multi-query)."""
    task = f"Write {n} other ways to ask the question, each with other words for the same thing. Answer nothing."
    return list(dict.fromkeys([question, *await _questions(task, question, model, n)]))


async def imagined(question: str, model: ChatModel) -> str:
    """A passage as it might stand in a document that answers: its vector is nearer to theirs (HyDE; Gao et al. 2022, arXiv:2212.10496)."""
    prompt = _prompt(
        "Write a short passage, as it might stand in a document, that answers the question. Invent what you do not know.", question
    )
    reply = await model.complete(prompt, SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS))
    return reply.text.strip() or question


async def decomposed(question: str, model: ChatModel, n: int = 4) -> list[str]:
    """Up to n smaller questions whose answers together answer it; the question alone where the model finds none."""
    task = f"Write up to {n} smaller questions, each of which can be looked up alone, whose answers together answer the question."
    return await _questions(task, question, model, n) or [question]


async def routed(question: str, choices: Mapping[str, str], model: ChatModel) -> str:
    """The name, of those given with a description each, that fits the question best.

    Raises:
        ConfigError: nothing to choose from.
        RequestError: the model named something else.
    """
    if not choices:
        raise ConfigError("there is nothing to route to; give at least one name with its description")
    listed = "\n".join(f"- {name}: {description}" for name, description in choices.items())
    prompt = _prompt(f"Choose what the question is best looked up in. Write its name and nothing else.\n{listed}", question)
    grammar = Grammar.choice(list(choices)) if getattr(model, "constrains", False) else None
    reply = await model.complete(prompt, SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS, grammar=grammar))
    named = reply.text.strip().strip("\"'`.")
    if named not in choices:
        raise RequestError(f"the model chose {named[:80]!r}; the names given are {', '.join(choices)}", param="choices")
    return named


async def self_queried(
    question: str, fields: Mapping[str, type[Scalar]], model: ChatModel, *, values: Mapping[str, Sequence[Scalar]] | None = None
) -> tuple[str, dict[str, Scalar]]:
    """The question without what is a filter, and the filter: `("solar power", {"year": 2024})` of "solar power in 2024".

    Args:
        question: as it was asked.
        fields: metadata that can be filtered by, with their types.
        values: what a field can be, where that is known; anything else is refused.

    Returns:
        For `Index.search(question, where=filter)`. The filter may be empty.

    Raises:
        RequestError: the model's filter is no such filter.
    """
    properties = {
        name: {"enum": list(values[name])} if values and name in values else {"type": _TYPES[kind]} for name, kind in fields.items()
    }
    schema = {
        "type": "object",
        "properties": {
            "question": {"type": "string"},
            "filter": {"type": "object", "properties": properties, "additionalProperties": False},
        },
        "required": ["question", "filter"],
        "additionalProperties": False,
    }
    task = (
        "Some of the question says which documents to look in, by these fields: "
        f"{', '.join(fields)}. Write it as JSON: the question without that, and the filter with only the fields that the question names.\n"
        f"JSON schema: {json.dumps(schema, ensure_ascii=False)}"
    )
    content = await _json(_prompt(task, question), schema, model)
    asked, wanted = (content.get("question"), content.get("filter")) if isinstance(content, dict) else (None, None)
    if not isinstance(asked, str) or not isinstance(wanted, dict):
        raise RequestError(f"the model wrote {str(content)[:200]!r}; expected an object of question and filter", param="fields")
    for name, value in wanted.items():
        is_known = name in fields and isinstance(value, fields[name]) and isinstance(value, bool) == (fields[name] is bool)
        if not is_known or (values and name in values and value not in values[name]):
            raise RequestError(f"the model filters by {name}={value!r}; the fields are {', '.join(fields)}", param="fields")
    return asked.strip() or question, wanted


async def _questions(task: str, question: str, model: ChatModel, n: int) -> list[str]:
    if n < 1:
        raise ConfigError(f"n={n} asks for no question; give at least 1")
    schema = {"type": "array", "items": {"type": "string", "minLength": 1}, "maxItems": n}
    content = await _json(_prompt(f"{task} Write a JSON list of strings and nothing else.", question), schema, model)
    if not isinstance(content, list) or not all(isinstance(item, str) for item in content):
        raise RequestError(f"the model wrote {str(content)[:200]!r}; expected a list of questions", param="question")
    return [item.strip() for item in content if item.strip()][:n]


async def _json(prompt: Prompt, schema: Mapping[str, Any], model: ChatModel) -> Any:
    """What the model wrote as JSON. One that takes grammars can write nothing else; of another, what is between its outer brackets."""
    grammar = Grammar.json_schema(schema) if getattr(model, "constrains", False) else None
    reply = await model.complete(prompt, SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS, grammar=grammar))
    opening, closing = ("[", "]") if schema["type"] == "array" else ("{", "}")
    text = reply.text[reply.text.find(opening) : reply.text.rfind(closing) + 1]
    try:
        return json.loads(text)
    except ValueError as error:
        raise RequestError(f"the model wrote no JSON ({error}): {reply.text[:200]!r}", param="question") from error


def _prompt(task: str, question: str) -> Prompt:
    return Prompt((Part(task, "system", "system"), Part(f"Question: {question.strip()}", kind="question")))
