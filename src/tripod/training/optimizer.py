"""AdamW over a model, with its state by the names of the tensors that it belongs to."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tripod.errors import CheckpointError
from tripod.training.recipe import OptimizerRecipe

_MOMENTS = ("exp_avg", "exp_avg_sq")


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Matrices, embeddings included, decay; norms and biases, which are vectors, do not."""
    parameters = list(model.parameters())
    return [
        {"params": [parameter for parameter in parameters if parameter.ndim >= 2], "weight_decay": weight_decay},
        {"params": [parameter for parameter in parameters if parameter.ndim < 2], "weight_decay": 0.0},
    ]


class AdamW:
    """Decoupled weight decay (Loshchilov & Hutter 2019, arXiv:1711.05101), bias correction on, everything in float32."""

    def __init__(self, model: nn.Module, recipe: OptimizerRecipe) -> None:
        self._parameters = dict(model.named_parameters())
        self._clip = recipe.clip
        self._inner = torch.optim.AdamW(
            parameter_groups(model, recipe.weight_decay), lr=0.0, betas=(recipe.beta1, recipe.beta2), eps=recipe.eps, fused=True
        )
        for parameter in self._parameters.values():  # from the beginning, so that a checkpoint of step 0 is like any other
            self._inner.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                **{moment: torch.zeros_like(parameter, requires_grad=False) for moment in _MOMENTS},
            }

    def clip_gradients(self, *, loss_scale: float = 1.0) -> float:
        """Take the loss scale out of the gradients and shorten them to the global L2 norm `clip`.

        Returns:
            Their norm before it was shortened; infinite or not a number where one of them is.
        """
        gradients = [parameter.grad for parameter in self._parameters.values() if parameter.grad is not None]
        if loss_scale != 1.0:
            for gradient in gradients:
                gradient.mul_(1.0 / loss_scale)
        return nn.utils.clip_grad_norm_(self._parameters.values(), self._clip or float("inf")).item()

    def update(self, lr: float) -> None:
        """Change the weights by their gradients, and forget those."""
        for group in self._inner.param_groups:
            group["lr"] = lr
        self._inner.step()
        self.forget_gradients()

    def forget_gradients(self) -> None:
        # Zeroed in place: memory that is given back and asked for again costs more than the zeros.
        torch._foreach_zero_([parameter.grad for parameter in self._parameters.values() if parameter.grad is not None])

    def tensors(self) -> dict[str, Tensor]:
        """The state: `exp_avg.NAME` and `exp_avg_sq.NAME` for each parameter NAME, in its shape, float32."""
        return {
            f"{moment}.{name}": self._inner.state[parameter][moment] for name, parameter in self._parameters.items() for moment in _MOMENTS
        }

    def load(self, tensors: dict[str, Tensor], num_updates: int) -> None:
        """Set the state to that after `num_updates` updates.

        Raises:
            CheckpointError: the tensors are not those of this model.
        """
        own = self.tensors()
        wrong = sorted(own.keys() ^ tensors.keys()) + [
            name for name in own.keys() & tensors.keys() if own[name].shape != tensors[name].shape
        ]
        if wrong:
            raise CheckpointError(
                f"the optimizer state is of another model; missing, unexpected or of another shape: {', '.join(wrong[:8])}"
            )
        for name, tensor in own.items():
            tensor.copy_(tensors[name])
        for parameter in self._parameters.values():
            self._inner.state[parameter]["step"].fill_(num_updates)
