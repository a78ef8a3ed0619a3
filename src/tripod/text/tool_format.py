"""How families of models write tool calls and reasoning, as a table: the parser, the grammar and the prompt all read it from here.

An answer is reasoning, then text, then calls. Calls are literal texts around a name and a JSON object:

    begin  open NAME middle ARGUMENTS close  separator  open NAME middle ARGUMENTS close  ...  end
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from tripod.errors import ConfigError
from tripod.messages import ToolCall, ToolSpec
from tripod.sampling import Grammar

if TYPE_CHECKING:
    from tripod.text.chat_template import ChatTemplate
    from tripod.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolFormat:
    """One way to write calls. Blanks in the literals are what a model writes; whoever reads forgives others."""

    name: str
    trigger: str  # how calls begin: what free text cannot hold
    begin: str = ""
    open: str
    middle: str
    close: str
    separator: str = ""
    end: str = ""
    is_opening: bool = False  # the trigger means calls only where the answer begins with it

    def write(self, calls: Sequence[ToolCall]) -> str:
        """The calls as the model would have written them."""
        written = (f"{self.open}{call.name}{self.middle}{call.arguments}{self.close}" for call in calls)
        return self.begin + self.separator.join(written) + self.end


_HERMES = ToolFormat(
    name="hermes",  # and Qwen 2.5, Qwen 3, and what models without a format of their own are asked for
    trigger="<tool_call>",
    open='<tool_call>\n{"name": "',
    middle='", "arguments": ',
    close="}\n</tool_call>",
    separator="\n",
)
_MISTRAL = ToolFormat(
    name="mistral",
    trigger="[TOOL_CALLS]",
    begin="[TOOL_CALLS] [",
    open='{"name": "',
    middle='", "arguments": ',
    close="}",
    separator=", ",
    end="]",
)
_MISTRAL_ARGS = ToolFormat(name="mistral-args", trigger="[TOOL_CALLS]", open="[TOOL_CALLS]", middle="[ARGS]", close="")  # tokenizers v11
_LLAMA = ToolFormat(
    name="llama", trigger="{", open='{"name": "', middle='", "parameters": ', close="}", separator="; ", is_opening=True
)  # Llama 3

TOOL_FORMATS: Mapping[str, ToolFormat] = {form.name: form for form in (_HERMES, _MISTRAL, _MISTRAL_ARGS, _LLAMA)}
THINK = ("<think>", "</think>")  # DeepSeek R1, Qwen 3 and most that followed


def tool_format(name: str | None, template: ChatTemplate | None) -> tuple[ToolFormat, bool]:
    """The format by its name, or the one that the chat template shows; and whether the template itself tells the model of tools.

    Raises:
        ConfigError: there is no such format.
    """
    source = "" if template is None else template.tool_use or template.source
    found = next((form for form in (_MISTRAL_ARGS, _MISTRAL, _HERMES, _LLAMA) if _shows(source, form)), None)
    if name is not None and name not in TOOL_FORMATS:
        raise ConfigError(f"tool_format={name!r} is unknown; give one of {', '.join(TOOL_FORMATS)}, or None for what the template shows")
    chosen = TOOL_FORMATS[name] if name is not None else found or _HERMES
    return chosen, chosen is found


def _shows(source: str, form: ToolFormat) -> bool:
    """Whether a template that knows of tools writes calls in this form."""
    if "tools" not in source:
        return False
    match form.name:
        case "hermes":
            return "<tool_call>" in source and "<function=" not in source  # Qwen 3 Coder writes XML inside
        case "llama":
            return '"parameters": ' in source and "ipython" in source
        case "mistral-args":
            return "[TOOL_CALLS]" in source and "[ARGS]" in source
        case _:
            return "[TOOL_CALLS]" in source


def reasons(template: ChatTemplate | None) -> bool:
    """Whether a model of this template may think before it answers."""
    return template is not None and THINK[1] in template.source


_MARKS = frozenset({*(form.trigger for form in TOOL_FORMATS.values()), "[ARGS]", *THINK})


def special_marks(tokenizer: Tokenizer) -> dict[str, int]:
    """The marks that the tokenizer has as special tokens: models write them as these, and no text can hold them."""
    return {text: i for i in tokenizer.special_ids if (text := tokenizer.token_text(i)) in _MARKS}


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRules:
    """What an answer with tools may hold. As a `Grammar`, the engine keeps to it."""

    format: ToolFormat
    tools: Mapping[str, Any]  # name -> JSON schema of the arguments
    is_free: bool = True  # text may stand before the calls, or instead of them; else there must be a call
    is_single: bool = False  # at most one call
    reasons: bool = False  # may begin with reasoning
    is_reasoning: bool = False  # begins inside it, because the prompt has opened it
    text: Any = None  # JSON schema of the text that may stand instead of calls; None: any text

    def grammar(self) -> Grammar:
        """
        Raises:
            RequestError: the schemas are no JSON, or too long.
        """
        return Grammar.tool_calls(asdict(self))

    @staticmethod
    def of(grammar: Grammar) -> CallRules:
        rules = json.loads(grammar.source)
        return CallRules(**{**rules, "format": ToolFormat(**rules["format"])})


def arguments_schema(tool: ToolSpec) -> Any:
    """The schema that arguments are held to: an object, with no property beside those that the tool names, unless it allows others."""
    return _closed({"type": "object", "properties": {}, **tool.parameters})


_OPENS = frozenset({"additionalProperties", "patternProperties", "allOf", "anyOf", "oneOf", "not", "if", "$ref", "dependentSchemas"})


def _closed(schema: Any) -> Any:
    """Fewer values are allowed than by the schema, none more: a small model would make up properties without end."""
    if not isinstance(schema, Mapping):
        return schema
    closed = dict(schema)
    if isinstance(properties := schema.get("properties"), Mapping):
        closed["properties"] = {name: _closed(value) for name, value in properties.items()}
        if not _OPENS & schema.keys():
            closed["additionalProperties"] = False
    if isinstance(schema.get("items"), Mapping):
        closed["items"] = _closed(schema["items"])
    return closed
