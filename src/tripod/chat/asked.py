"""A prompt with its tools as an engine is asked: token ids, a grammar for the calls, and how to read the answer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tripod.chat.answer_parser import AnswerParser, parsed
from tripod.chat.render import PLAIN, encoded, render
from tripod.errors import RequestError
from tripod.prompts import Prompt
from tripod.sampling import Grammar, SamplingParams
from tripod.text.tool_format import THINK, CallRules, ToolFormat, arguments_schema, reasons, tool_format
from tripod.trace import Event

if TYPE_CHECKING:
    from tripod.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is asked, and what may come."""

    ids: list[int]
    sampling: SamplingParams
    form: ToolFormat | None  # of calls; None where there can be none
    reasons: bool
    is_reasoning: bool

    def read(self, events: AsyncIterator[Event]) -> AsyncIterator[Event]:
        """The engine's events, with reasoning and calls out of their text."""
        if self.form is None and not self.reasons:
            return events
        return parsed(events, AnswerParser(self.form, reasons=self.reasons, is_reasoning=self.is_reasoning))


def ask_engine(
    prompt: Prompt,
    sampling: SamplingParams,
    tokenizer: Tokenizer,
    *,
    chat_template: str | None = None,
    tool_format_name: str | None = None,
    is_single: bool = False,
) -> Asked:
    """Writes the prompt by the model's template. With tools, the answer is held to valid calls: `auto` leaves the text before them free.

    Args:
        chat_template: "plain", or None for the template beside the model.
        tool_format_name: how calls are written; None for what the template shows.
        is_single: at most one call.

    Raises:
        ConfigError: the model has no chat template, and none was chosen.
        RequestError: the template refuses the conversation, or the tools and the text's own grammar do not go together.
    """
    template = None if chat_template == PLAIN else tokenizer.chat_template
    form, is_shown = tool_format(tool_format_name, template)
    tools = tuple(tool for tool in prompt.tools if prompt.tool_choice in ("auto", "required", tool.name))
    told = prompt.tools if prompt.tool_choice != "none" else ()
    text = render(prompt.messages, tokenizer, chat_template, tools=told, form=None if is_shown else form)
    thinks = reasons(template) and (bool(tools) or sampling.grammar is None)  # what a grammar holds to a form has no room for thoughts
    is_reasoning = thinks and text.rstrip().endswith(THINK[0])
    if tools:
        rules = CallRules(
            format=form,
            tools={tool.name: arguments_schema(tool) for tool in tools},
            is_free=prompt.tool_choice == "auto",
            is_single=is_single or prompt.tool_choice not in ("auto", "required"),
            reasons=thinks,
            is_reasoning=is_reasoning,
            text=_text_schema(sampling.grammar) if prompt.tool_choice == "auto" else None,
        )
        sampling = replace(sampling, grammar=rules.grammar())
    return Asked(
        ids=encoded(text, tokenizer, chat_template),
        sampling=sampling,
        form=form if tools else None,
        reasons=thinks,
        is_reasoning=is_reasoning,
    )


def _text_schema(grammar: Grammar | None) -> Any:
    """What the text must be that may stand instead of calls."""
    match grammar.kind if grammar is not None else None:
        case None:
            return None
        case "json_object":
            return {"type": "object"}
        case "json_schema":
            assert grammar is not None
            return grammar.schema
        case kind:
            raise RequestError(f"a {kind} does not go together with tools; give a JSON schema, or leave one of them out", param="grammar")
