"""The cache of experts by itself, without a model around it."""

from __future__ import annotations

import random

import pytest
import torch

from tripod.models.expert_cache import CachedExperts, ExpertCache
from tripod.ops.kernels.cpu import library
from tripod.ops.kernels.cpu.experts import PackedExpert
from tripod.ops.kernels.cpu.packing import pack_gate_up, pack_linear
from tripod.ops.linear import LinearFormat

pytestmark = pytest.mark.skipif(library.why_not() is not None, reason=str(library.why_not()))

NUM_EXPERTS = 6  # of each of 3 layers


def layer_of(cache: ExpertCache, weight_format: LinearFormat, seed: int) -> CachedExperts:
    draw = torch.Generator().manual_seed(seed)

    def expert() -> PackedExpert:
        up, gate, down = (torch.randn(shape, generator=draw) for shape in ((40, 24), (40, 24), (24, 40)))
        return PackedExpert(pack_gate_up(gate, up, weight_format), pack_linear(down, weight_format))

    return cache.layer([expert() for _ in range(NUM_EXPERTS)])


@pytest.mark.parametrize("weight_format", ["f32", "int8"])
@pytest.mark.parametrize("room", [6, 7, 11, 18])
def test_no_more_experts_are_held_than_there_is_room_for_and_who_was_used_longest_ago_makes_way(
    room: int, weight_format: LinearFormat
) -> None:
    cache = ExpertCache(room)
    layers = [layer_of(cache, weight_format, seed) for seed in range(3)]
    each = layers[0].sources[0].num_bytes
    draw = random.Random(room)
    last_used: dict[tuple[int, int], int] = {}  # of every expert, by layer and number: the step
    held: set[tuple[int, int]] = set()
    hits = 0
    for step in range(400):
        layer = draw.randrange(3)
        wanted = sorted(draw.sample(range(NUM_EXPERTS), draw.randint(1, NUM_EXPERTS)))
        cache.hold(layers[layer], wanted)
        asked = {(layer, number) for number in wanted}
        hits += len(asked & held)
        assert cache.hits == hits
        last_used |= dict.fromkeys(asked, step)
        found = {(at, number) for at in range(3) for number in range(NUM_EXPERTS) if (id(layers[at]), number) in cache._held}
        memory = {part.data.untyped_storage().data_ptr(): part.num_bytes for one in cache._held.values() for part in (one.up, one.down)}
        assert cache.num_bytes == sum(memory.values()) == len(found) * each <= room * each
        assert len(found) == min(len(last_used), room), "it is filled, and never emptied"
        assert asked <= found <= held | asked
        if gone := held - found:
            assert max(last_used[one] for one in gone) <= min(last_used[one] for one in found), "whoever is held was used no earlier"
        held = found
    assert cache.misses > room or room == 18
    for at, number in held:
        kept, source = cache._held[id(layers[at]), number], layers[at].sources[number]
        assert torch.equal(kept.up.data, source.up.data)
        assert torch.equal(kept.down.data, source.down.data)
