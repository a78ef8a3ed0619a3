"""What is added to the cross-entropy: terms that keep the logits of the output and of routers small, and the load of experts even.

The balance of a layer is E times the sum over its E experts of f P, with f the share of tokens that chose an expert (dropped ones too) and
P the mean gate of it (Shazeer et al. 2017, Fedus et al. 2021, arXiv:2101.03961); perfectly even, it is k. Both are taken over the tokens
that are computed at once, those of all processes together: over fewer, experts could not specialise (Qiu et al. 2025, arXiv:2501.11873).
f is a constant to the gradients, so that the shares of the processes, and of the micro-batches, add up.
"""

# L sparse layers, N tokens of a micro-batch in this process, E experts, k choices

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from tripod.models.language_model import LanguageModel
from tripod.models.moe import Router, watch_routing
from tripod.ops.moe_routing import Routing, balanced_bias
from tripod.training.parallel import ALONE, Processes
from tripod.training.recipe import LossRecipe


class LossTerms:
    """The terms of one step, over its micro-batches, and what they and the routers measured."""

    def __init__(self, recipe: LossRecipe, *, num_tokens: int = 1, processes: Processes = ALONE) -> None:
        """num_tokens: that the routers see in the step, in all processes."""
        self.recipe = recipe
        self._num_tokens = num_tokens
        self._processes = processes
        self._seen: dict[int, Routing] = {}
        self._balance: float | Tensor = 0.0  # over all processes
        self._router_z: float | Tensor = 0.0  # of this process, and so the next three
        self._output_z: float | Tensor = 0.0
        self._num_dropped: float | Tensor = 0.0
        self._top_k = 0
        self._load: dict[int, Tensor] = {}  # [E] assignments, over all processes

    @contextmanager
    def watching(self, model: LanguageModel) -> Iterator[None]:
        """Within the block, note what the routers of a model decide."""
        assert isinstance(model, nn.Module)
        with watch_routing(model, self._seen.__setitem__):
            yield

    def of_routers(self, loss_scale: float) -> tuple[list[Tensor], list[Tensor]]:
        """Scalars to begin a backward pass from, with their gradients: nothing for a dense model."""
        if not self._seen:
            return [], []
        layers = sorted(self._seen)
        routings = [self._seen[layer] for layer in layers]
        self._seen.clear()
        num_experts, num_data = routings[0].num_experts, self._processes.num_data
        load = torch.stack([torch.bincount(one.expert_ids.flatten(), minlength=num_experts) for one in routings]).float()  # [L, E]
        load = self._processes.sum_over_data(load)
        shares = load / (len(routings[0].gates) * num_data)
        gates = torch.stack([(one.gates / one.gates.sum(-1, keepdim=True)).sum(0) for one in routings])  # [L, E]
        balance = num_experts * (shares * gates).sum() / (len(layers) * self._num_tokens)
        z = torch.stack([one.logits.logsumexp(-1).square().sum() for one in routings]).sum() / (len(layers) * self._num_tokens)
        with torch.no_grad():
            self._balance = self._balance + self._processes.sum_over_data(balance.detach().clone())
            self._router_z = self._router_z + z.detach()
            self._num_dropped = self._num_dropped + sum((~one.is_kept).sum() for one in routings if one.is_kept is not None)
            self._top_k = routings[0].expert_ids.shape[1]
            for layer, counts in zip(layers, load, strict=True):
                self._load[layer] = self._load.get(layer, 0.0) + counts
        return [self.recipe.balance * balance + self.recipe.router_z * z], [torch.tensor(loss_scale, device=z.device)]

    def add_output(self, log_sums: Tensor, num_targets: int) -> None:
        """Note log(sum of exponentials) of the logits of some of the step's targets."""
        self._output_z = self._output_z + log_sums.square().sum() / num_targets

    def measured(self) -> Mapping[str, float]:
        """Each term without its coefficient; of a sparse model also the load of its fullest expert, 1 being even, and the share dropped."""
        found = {"output_z_loss": self._output_z} if self.recipe.output_z else {}
        if self._load:
            load = torch.stack(list(self._load.values()))
            num_assignments = self._num_tokens * self._top_k * len(load)
            found |= {"router_z_loss": self._router_z, "dropped": self._num_dropped / num_assignments}
        if found:
            summed = self._processes.sum_over_data(torch.stack([torch.as_tensor(value, dtype=torch.float32) for value in found.values()]))
            found = dict(zip(found, summed, strict=True))
        if self._load:
            found |= {"balance_loss": self._balance, "max_load": (load.max(1).values / load.mean(1)).max()}
        return {name: float(value) for name, value in found.items()}

    @torch.no_grad()
    def move_biases(self, model: nn.Module) -> None:
        """Move the selection biases of routers that have one towards an even load (Wang et al. 2024, arXiv:2408.15664)."""
        for module in model.modules():
            if isinstance(module, Router) and module.selection_bias is not None:
                module.selection_bias.copy_(balanced_bias(module.selection_bias, self._load[module.layer], self.recipe.bias_rate))
