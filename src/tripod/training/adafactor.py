"""Adafactor: the mean of squared gradients kept as a row and a column of each matrix instead of the whole (Shazeer & Stern 2018)."""

# "..." experts, where there are several matrices in one tensor

from __future__ import annotations

import torch
from torch import Tensor, nn

from tripod.training.optimizer import AdamW, Optimizer, gradient_of, parameter_groups
from tripod.training.parallel import ALONE, Processes, is_shared, local
from tripod.training.recipe import OptimizerRecipe

_EPS_SQUARE = 1e-30  # added to squared gradients
_EPS_SIZE = 1e-3  # a tensor is taken for at least this large, so that one that begins as zeros can move
_MAX_UPDATE = 1.0  # root mean square of an update before the rate


class Adafactor(Optimizer):
    """Without momentum; rates are relative to the root mean square of a tensor (arXiv:1804.04235, algorithm 4), as T5 and OpenMoE train.

    Its state: `exp_avg_sq_row.NAME` and `exp_avg_sq_col.NAME`, the means over columns and over rows, of a parameter [..., A, B] that has
    both; `exp_avg_sq.NAME` of a vector. The weights decay by rate times `weight_decay`, as transformers has it.
    """

    def __init__(self, model: nn.Module, recipe: OptimizerRecipe, processes: Processes = ALONE) -> None:
        super().__init__(model, recipe, processes)
        self._num_updates = 0
        self._decay = {
            name: group.weight_decay for group in parameter_groups(self._parameters, recipe.weight_decay) for name in group.names
        }
        for name, parameter in self._parameters.items():
            zeros = torch.zeros_like(parameter, requires_grad=False)
            if parameter.ndim >= 2:
                self._state[f"exp_avg_sq_row.{name}"] = zeros.mean(-1)
                self._state[f"exp_avg_sq_col.{name}"] = zeros.mean(-2)
            else:
                self._state[f"exp_avg_sq.{name}"] = zeros

    @torch.no_grad()
    def update(self, lr: float) -> None:
        self._num_updates += 1
        new = self._num_updates**-self._recipe.beta2_decay  # the share of this step in the means
        for name, parameter in self._parameters.items():
            weight, gradient = local(parameter), local(gradient_of(parameter))
            is_apart = is_shared(parameter, self._processes.mesh, "data")
            update = gradient * self._inverse_root(name, gradient.square() + _EPS_SQUARE, new)
            update /= (self._size(update, is_apart) / _MAX_UPDATE).clamp_min(1.0)
            rate = lr * self._size(weight, is_apart).clamp_min(_EPS_SIZE)
            if decay := self._decay[name]:
                weight -= weight * (rate * decay)
            weight -= update * rate
        self.forget_gradients()

    def _inverse_root(self, name: str, squares: Tensor, new: float) -> Tensor:
        """One over the root of the mean square of each number's gradients, this one included."""
        if squares.ndim < 2:
            return local(self._state[f"exp_avg_sq.{name}"]).lerp_(squares, new).rsqrt()
        row = local(self._state[f"exp_avg_sq_row.{name}"]).lerp_(squares.mean(-1), new)  # [..., A]
        column = local(self._state[f"exp_avg_sq_col.{name}"]).lerp_(squares.mean(-2), new)  # [..., B]
        return (row / row.mean(-1, keepdim=True)).rsqrt()[..., None] * column.rsqrt()[..., None, :]

    def _size(self, tensor: Tensor, is_apart: bool) -> Tensor:
        """The root mean square of a tensor, of which the processes may hold equal parts."""
        mean = tensor.square().mean()
        if is_apart:
            mean = self._processes.sum_over_data(mean) / self._processes.num_data
        return mean.sqrt()

    def _set_num_updates(self, num_updates: int) -> None:
        self._num_updates = num_updates


def open_optimizer(model: nn.Module, recipe: OptimizerRecipe, processes: Processes = ALONE, *, mup_ratio: float = 1.0) -> Optimizer:
    """The optimizer that a recipe names."""
    if recipe.kind == "adafactor":
        return Adafactor(model, recipe, processes)
    return AdamW(model, recipe, processes, mup_ratio=mup_ratio)
