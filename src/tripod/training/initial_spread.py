"""By what rule were the weights of step 0 drawn? Known rules against measured standard deviations."""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

_OUTPUT_SIDE = ("attention.dense.weight", "mlp.dense_4h_to_h.weight", "self_attn.o_proj.weight", ".down_proj.weight", ".w2.weight")
_STANDARD_ERRORS = 6.0
_ROUNDING = 0.004  # bfloat16 keeps 8 bits, and a spread moves by less than half of the last


class InitialSpread(StrEnum):
    """Standard deviations of the matrices at step 0. D hidden size, L layers."""

    SMALL_WANG = "small-wang"  # sqrt(2 / (5 D)); into the residual stream 2 / (L sqrt(D)): Pythia up to 2.8b
    SMALL = "small"  # sqrt(2 / (5 D)) for all: `random_language_model`
    NORMAL_SCALED = "normal-scaled"  # 0.02; into the residual stream 0.02 / sqrt(2 L): Pythia 6.9b and 12b

    def of(self, name: str, hidden_size: int, num_layers: int) -> float:
        """Of a matrix, by its name in the Hugging Face layout."""
        is_output_side = name.endswith(_OUTPUT_SIDE)
        if self is InitialSpread.NORMAL_SCALED:
            return 0.02 / math.sqrt(2.0 * num_layers) if is_output_side else 0.02
        if self is InitialSpread.SMALL_WANG and is_output_side:
            return 2.0 / (num_layers * math.sqrt(hidden_size))
        return math.sqrt(0.4 / hidden_size)


def misfits(
    spreads: Mapping[str, tuple[float, float, int]], config: Mapping[str, Any], declared: InitialSpread | None
) -> list[tuple[list[str], str]]:
    """Tensors of step 0 that are not drawn by the rule, with what is wrong with them.

    Args:
        spreads: of each tensor: mean, standard deviation, how many numbers.
        config: the content of config.json, which gives D and L; without them nothing can be said.
        declared: the rule. None: the known rule that most tensors follow.
    """
    hidden_size, num_layers = config.get("hidden_size"), config.get("num_hidden_layers")
    if not isinstance(hidden_size, int) or not isinstance(num_layers, int):
        return []
    matrices = {name: (std, count) for name, (_, std, count) in spreads.items() if name.endswith("weight") and "norm" not in name}
    wrong = {
        rule: [name for name, (std, count) in matrices.items() if not _fits(std, rule.of(name, hidden_size, num_layers), count)]
        for rule in InitialSpread
    }
    rule = declared or min(wrong, key=lambda one: len(wrong[one]))
    found = []
    if wrong[rule]:
        worst = max(wrong[rule], key=lambda name: abs(math.log(max(matrices[name][0], 1e-300) / rule.of(name, hidden_size, num_layers))))
        others = [other for other in InitialSpread if not wrong[other]]
        detail = f"not drawn by {rule}, which is {'declared' if declared else 'the nearest rule'}: {worst} has standard deviation "
        detail += f"{matrices[worst][0]:.5f}, expected {rule.of(worst, hidden_size, num_layers):.5f}"
        found.append((wrong[rule], detail + (f"; all of it fits {others[0]}" if others else "")))
    constant = [
        name
        for name, (mean, std, _) in spreads.items()
        if name not in matrices
        and (name.endswith("bias") or "norm" in name)
        and (std > 0 or mean != (0.0 if name.endswith("bias") else 1.0))
    ]
    if constant:
        found.append((constant, "biases should begin as zeros and norms as ones"))
    return found


def _fits(std: float, expected: float, count: int) -> bool:
    """Within the error of a standard deviation estimated from so many normal numbers."""
    return abs(std - expected) <= expected * (_STANDARD_ERRORS / math.sqrt(2 * count) + _ROUNDING)
