"""Experts that were used last, in memory of their own; all others stay where they come from, such as a file mapped into memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from tripod.errors import ConfigError
from tripod.models.moe import Experts, HasModules
from tripod.ops.kernels.cpu.experts import ExpertTable, PackedExpert
from tripod.ops.kernels.cpu.packing import PackedWeight
from tripod.ops.moe_routing import Routing


def check_room(num_experts: int, model: HasModules) -> None:
    """Whether so many experts can be kept of a model.

    Raises:
        ConfigError: it has none, or one step can ask for more experts of a layer than there is room for.
    """
    most = max((len(module.up) for module in model.modules() if isinstance(module, Experts)), default=0)  # of one layer
    if not most:
        raise ConfigError(f"expert_cache={num_experts} is for a sparse model, and this one has no experts; leave it out")
    if num_experts < most:
        raise ConfigError(
            f"expert_cache={num_experts} is less than the {most} experts of a layer, all of which one step may ask for; give {most} or more"
        )


class ExpertCache:
    """Room for so many experts of all layers together; who has not been used for longest makes way. Not for several threads at once."""

    def __init__(self, num_experts: int) -> None:
        self.num_experts = num_experts
        self.hits = 0  # of experts that a layer asked for in a step, once each
        self.misses = 0
        self._held: OrderedDict[tuple[int, int], PackedExpert] = OrderedDict()  # by layer and number, the one used longest ago first

    def layer(self, experts: Sequence[PackedExpert]) -> CachedExperts:
        """The experts of one more layer.

        Args:
            experts: where they come from; the same shape in all layers, and no more than there is room for: see `check_room`.
        """
        assert len(experts) <= self.num_experts
        return CachedExperts(self, ExpertTable(experts), tuple(experts))

    @property
    def num_bytes(self) -> int:
        """Of the experts that it holds, packed."""
        return sum(expert.num_bytes for expert in self._held.values())

    def hold(self, owner: CachedExperts, wanted: Sequence[int]) -> None:
        """See to it that the wanted experts of a layer are held, and that its table finds them here."""
        missing = []
        for number in wanted:
            if (id(owner), number) in self._held:
                self._held.move_to_end((id(owner), number))
            else:
                missing.append(number)
        self.hits += len(wanted) - len(missing)
        self.misses += len(missing)
        for number in missing:
            room = self._held.popitem(last=False)[1] if len(self._held) >= self.num_experts else _room_for(owner.sources[number])
            for target, source in zip(_parts(room), _parts(owner.sources[number]), strict=True):
                target.data.copy_(source.data)
            self._held[id(owner), number] = room
            owner.table.place(number, room)


class CachedExperts:
    """The experts of a layer, of which some are held by a cache."""

    def __init__(self, cache: ExpertCache, table: ExpertTable, sources: tuple[PackedExpert, ...]) -> None:
        self.table, self.sources = table, sources
        self._cache = cache

    def add(self, x: Tensor, routing: Routing, out: Tensor) -> None:
        """See `ExpertTable.add`."""
        self._cache.hold(self, sorted(set(routing.expert_ids.flatten().tolist())))
        self.table.add(x, routing, out)


def _parts(expert: PackedExpert) -> list[PackedWeight]:
    return [part for part in (expert.up, expert.down, expert.factor) if part is not None]


def _room_for(expert: PackedExpert) -> PackedExpert:
    """An expert of the same shape, its weights not set yet."""
    factor = None if expert.factor is None else _empty(expert.factor)
    return PackedExpert(_empty(expert.up), _empty(expert.down), factor)


def _empty(weight: PackedWeight) -> PackedWeight:
    return replace(weight, data=torch.empty_like(weight.data))
