"""The rules for an answer with tools as a grammar of llguidance: free text until a trigger, then calls, their arguments by schema."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from tripod.text.tokenizer import Tokenizer
from tripod.text.tool_format import THINK, CallRules, special_marks

_ANY = r"/(.|\n)*/"
_BLANK = r"[ \t\r\n]*"


def lark(rules: CallRules, schemas: Mapping[str, Any], text: Any, tokenizer: Tokenizer) -> str:
    """
    Args:
        rules: what may be called, and when.
        schemas: by tool, ready for llguidance.
        text: the same for the text that may stand instead of calls; None where any may.
        tokenizer: marks that it has as special tokens are written as these.
    """
    form = rules.format
    marks = special_marks(tokenizer)

    def literal(words: str) -> str:
        pieces = re.split(f"({'|'.join(map(re.escape, marks))})", words) if marks else [words]
        return " ".join(f"<[{marks[piece]}]>" if piece in marks else json.dumps(piece) for piece in pieces if piece)

    def until(mark: str, name: str) -> str:
        """A rule for any text, which ends where the mark stands for the first time."""
        return f"{name}: FREE {literal(mark)}" if mark in marks else f"{name}[lazy]: FREE {literal(mark)}"

    calls = [f"{literal(name + form.middle)} %json {json.dumps(schema)} {literal(form.close)}" for name, schema in schemas.items()]
    lines = [
        "%llguidance {}",
        "call: " + "\n    | ".join(calls),
        f"calls: {literal((form.begin + form.open).removeprefix(form.trigger))} call"
        + ("" if rules.is_single else f" ({literal(form.separator + form.open)} call)*")
        + f" {literal(form.end)}",
        f"thinking: {literal(THINK[0])} thought",
        f"thought{'' if THINK[1] in marks else '[lazy]'}: ANY {literal(THINK[1])}",
        f"ANY: {_ANY}",
    ]
    excluded = []
    if rules.reasons and THINK[0] not in marks:
        excluded.append(f"{_BLANK}{re.escape(THINK[0])}(.|\\n)*")
    if form.is_opening:
        excluded.append(f"{_BLANK}{re.escape(form.trigger)}(.|\\n)*")
    lines.append(f"FREE: {_ANY}" + "".join(f" & ~/{regex}/" for regex in excluded))
    answer = f"{literal(form.trigger)} calls"
    if rules.is_free and text is not None:
        answer = f"%json {json.dumps(text)} | {answer}"
    elif rules.is_free and form.is_opening:
        answer = f"FREE | {answer}"
    elif rules.is_free:
        lines.append(until(form.trigger, "opening"))
        answer = "FREE | opening calls"
    lines.append(f"answer: {answer}")
    blank = r'("\n" | "\n\n")?'
    if rules.is_reasoning:
        lines.append(f"start: thought {blank} answer")
    elif rules.reasons:
        lines.append(f"start: answer | thinking {blank} answer")
    else:
        lines.append("start: answer")
    return "\n".join(lines) + "\n"
