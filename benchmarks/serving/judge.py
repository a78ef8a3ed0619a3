"""Whether an engine's tokens are right: transformers in float32 reads them and says how far each is from its own choice.

Greedy tokens of two engines may part at a near tie and then differ for good, so texts are not compared. Instead every token is
judged where it stands: its logit must be within a tolerance of the largest one, given the tokens that the engine itself wrote before.
"""

# V vocabulary

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

TOLERANCE = {  # in standard deviations of the logits of a position; twice the error of one logit may lie between two
    "float32": 1e-3,
    "bfloat16": 0.1,  # logits of bfloat16 models are off by up to 0.5 % of the largest, about 4.5 deviations
    "int8": 0.4,  # and of int8 ones by up to 3 %
    "int4": 3.0,  # and of int4 ones by up to a fifth: it is seen that nothing is broken, not what quality is left
}
OF_SPARSE = 4  # times as wide where weights are rounded: a near tie of a router may fall otherwise, and send a token to another expert


@dataclass(frozen=True, slots=True)
class Verdict:
    """Of all judged tokens: how many there were, the share that is the judge's own choice, the widest gap in deviations."""

    num_tokens: int
    share_equal: float
    widest_gap: float
    is_sparse: bool = False  # the model

    def is_right(self, weight_format: str) -> bool:
        factor = OF_SPARSE if self.is_sparse and weight_format != "float32" else 1
        return self.widest_gap <= factor * TOLERANCE[weight_format]


class Judge:
    def __init__(self, folder: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self._torch = torch
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def judge(self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> Verdict:
        """Reads prompts with their answers, one after the other."""
        torch = self._torch
        num_equal, gaps = 0, []
        for prompt, answer in zip(prompts, answers, strict=True):
            with torch.inference_mode():
                logits = self._model(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]  # [len(answer), V]
            own = logits.gather(1, torch.tensor(answer)[:, None])[:, 0]
            gap = (logits.amax(1) - own) / logits.std(1)
            num_equal += int((gap == 0).sum())
            gaps += gap.tolist()
        return Verdict(len(gaps), num_equal / len(gaps), max(gaps), hasattr(self._model.config, "num_experts_per_tok"))
