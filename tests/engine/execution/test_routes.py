"""Every route gives the logits of the plain model; and in batch-invariant mode the same bits whatever stands beside a row."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.engine.conftest import plain_logits
from tests.engine.tiny_models import BIASED_LLAMA, NEOX, QWEN, QWEN3, SERIAL_NEOX, tiny_model
from tripod.engine.assemble import assemble
from tripod.engine.engine_config import EngineConfig
from tripod.engine.execution import fixed_tiles
from tripod.engine.execution.fixed_tiles import OTHER_TILES, TILES, FixedTiles
from tripod.engine.execution.kv_cache import KVCacheDtype
from tripod.engine.execution.ragged_batch import RaggedBatch
from tripod.engine.execution.route import Kernels
from tripod.engine.policy.request import Request
from tripod.errors import ConfigError
from tripod.models.gpt_neox import GPTNeoXConfig
from tripod.models.language_model import LanguageModel
from tripod.models.llama import LlamaConfig
from tripod.models.native_blocks import NativeModel
from tripod.ops.attention import Attend
from tripod.ops.kernels.cpu import library
from tripod.ops.linear import WeightFormat
from tripod.ops.rope import RopeConfig
from tripod.sampling import GREEDY

needs_kernels = pytest.mark.skipif(library.why_not() is not None, reason=str(library.why_not()))
ROUTES = ["torch", pytest.param("native", marks=needs_kernels)]
CONFIGS = {"neox": NEOX, "serial neox": SERIAL_NEOX, "qwen2": QWEN, "qwen3": QWEN3, "biased llama": BIASED_LLAMA}


class Steps:
    """A runner's model and cache, driven by hand: which tokens of which sequence come in which step."""

    def __init__(
        self,
        model: LanguageModel,
        kernels: Kernels,
        weight_format: WeightFormat | None,
        *,
        batch_invariant: bool = False,
        kv_cache_dtype: KVCacheDtype | None = None,
    ) -> None:
        config = EngineConfig(
            kv_tokens=2048, kernels=kernels, weight_format=weight_format, batch_invariant=batch_invariant, kv_cache_dtype=kv_cache_dtype
        )
        parts = assemble(model, config)
        self.model, self.cache = parts.runner._model, parts.runner._kv_cache
        self._free = list(range(128))
        random.Random(5).shuffle(self._free)
        parts.runner.start_thread()

    def request(self, token_ids: Sequence[int]) -> Request:
        request = Request(id="r", prompt_ids=tuple(token_ids), sampling=GREEDY, max_tokens=1)
        request.block_ids = [self._free.pop() for _ in range(-(-len(token_ids) // 16))]
        return request

    @torch.inference_mode()
    def step(self, schedule: dict[Request, int]) -> list[Tensor]:
        """The logits of each request's tokens: [num_tokens, V] each."""
        batch = RaggedBatch.of(schedule, 16, torch.device("cpu"))
        logits = self.model.logits(self.model.hidden(batch.token_ids, batch.positions, self.cache.attend(batch)))
        for request, num_tokens in schedule.items():
            request.num_computed_tokens += num_tokens
        return list(torch.split(logits, list(schedule.values())))

    def whole(self, token_ids: Sequence[int], sizes: Sequence[int], others: Sequence[dict[Request, int]] = ()) -> Tensor:
        """[T, V] of one sequence, computed in chunks of these sizes, each beside the requests of one entry of `others`."""
        request = self.request(token_ids)
        logits = []
        for number, size in enumerate(sizes):
            beside = dict(others[number]) if number < len(others) else {}
            items = list(beside.items())
            half = len(items) // 2
            results = self.step({**dict(items[:half]), request: size, **dict(items[half:])})
            logits.append(results[half])
        self._free += request.block_ids
        return torch.cat(logits)


def token_ids(length: int, seed: int) -> list[int]:
    return torch.randint(0, 259, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.mark.parametrize("kernels", ROUTES)
@pytest.mark.parametrize(("weight_format", "tolerance"), [("f32", 1e-5), ("bf16", 3e-2), ("int8", 6e-2)])
@pytest.mark.parametrize("name", CONFIGS)
def test_each_route_gives_the_logits_of_the_plain_model(name: str, weight_format: WeightFormat, tolerance: float, kernels: Kernels) -> None:
    model = tiny_model(CONFIGS[name])
    ids = token_ids(61, seed=1)
    plain = plain_logits(model, ids)
    logits = Steps(model, kernels, weight_format).whole(ids, [20, 1, 1, 30, 1, 8])
    assert float((logits - plain).square().mean().sqrt() / plain.square().mean().sqrt()) < tolerance


@pytest.mark.parametrize("kernels", ROUTES)
@pytest.mark.parametrize("weight_format", ["f32", "bf16", "int8"])
@pytest.mark.parametrize("name", ["neox", "qwen2", "qwen3"])
def test_a_row_has_the_same_bits_alone_in_any_chunk_and_beside_any_neighbours(
    name: str, weight_format: WeightFormat, kernels: Kernels
) -> None:
    steps = Steps(tiny_model(CONFIGS[name]), kernels, weight_format, batch_invariant=True)
    ids = token_ids(40, seed=2)
    expected = steps.whole(ids, [1] * 40)
    assert torch.equal(steps.whole(ids, [40]), expected), "as one chunk"
    assert torch.equal(steps.whole(ids, [7, 1, 1, 22, 9]), expected), "in chunks"
    for num_others in (1, 2, 7, 31):
        crowd = [steps.request(token_ids(24, seed=100 + number)) for number in range(min(num_others, 20))]
        sizes = [13, 1, 1, 20, 5]
        beside = [{other: 1 + 3 * ((number + step) % 3 == 0) for number, other in enumerate(crowd)} for step in range(len(sizes))]
        assert torch.equal(steps.whole(ids, sizes, beside), expected), f"beside {len(crowd)} others"
        for other in crowd:
            steps._free += other.block_ids


@needs_kernels
@pytest.mark.parametrize("weight_format", ["f32", "int8"])
@pytest.mark.parametrize("name", ["neox", "qwen3"])
def test_keys_and_values_in_8_bits_stay_near_the_plain_model_and_keep_a_rows_bits(name: str, weight_format: WeightFormat) -> None:
    model = tiny_model(CONFIGS[name])
    steps = Steps(model, "native", weight_format, kv_cache_dtype="int8")
    ids = token_ids(61, seed=1)
    plain = plain_logits(model, ids)
    logits = steps.whole(ids, [20, 1, 1, 30, 1, 8])
    difference = float((logits - plain).square().mean().sqrt() / plain.square().mean().sqrt())
    assert 1e-4 < difference < (2e-2 if weight_format == "f32" else 8e-2)
    crowd = {steps.request(token_ids(24, seed=100 + number)): 1 + number % 3 for number in range(9)}
    assert torch.equal(steps.whole(ids, [1] * 61), logits)
    assert torch.equal(steps.whole(ids, [7, 1, 53], [crowd, crowd, crowd]), logits)


def test_keys_and_values_in_8_bits_need_the_native_kernels() -> None:
    with pytest.raises(ConfigError, match="kv_cache_dtype='int8' needs the native kernels, which cannot run here: asked for; leave it out"):
        assemble(tiny_model(NEOX), EngineConfig(kv_tokens=64, kernels="torch", kv_cache_dtype="int8"))
    with pytest.raises(ConfigError, match="kv_cache_dtype='fp4' is unknown; give 'int8'"):
        EngineConfig(kv_cache_dtype="fp4")  # type: ignore[arg-type]


@needs_kernels
@pytest.mark.parametrize("weight_format", ["f32", "bf16", "int8", "int4", "int4-128"])
@pytest.mark.parametrize("name", ["neox", "qwen2", "qwen3"])
def test_one_call_a_layer_gives_the_bits_of_the_kernels_one_by_one(
    name: str, weight_format: WeightFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = Steps(tiny_model(CONFIGS[name]), "native", weight_format)
    ids = token_ids(40, seed=4)
    fused = steps.whole(ids, [17, 1, 22])
    assert isinstance(steps.model, NativeModel)
    assert steps.model._layers is not None, "nothing was fused"
    monkeypatch.setattr(steps.model, "_layers", None)
    assert torch.equal(steps.whole(ids, [17, 1, 22]), fused)


def test_the_plain_torch_route_does_change_bits_with_the_batch() -> None:
    """The control: were this not so, the test above would show nothing."""
    model = tiny_model(NEOX).bfloat16()
    steps = Steps(model, "torch", None)
    ids = token_ids(40, seed=2)
    assert not torch.equal(steps.whole(ids, [40]), steps.whole(ids, [1] * 40))


@pytest.mark.parametrize("config", [NEOX, QWEN], ids=["neox", "qwen2"])
def test_bfloat16_models_are_invariant_on_the_torch_route_as_well(config: GPTNeoXConfig | LlamaConfig) -> None:
    steps = Steps(tiny_model(config).bfloat16(), "torch", None, batch_invariant=True)
    ids = token_ids(40, seed=2)
    crowd = {steps.request(token_ids(24, seed=100 + number)): 1 + number % 3 for number in range(9)}
    expected = steps.whole(ids, [1] * 40)
    assert torch.equal(steps.whole(ids, [40]), expected)
    assert torch.equal(steps.whole(ids, [11, 1, 28], [crowd, crowd, crowd]), expected)


def test_tiles_of_a_fixed_size_are_what_keeps_the_bits_of_wide_products() -> None:
    """At this width torch's float32 products do depend on how many rows they have: the same steps without the tiles differ."""
    config = replace(NEOX, hidden_size=256, intermediate_size=1024, num_heads=4, num_layers=1, rope=RopeConfig(rotary_dim=16))
    steps = Steps(tiny_model(config), "torch", None, batch_invariant=True)
    ids = token_ids(40, seed=2)
    expected = steps.whole(ids, [1] * 40)
    assert torch.equal(steps.whole(ids, [40]), expected)
    assert torch.equal(steps.whole(ids, [7, 1, 32]), expected)
    assert isinstance(steps.model, FixedTiles)
    steps.model = steps.model._inner
    assert not torch.equal(steps.whole(ids, [40]), steps.whole(ids, [1] * 40))


def test_a_tile_whose_rows_get_other_bits_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32 a product of one row sums in another order than one of many."""
    model = tiny_model(replace(NEOX, hidden_size=256, intermediate_size=1024, num_heads=4, num_layers=1, rope=RopeConfig(rotary_dim=16)))
    assert set(FixedTiles(model).heights) > {32}
    monkeypatch.setattr(fixed_tiles, "OTHER_TILES", (64, 1))
    assert 1 not in FixedTiles(model).heights


def test_the_trial_of_tiles_ends_at_the_first_row_that_differs() -> None:
    """Where no two rows may stand together, that is found out by few of the hundreds of tiles that there are."""
    model = tiny_model(replace(NEOX, num_layers=1))
    plain, heights = model.hidden, []

    def by_place(token_ids: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        heights.append(len(token_ids))
        return plain(token_ids, positions, attend) + torch.arange(len(token_ids))[:, None]

    model.hidden = by_place  # type: ignore[method-assign]
    assert FixedTiles(model).heights == (1,)
    assert len(heights) <= 3 * len({*TILES, *OTHER_TILES})


@pytest.mark.parametrize("num_rows", [1, 8, 13, 31, 40, 100, 129, 300])
def test_tiles_cover_every_row_once_and_pad_little(num_rows: int) -> None:
    tiled = FixedTiles(tiny_model(NEOX).bfloat16())
    tiled.heights = (32, 128, 64, 16, 8)
    tiles = list(tiled._tiles(num_rows))
    assert [row for rows, _ in tiles for row in rows] == list(range(num_rows))
    assert sum(height for _, height in tiles) <= max(1.25 * num_rows, num_rows + 8)


@needs_kernels
def test_a_route_that_cannot_run_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(NEOX)
    with pytest.raises(ConfigError, match=r"kernels='native' cannot run here: the kernels keep blocks of 16 tokens; block_size=8"):
        assemble(model, EngineConfig(kv_tokens=64, kernels="native", block_size=8))
    with pytest.raises(ConfigError, match="kernels='fast' is unknown; choose auto, native or torch"):
        assemble(model, EngineConfig(kv_tokens=64, kernels="fast"))  # type: ignore[arg-type]
    assert assemble(model, EngineConfig(kv_tokens=64, block_size=8)).route.name.startswith("torch (the kernels keep blocks of 16")


def test_the_pool_may_be_asked_for_in_bytes() -> None:
    model = tiny_model(QWEN)
    block = 2 * 2 * 16 * 2 * 12 * 4  # keys and values of 2 layers: 16 tokens, 2 heads of 12 numbers of 4 bytes
    assert assemble(model, EngineConfig(kv_bytes=5 * block + 7, kernels="torch")).spec.num_blocks == 5
    with pytest.raises(ConfigError, match=f"does not hold one block of 16 tokens, which takes {block} bytes"):
        assemble(model, EngineConfig(kv_bytes=block - 1, kernels="torch"))
    with pytest.raises(ConfigError, match="give one of the two"):
        EngineConfig(kv_bytes=1000, kv_tokens=10)


def test_a_pool_that_is_larger_than_the_free_memory_is_refused_with_the_numbers() -> None:
    model = tiny_model(QWEN)
    per_token = 2 * 2 * 2 * 12 * 4
    with pytest.raises(
        ConfigError, match=f"a KV pool of 16000000000000 tokens takes {16_000_000_000_000 * per_token} bytes, and [0-9]+ are"
    ):
        assemble(model, EngineConfig(kv_tokens=16_000_000_000_000, kernels="torch"))
