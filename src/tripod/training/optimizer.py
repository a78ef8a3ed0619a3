"""Optimizers over a model, with their state by the names of the tensors that it belongs to. AdamW; see also `adafactor`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from tripod.errors import CheckpointError
from tripod.training.parallel import ALONE, Processes, copy_whole_, is_shared, local
from tripod.training.recipe import OptimizerRecipe


@dataclass(frozen=True, slots=True)
class ParameterGroup:
    """Parameters by name that are updated alike."""

    names: tuple[str, ...]
    weight_decay: float
    lr_factor: float = 1.0


def parameter_groups(parameters: Mapping[str, Tensor], weight_decay: float, *, mup_ratio: float = 1.0) -> tuple[ParameterGroup, ...]:
    """Matrices, embeddings included, decay; norms and biases, which are vectors, do not.

    With muP (Yang et al. 2022, arXiv:2203.03466, table 3) the rate of all matrices but the embedding is divided by how many times wider
    the model is; what a step decays stays the same.
    """
    matrices = [name for name, parameter in parameters.items() if parameter.ndim >= 2]
    vectors = ParameterGroup(tuple(name for name, parameter in parameters.items() if parameter.ndim < 2), 0.0)
    if mup_ratio == 1.0:
        return ParameterGroup(tuple(matrices), weight_decay), vectors
    inputs = tuple(name for name in matrices if name.startswith("embedding."))
    hidden = tuple(name for name in matrices if not name.startswith("embedding."))
    return ParameterGroup(inputs, weight_decay), ParameterGroup(hidden, weight_decay * mup_ratio, 1.0 / mup_ratio), vectors


class Optimizer:
    """What changes the weights of a model by their gradients. Its state is float32, and laid out over the processes as the weights are."""

    def __init__(self, model: nn.Module, recipe: OptimizerRecipe, processes: Processes = ALONE) -> None:
        self._processes = processes
        self._parameters = dict(model.named_parameters())
        self._recipe = recipe
        self._state: dict[str, Tensor] = {}  # KIND.NAME; whole from the beginning, so that a checkpoint of step 0 is like any other

    def update(self, lr: float) -> None:
        """Change the weights by their gradients, and forget those."""
        raise NotImplementedError

    def clip_gradients(self, *, loss_scale: float = 1.0) -> float:
        """Take the loss scale out of the gradients and shorten them to the global L2 norm `clip`.

        Returns:
            Their norm before it was shortened; infinite or not a number where one of them is.
        """
        gradients = [parameter.grad for parameter in self._parameters.values() if parameter.grad is not None]
        if loss_scale != 1.0:
            torch._foreach_mul_([local(gradient) for gradient in gradients], 1.0 / loss_scale)
        norm = self._norm(gradients)
        if self._recipe.clip and math.isfinite(norm) and norm > self._recipe.clip:
            torch._foreach_mul_([local(gradient) for gradient in gradients], self._recipe.clip / norm)
        return norm

    def _norm(self, gradients: list[Tensor]) -> float:
        """The L2 norm of all of them, over all processes."""
        processes = self._processes
        squares = torch.stack(torch._foreach_norm([local(gradient) for gradient in gradients])).double().square()
        if processes.is_sharded:
            squares = processes.sum_over_data(squares)
        elif processes.shares_experts:
            apart = torch.tensor([is_shared(gradient, processes.mesh, "data") for gradient in gradients], device=squares.device)
            squares = torch.where(apart, processes.sum_over_data(squares.clone()), squares)
        shared = torch.tensor([is_shared(gradient, processes.mesh, "tensor") for gradient in gradients], device=squares.device)
        total = squares[~shared].sum()
        if processes.recipe.tensor > 1:
            total += processes.sum_over_tensor(squares[shared].sum())
        return total.sqrt().item()

    def forget_gradients(self) -> None:
        if self._processes.shares_experts:  # those to which no token comes in the next step have a gradient of zeros, too
            torch._foreach_zero_([local(parameter.grad) for parameter in self._parameters.values() if parameter.grad is not None])
            return
        for parameter in self._parameters.values():
            parameter.grad = None

    def tensors(self) -> dict[str, Tensor]:
        """The state, as `KIND.NAME` for the parameter NAME."""
        return dict(self._state)

    def load(self, tensors: dict[str, Tensor], num_updates: int) -> None:
        """Set the state to that after `num_updates` updates.

        Raises:
            CheckpointError: the tensors are not those of this model.
        """
        own = self._state
        wrong = sorted(own.keys() ^ tensors.keys()) + [
            name for name in own.keys() & tensors.keys() if own[name].shape != tensors[name].shape
        ]
        if wrong:
            raise CheckpointError(
                f"the optimizer state is of another model; missing, unexpected or of another shape: {', '.join(wrong[:8])}"
            )
        for name, tensor in own.items():
            copy_whole_(tensor, tensors[name])
        self._set_num_updates(num_updates)

    def _set_num_updates(self, num_updates: int) -> None:
        raise NotImplementedError


class AdamW(Optimizer):
    """Decoupled weight decay (Loshchilov & Hutter 2019, arXiv:1711.05101), bias correction on, everything in float32.

    Its state: `exp_avg.NAME` and `exp_avg_sq.NAME`, in the shape of the parameter.
    """

    def __init__(self, model: nn.Module, recipe: OptimizerRecipe, processes: Processes = ALONE, *, mup_ratio: float = 1.0) -> None:
        super().__init__(model, recipe, processes)
        self._groups = parameter_groups(self._parameters, recipe.weight_decay, mup_ratio=mup_ratio)
        self._state = {
            f"{moment}.{name}": torch.zeros_like(parameter, requires_grad=False)
            for name, parameter in self._parameters.items()
            for moment in ("exp_avg", "exp_avg_sq")
        }
        self._num_updates = {  # one for each, as torch asks; the fused update advances them
            name: torch.zeros((), dtype=torch.float32, device=local(parameter).device) for name, parameter in self._parameters.items()
        }

    def update(self, lr: float) -> None:
        for group in self._groups:
            with torch.no_grad():
                adamw(
                    [local(self._parameters[name]) for name in group.names],
                    [local(gradient_of(self._parameters[name])) for name in group.names],
                    [local(self._state[f"exp_avg.{name}"]) for name in group.names],
                    [local(self._state[f"exp_avg_sq.{name}"]) for name in group.names],
                    [],
                    [self._num_updates[name] for name in group.names],
                    fused=True,
                    amsgrad=False,
                    beta1=self._recipe.beta1,
                    beta2=self._recipe.beta2,
                    lr=lr * group.lr_factor,
                    weight_decay=group.weight_decay,
                    eps=self._recipe.eps,
                    maximize=False,
                )
        self.forget_gradients()

    def _set_num_updates(self, num_updates: int) -> None:
        for count in self._num_updates.values():
            count.fill_(num_updates)


def gradient_of(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None, "every parameter of a language model has a gradient after a backward pass"
    return parameter.grad
