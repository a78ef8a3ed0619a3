"""How the next token is chosen, as one checked value."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, get_args

from tripod.errors import RequestError

GrammarKind: TypeAlias = Literal["json_schema", "json_object", "regex", "ebnf", "choice", "tool_calls"]

_MAX_CHARACTERS = {
    "json_schema": 2**18,
    "json_object": 0,
    "regex": 2**16,
    "ebnf": 2**16,
    "choice": 2**20,
    "tool_calls": 2**20,
}  # compiling takes time


@dataclass(frozen=True, slots=True)
class Grammar:
    """What a text must be; the engine rules out every token that would break it, and lets the text end only where it is complete.

    Built by the functions below. Here the source is checked for its form; whether all of it can be enforced, the engine
    says before it generates anything.

    Raises:
        RequestError: the source is not what its kind asks for; `param` is "grammar".
    """

    kind: GrammarKind
    source: str = ""  # a JSON schema as text, a regular expression, an EBNF grammar, a JSON list of strings, rules for calls; or ""
    is_compact: bool = False  # JSON without blanks between its parts, on which a small model can spend most of its tokens

    @staticmethod
    def json_schema(schema: Mapping[str, Any] | bool, *, is_compact: bool = False) -> Grammar:
        """A JSON text that is valid by `schema`, with the properties of an object in the order of the schema."""
        return Grammar("json_schema", _dumped(schema), is_compact)

    @staticmethod
    def json_object(*, is_compact: bool = False) -> Grammar:
        """A JSON text that is an object."""
        return Grammar("json_object", is_compact=is_compact)

    @staticmethod
    def regex(pattern: str) -> Grammar:
        """A text that the regular expression matches as a whole (the syntax of Rust's regex crate; no look-around, no references back)."""
        return Grammar("regex", pattern)

    @staticmethod
    def ebnf(rules: str) -> Grammar:
        """A text of the context-free grammar, which is written as Lark writes it, or as llama.cpp does (GBNF)."""
        return Grammar("ebnf", rules)

    @staticmethod
    def choice(texts: Sequence[str]) -> Grammar:
        """One of these texts."""
        return Grammar("choice", _dumped(list(texts)))

    @staticmethod
    def tool_calls(rules: Mapping[str, Any]) -> Grammar:
        """Text and calls of tools, by the rules of `tripod.text.tool_format.CallRules`, which writes and reads them."""
        return Grammar("tool_calls", _dumped(rules))

    def __post_init__(self) -> None:
        if self.kind not in get_args(GrammarKind):
            raise _grammar_error(f"grammar kind {self.kind!r} is unknown; give one of {', '.join(get_args(GrammarKind))}")
        if not isinstance(self.source, str):
            raise _grammar_error(f"the source of a {self.kind} grammar is {type(self.source).__name__}, not text")
        if self.is_compact and self.kind not in ("json_schema", "json_object"):
            raise _grammar_error(f"a {self.kind} says itself where blanks may stand; is_compact is for JSON")
        if len(self.source) > _MAX_CHARACTERS[self.kind]:
            raise _grammar_error(f"the {self.kind} has {len(self.source)} characters; at most {_MAX_CHARACTERS[self.kind]} are taken")
        try:
            self.source.encode()
        except UnicodeEncodeError as error:
            raise _grammar_error(f"the {self.kind} holds half of a surrogate pair, which is no character: {error.reason}") from error
        match self.kind:
            case "json_schema":
                if not isinstance(self._parsed(), dict | bool):
                    raise _grammar_error("a JSON schema is an object, or true or false")
            case "choice":
                texts = self._parsed()
                if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text for text in texts):
                    raise _grammar_error("a choice is a list of at least one text, none of them empty")
            case "regex" | "ebnf":
                if not self.source:
                    raise _grammar_error(f"the {self.kind} is empty; say what the text must be")
            case "tool_calls":
                if not isinstance(self._parsed(), dict):
                    raise _grammar_error("the rules for tool calls are an object")
            case "json_object":
                pass

    @property
    def schema(self) -> Any:
        """The JSON schema of a json_schema: an object, or true or false."""
        return self._parsed()

    @property
    def texts(self) -> Sequence[str]:
        """What a choice chooses from."""
        texts = self._parsed()
        assert isinstance(texts, list)
        return texts

    def _parsed(self) -> object:
        try:
            return json.loads(self.source, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise _grammar_error(f"the source of a {self.kind} grammar is JSON; this is not: {error}") from error


def _dumped(value: object) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise _grammar_error(f"{str(value)[:100]} is not JSON: {error}") from error


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is no JSON")


def _grammar_error(message: str) -> RequestError:
    return RequestError(message, param="grammar")


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Sampling parameters of one request, applied to the logits in the order of the fields.

    logit_bias, then penalties, then temperature, then top-k, top-p and min-p on what is left. Log-probabilities are
    always those of the unmodified distribution.

    Raises:
        RequestError: a value is out of its range; `param` names the field.
    """

    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)  # added to the logits of these token ids
    repetition_penalty: float = 1.0  # > 1 discourages tokens of prompt and output (Keskar et al. 2019, arXiv:1909.05858)
    presence_penalty: float = 0.0  # subtracted once from every token of the output
    frequency_penalty: float = 0.0  # subtracted for each occurrence in the output
    temperature: float = 1.0  # 0 is greedy
    top_k: int = 0  # 0 keeps all
    top_p: float = 1.0  # nucleus (Holtzman et al. 2019, arXiv:1904.09751)
    min_p: float = 0.0  # relative to the most likely token (Nguyen et al. 2024, arXiv:2407.01082)
    seed: int | None = None  # None draws one, which the engine records
    max_tokens: int | None = None  # None: as many as the context holds
    min_tokens: int = 0  # end-of-sequence, stop token ids and stop strings count only after these
    stop: tuple[str, ...] = ()  # strings that end the text; not part of it
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    grammar: Grammar | None = None  # tokens that it does not allow are ruled out before anything else
    logprobs: int | None = None  # number of alternatives to report with each token; 0: the token itself only
    prompt_logprobs: int | None = None  # the same for the prompt

    def __post_init__(self) -> None:
        self._check_types()
        for name, low, high in _RANGES:
            value = getattr(self, name)
            if value is not None and not (low <= value <= high and value < math.inf):  # a comparison takes any int, math.isfinite does not
                bounds = f"between {low} and {high}" if high != math.inf else f"at least {low}"
                raise RequestError(f"{name}={value!r} is out of range; give a number {bounds}", param=name)
        if self.top_p <= 0.0:
            raise RequestError(f"top_p={self.top_p!r} keeps no token; give a number above 0, up to 1", param="top_p")
        if self.repetition_penalty <= 0.0:
            raise RequestError(
                f"repetition_penalty={self.repetition_penalty!r} is out of range; give a number above 0 (1 is off)",
                param="repetition_penalty",
            )
        if self.grammar is not None and self.ignore_eos:
            raise RequestError("ignore_eos=True contradicts a grammar, which says where the text ends; leave one out", param="ignore_eos")
        if "" in self.stop:
            raise RequestError("stop contains an empty string, which would end every text at once; leave it out", param="stop")
        for token_id, bias in self.logit_bias.items():
            if not -100.0 <= bias <= 100.0:
                raise RequestError(
                    f"logit_bias[{token_id}]={bias!r} is out of range; give a number between -100 and 100", param="logit_bias"
                )

    def _check_types(self) -> None:
        """A wrong type is refused here, where it was given, and not in the midst of a step that others share."""
        for name in _WHOLE_NUMBERS:
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
                raise RequestError(f"{name}={value!r} is not a whole number", param=name)
        for name in _NUMBERS:
            value = getattr(self, name)
            if not isinstance(value, int | float) or isinstance(value, bool):
                raise RequestError(f"{name}={value!r} is not a number", param=name)
        if not isinstance(self.stop, tuple) or not all(isinstance(text, str) for text in self.stop):
            raise RequestError(f"stop={self.stop!r} is not a tuple of strings; give for example stop=('END',)", param="stop")
        if self.grammar is not None and not isinstance(self.grammar, Grammar):
            raise RequestError(f"grammar={self.grammar!r} is not a Grammar; build one, such as Grammar.regex('[a-z]+')", param="grammar")
        if not isinstance(self.stop_token_ids, tuple) or not all(isinstance(token_id, int) for token_id in self.stop_token_ids):
            raise RequestError(f"stop_token_ids={self.stop_token_ids!r} is not a tuple of token ids", param="stop_token_ids")
        if not all(isinstance(token_id, int) and isinstance(bias, int | float) for token_id, bias in self.logit_bias.items()):
            raise RequestError(f"logit_bias={self.logit_bias!r} does not map token ids to numbers", param="logit_bias")

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0.0


_WHOLE_NUMBERS = ("top_k", "seed", "max_tokens", "min_tokens", "logprobs", "prompt_logprobs")
_NUMBERS = ("repetition_penalty", "presence_penalty", "frequency_penalty", "temperature", "top_p", "min_p")
_RANGES: tuple[tuple[str, float, float], ...] = (
    ("repetition_penalty", 0.0, math.inf),
    ("presence_penalty", -2.0, 2.0),
    ("frequency_penalty", -2.0, 2.0),
    ("temperature", 0.0, math.inf),
    ("top_k", 0, math.inf),
    ("top_p", 0.0, 1.0),
    ("min_p", 0.0, 1.0),
    ("max_tokens", 0, math.inf),
    ("min_tokens", 0, math.inf),
    ("logprobs", 0, math.inf),
    ("prompt_logprobs", 0, math.inf),
)

GREEDY = SamplingParams(temperature=0.0)
