"""Dynamic loss scaling for float16 (Micikevicius et al. 2018, arXiv:1710.03740), by the rules of DeepSpeed and Megatron."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class LossScaling:
    """The rules; Pythia's numbers are the defaults."""

    initial: float = 4096.0
    window: int = 1000  # steps without overflow after which the scale is doubled
    hysteresis: int = 2  # overflows that it takes to halve the scale
    minimum: float = 1.0

    def begin(self) -> LossScale:
        return LossScale(scale=self.initial, overflows_left=self.hysteresis, good_steps=0)

    def after(self, state: LossScale, *, has_overflow: bool) -> LossScale:
        """The state for the next step."""
        if has_overflow:
            if state.overflows_left > 1:
                return replace(state, overflows_left=state.overflows_left - 1, good_steps=0)
            return replace(state, scale=max(self.minimum, state.scale / 2), good_steps=0)
        if state.good_steps + 1 < self.window:
            return replace(state, good_steps=state.good_steps + 1)
        return LossScale(scale=state.scale * 2, overflows_left=self.hysteresis, good_steps=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class LossScale:
    """By how much the loss is multiplied before gradients are taken."""

    scale: float
    overflows_left: int  # overflows until it is halved; restored when it is doubled, as upstream does
    good_steps: int  # since the last overflow or doubling
