"""Whether an engine's tokens are right: transformers in float32 reads them and says how far each is from its own choice.

Greedy tokens of two engines may part at a near tie and then differ for good, so texts are not compared. Instead every token is
judged where it stands: its logit must be within a tolerance of the largest one, given the tokens that the engine itself wrote before.

    python -m benchmarks.serving.judge --shape mixtral-0.5b       # how far transformers' own choices in bfloat16 are, for the tolerances
"""

# N positions, V vocabulary

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

TOLERANCE = {  # in standard deviations of the logits of a position; twice the error of one logit may lie between two
    "float32": 1e-3,
    "bfloat16": 0.1,  # logits of bfloat16 models are off by up to 0.5 % of the largest, about 4.5 deviations
    "int8": 0.4,  # and of int8 ones by up to 3 %
    "int4": 3.0,  # and of int4 ones by up to a fifth: it is seen that nothing is broken, not what quality is left
}
# Times as wide for a sparse model: a near tie of a router may fall otherwise, and send a token to another expert. There transformers in
# bfloat16 is off by up to 0.72, in a dense model by 0.05 (docs/experiments.md).
OF_SPARSE = {"float32": 1, "bfloat16": 8, "int8": 4, "int4": 1}
LEAST_EQUAL = 0.8  # of many tokens of a sparse model in bfloat16: transformers' own are equal in 0.9
MANY = 100


@dataclass(frozen=True, slots=True)
class Verdict:
    """Of all judged tokens: how many there were, the share that is the judge's own choice, the widest gap in deviations."""

    num_tokens: int
    share_equal: float
    widest_gap: float
    is_sparse: bool = False  # the model

    def is_right(self, weight_format: str) -> bool:
        factor = OF_SPARSE[weight_format] if self.is_sparse else 1
        if self.is_sparse and weight_format == "bfloat16" and self.num_tokens >= MANY and self.share_equal < LEAST_EQUAL:
            return False
        return self.widest_gap <= factor * TOLERANCE[weight_format]


def gaps_of(logits: Tensor, token_ids: Tensor) -> Tensor:
    """How far below the largest logit of its position each token is, in standard deviations of that position: [N, V], [N] -> [N]."""
    return (logits.amax(1) - logits.gather(1, token_ids[:, None])[:, 0]) / logits.std(1)


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
            gap = gaps_of(logits, torch.tensor(answer))
            num_equal += int((gap == 0).sum())
            gaps += gap.tolist()
        return Verdict(len(gaps), num_equal / len(gaps), max(gaps), hasattr(self._model.config, "num_experts_per_tok"))


def main() -> None:
    """Every position of the prompts of W2, which are random: what transformers in bfloat16 would write next, judged in float32."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--shape", required=True)
    parser.add_argument("--prompts", type=int, default=32)
    arguments = parser.parse_args()
    import torch
    from transformers import AutoModelForCausalLM

    from benchmarks.serving.shapes import model_folder
    from benchmarks.serving.workloads import w2

    folder = model_folder(arguments.shape)
    exact, rounded = (AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval() for dtype in (torch.float32, torch.bfloat16))
    found = []
    with torch.inference_mode():
        for prompt in w2(2).prompts[: arguments.prompts]:
            token_ids = torch.tensor([prompt])
            found.append(gaps_of(exact(token_ids).logits[0], rounded(token_ids).logits[0].argmax(1)))
    gaps = torch.cat(found)
    share = float((gaps == 0).float().mean())
    quantiles = ", ".join(f"{q:.1%} within {float(gaps.quantile(q)):.3f}" for q in (0.99, 0.999, 1.0))
    print(f"{arguments.shape}: {len(gaps)} positions, {share:.1%} equal, {quantiles}")


if __name__ == "__main__":
    main()
