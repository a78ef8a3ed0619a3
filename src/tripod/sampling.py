"""How the next token is chosen, as one checked value."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from tripod.errors import RequestError


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
    logprobs: int | None = None  # number of alternatives to report with each token; 0: the token itself only
    prompt_logprobs: int | None = None  # the same for the prompt

    def __post_init__(self) -> None:
        self._check_types()
        for name, low, high in _RANGES:
            value = getattr(self, name)
            if value is not None and not (low <= value <= high and math.isfinite(value)):
                bounds = f"between {low} and {high}" if high != math.inf else f"at least {low}"
                raise RequestError(f"{name}={value!r} is out of range; give a number {bounds}", param=name)
        if self.top_p <= 0.0:
            raise RequestError(f"top_p={self.top_p!r} keeps no token; give a number above 0, up to 1", param="top_p")
        if self.repetition_penalty <= 0.0:
            raise RequestError(
                f"repetition_penalty={self.repetition_penalty!r} is out of range; give a number above 0 (1 is off)",
                param="repetition_penalty",
            )
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
