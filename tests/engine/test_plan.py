"""The plan says before loading what the engine takes afterwards."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import torch

from tests.engine.execution.test_routes import needs_kernels
from tests.engine.tiny_models import MIXTRAL, NEOX, QWEN, tiny_model
from tripod.engine.assemble import assemble
from tripod.engine.engine_config import EngineConfig
from tripod.engine.plan import plan_engine
from tripod.errors import CheckpointError, ConfigError
from tripod.models.gpt_neox import GPTNeoXConfig
from tripod.models.llama import LlamaConfig
from tripod.models.save import save_checkpoint
from tripod.ops.linear import WeightFormat


@pytest.fixture(params=[NEOX, QWEN], ids=["neox", "qwen2, tied"])
def config(request: pytest.FixtureRequest) -> GPTNeoXConfig | LlamaConfig:
    found: GPTNeoXConfig | LlamaConfig = request.param
    return found


@pytest.mark.parametrize("weight_format", ["f32", "bf16", "int8"])
def test_planned_bytes_are_those_that_the_torch_route_takes(
    config: GPTNeoXConfig | LlamaConfig, weight_format: WeightFormat, tmp_path: Path
) -> None:
    model = tiny_model(config)
    save_checkpoint(model, tmp_path)
    (tmp_path / "model.safetensors").unlink()  # so that no weight can have been read
    engine_config = EngineConfig(weight_format=weight_format, kv_tokens=100, kernels="torch")
    plan = plan_engine(tmp_path, engine_config)
    parts = assemble(model, engine_config)
    packed = parts.runner._model
    kept = sum(parameter.nbytes for parameter in packed._inner.parameters())  # type: ignore[attr-defined]
    biases = sum(module.bias.nbytes for module in model.modules() if isinstance(module, torch.nn.Linear) and module.bias is not None)
    assert plan.weight_bytes == packed.num_bytes + kept + biases  # type: ignore[attr-defined]
    if weight_format == "f32":
        assert plan.weight_bytes == sum(tensor.nbytes for tensor in model.parameters()) + (
            model.embedding.weight.nbytes if config.is_tied else 0
        )
        assert plan.kv_bytes == parts.spec.num_bytes
    assert plan.kv_tokens == 112


@needs_kernels
def test_a_pool_in_8_bits_is_planned_with_its_scales_and_taken_so(config: GPTNeoXConfig | LlamaConfig, tmp_path: Path) -> None:
    model = tiny_model(config)
    save_checkpoint(model, tmp_path)
    engine_config = EngineConfig(kv_tokens=100, kv_cache_dtype="int8")
    plan = plan_engine(tmp_path, engine_config)
    spec = assemble(model, engine_config).spec
    assert plan.kv_bytes_per_token == 2 * 2 * config.num_kv_heads * (config.head_dim + 4)  # keys and values of 2 layers, a scale each
    assert plan.kv_bytes == spec.num_bytes == 112 * plan.kv_bytes_per_token


def test_of_experts_as_many_are_planned_as_are_kept_in_memory(tmp_path: Path) -> None:
    save_checkpoint(tiny_model(MIXTRAL), tmp_path)
    plans = {room: plan_engine(tmp_path, EngineConfig(weight_format="bf16", expert_cache=room)) for room in (None, 5, 7, 10, 11)}
    expert = 3 * 72 * 52 * 2  # up, gate and down in bfloat16
    assert plans[None].weight_bytes - plans[7].weight_bytes == 3 * expert  # of 2 layers of 5
    assert plans[7].weight_bytes - plans[5].weight_bytes == 2 * expert
    assert plans[None].weight_bytes == plans[10].weight_bytes == plans[11].weight_bytes
    with pytest.raises(ConfigError, match="expert_cache=4 is less than the 5 experts of a layer"):
        plan_engine(tmp_path, EngineConfig(expert_cache=4))


def test_what_fits_is_what_is_left_beside_weights_and_workspace(tmp_path: Path) -> None:
    save_checkpoint(tiny_model(QWEN), tmp_path)
    per_token = 2 * 2 * 2 * 12 * 4  # keys and values of 2 layers of 2 heads of 12 float32
    plan = plan_engine(tmp_path, EngineConfig(kv_tokens=160), free=100_000_000)
    assert plan.kv_bytes_per_token == per_token
    assert plan.tokens_that_fit == (100_000_000 - plan.weight_bytes - plan.workspace_bytes) // per_token
    assert plan.fits
    assert not plan_engine(tmp_path, EngineConfig(kv_tokens=160), free=plan.total_bytes - 1).fits
    assert plan_engine(tmp_path, EngineConfig(kv_bytes=10 * 16 * per_token + 1), free=100_000_000).kv_tokens == 160
    assert plan_engine(tmp_path, EngineConfig(), free=10**9).kv_tokens == 16 * 160, "the engine's own default"


def test_a_folder_without_a_model_or_a_pool_without_room_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no config.json"):
        plan_engine(tmp_path)
    save_checkpoint(tiny_model(QWEN), tmp_path)
    with pytest.raises(ConfigError, match="holds nothing"):
        plan_engine(tmp_path, EngineConfig(kv_bytes=10))


def test_a_llama2c_file_is_planned_from_its_header(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(struct.pack("<7i", 8, 16, 2, 2, 1, 32, 64))  # no weights follow
    plan = plan_engine(path, EngineConfig(kv_tokens=16), free=10**9)
    assert plan.max_context == 64
    assert plan.kv_bytes_per_token == 2 * 2 * 1 * 4 * 4  # keys and values of 2 layers of 1 head of 4 float32
    matrices = 2 * (2 * 8 * 8 + 2 * 4 * 8 + 3 * 8 * 16)
    assert plan.weight_bytes == 4 * (matrices + 2 * 32 * 8 + 5 * 8)  # the tied embedding counts as output matrix too, and five norms
