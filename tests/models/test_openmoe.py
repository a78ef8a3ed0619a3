"""OpenMoE against its facts: sizes to the unit, a literal reference over single tokens in float64, and the published layout."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tripod.errors import CheckpointError, ConfigError
from tripod.models.initialize import num_parameters, random_language_model
from tripod.models.load import load_language_model
from tripod.models.moe import record_routing, watch_routing
from tripod.models.openmoe import OpenMoE, OpenMoEConfig
from tripod.models.save import save_checkpoint
from tripod.ops.attention import causal_attention
from tripod.ops.moe_routing import Capacity, RouterConfig, Routing

TINY = OpenMoEConfig(
    vocab_size=61, hidden_size=20, intermediate_size=14, num_layers=4, num_heads=3, head_dim=8, sparse_interval=2, max_positions=64,
    router=RouterConfig(num_experts=5, top_k=2, capacity=Capacity(factor=1.25, rule="per-token", minimum=1, group_tokens=16)),
)  # fmt: skip
TOKENS = torch.randint(61, (2, 16), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("config", "total"),
    [  # from the published layout
        (OpenMoEConfig.base(), 799_663_104),
        (OpenMoEConfig.of_8b(), 11_855_046_656),
        (OpenMoEConfig.of_34b(), 46_270_737_408),
    ],
    ids=["base", "8b", "34b"],
)
def test_the_published_sizes_to_the_unit(config: OpenMoEConfig, total: int) -> None:
    assert num_parameters(config) == total


def tiny(config: OpenMoEConfig = TINY) -> OpenMoE:
    model = random_language_model(config, 3)
    assert isinstance(model, OpenMoE)
    for name, parameter in model.named_parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))).mul_(0.5) + ("norm" in name))
    return model


def run(model: OpenMoE, token_ids: Tensor) -> Tensor:
    positions = torch.arange(token_ids.shape[1]).expand_as(token_ids)
    return model.logits(model.hidden(token_ids, positions, causal_attention))


class Literal:
    """The published layout read token by token, in float64, as the facts say it; it shares nothing with the model but the numbers."""

    def __init__(self, tensors: dict[str, Tensor], slots: int | None) -> None:
        self.t = {name: tensor.double() for name, tensor in tensors.items()}
        self.slots = slots  # that each expert has for all tokens; None: as many as come

    def norm(self, x: Tensor, name: str) -> Tensor:
        return x / math.sqrt(float((x * x).mean()) + 1e-6) * self.t[name]

    def attention(self, xs: list[Tensor], prefix: str) -> list[Tensor]:
        def heads(kind: str) -> list[Tensor]:
            return [(self.t[f"{prefix}.{kind}_proj.weight"] @ x).view(3, 8) for x in xs]

        def turned(head: Tensor, position: int) -> Tensor:
            turned = torch.empty_like(head)
            for i in range(4):
                angle = position / 10_000 ** (2 * i / 8)
                a, b = head[i], head[i + 4]
                turned[i], turned[i + 4] = a * math.cos(angle) - b * math.sin(angle), b * math.cos(angle) + a * math.sin(angle)
            return turned

        queries, keys, values = heads("q"), heads("k"), heads("v")
        out = []
        for t in range(len(xs)):
            seen = []
            for h in range(3):
                scores = [float(turned(queries[t][h], t) @ turned(keys[s][h], s)) for s in range(t + 1)]  # not scaled
                weights = [math.exp(score - max(scores)) for score in scores]
                seen.append(sum(w / sum(weights) * values[s][h] for s, w in enumerate(weights)))
            out.append(self.t[f"{prefix}.o_proj.weight"] @ torch.cat(seen))  # type: ignore[arg-type]
        return out

    def feed_forward(self, x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
        a = gate @ x
        a1, a2 = a[: len(a) // 2], a[len(a) // 2 :]
        return down @ (a1 * a2 / (1 + torch.exp(-a2)) * (up @ x))

    def dense(self, x: Tensor, prefix: str) -> Tensor:
        return self.feed_forward(x, *(self.t[f"{prefix}.{kind}_proj.weight"] for kind in ("gate", "up", "down")))

    def sparse(self, rows: list[list[Tensor]], prefix: str) -> list[list[Tensor]]:
        flat = [x for row in rows for x in row]
        probabilities = [torch.softmax(self.t[f"{prefix}.gate_weight"] @ x, 0) for x in flat]
        choices = [sorted(range(5), key=lambda e: -float(p[e]))[:2] for p in probabilities]
        taken = [0] * 5
        kept: set[tuple[int, int]] = set()
        for choice in range(2):  # all first choices, then all second ones
            for token in range(len(flat)):
                expert = choices[token][choice]
                if self.slots is None or taken[expert] < self.slots:
                    taken[expert] += 1
                    kept.add((token, expert))
        out = []
        for token, x in enumerate(flat):
            total = torch.zeros_like(x)
            for expert in choices[token]:
                if (token, expert) in kept:
                    gate, up, down = (self.t[f"{prefix}.experts.{kind}"][expert].T for kind in ("wi_gate", "wi_up", "wo"))
                    total = total + probabilities[token][expert] * self.feed_forward(x, gate, up, down)
            out.append(total)
        return [out[i * len(rows[0]) : (i + 1) * len(rows[0])] for i in range(len(rows))]

    def logits(self, token_ids: Tensor) -> Tensor:
        rows = [[self.t["model.embed_tokens.weight"][i] for i in row] for row in token_ids.tolist()]
        for layer in range(4):
            at = f"model.layers.{layer}"
            for r, row in enumerate(rows):
                attended = self.attention([self.norm(x, f"{at}.input_layernorm.weight") for x in row], f"{at}.self_attn")
                rows[r] = [x + y for x, y in zip(row, attended, strict=True)]
            normed = [[self.norm(x, f"{at}.post_attention_layernorm.weight") for x in row] for row in rows]
            if (layer + 1) % 2 == 0:
                added = self.sparse(normed, f"{at}.mlp")
            else:
                added = [[self.dense(x, f"{at}.mlp") for x in row] for row in normed]
            rows = [[x + y for x, y in zip(row, more, strict=True)] for row, more in zip(rows, added, strict=True)]
            if (layer + 1) % 2 == 0:
                rows = [
                    [x + self.dense(self.norm(x, f"{at}.pre_extra_mlp_layernorm.weight"), f"{at}.extra_mlp") for x in row] for row in rows
                ]
        return torch.stack([torch.stack([self.t["lm_head.weight"] @ self.norm(x, "model.norm.weight") for x in row]) for row in rows])


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("openmoe")
    save_checkpoint(tiny(), folder)
    return folder


@pytest.mark.parametrize("is_training", [False, True], ids=["nothing dropped", "dropped as in training"])
def test_logits_are_those_of_a_literal_loop_over_tokens(saved: Path, is_training: bool) -> None:
    model = load_language_model(saved, dtype=torch.float64)
    assert isinstance(model, OpenMoE)
    # 32 tokens in one group, 5 experts: round(1.25 * 32 / 5) = 8 slots, for some 13 assignments each
    model = _with_group(model, 32).train(is_training)
    with torch.inference_mode():
        ours = run(model, TOKENS)
    expected = Literal(load_file(saved / "model.safetensors"), slots=8 if is_training else None).logits(TOKENS)
    assert (ours - expected).abs().max() < 1e-5 * expected.abs().max()  # the router and rms_norm are float32 in a float64 model
    assert expected.std() > 0.5


def _with_group(model: OpenMoE, group_tokens: int) -> OpenMoE:
    for block in model.blocks[1::2]:
        router = block.mlp.router
        router.config = replace(router.config, capacity=Capacity(factor=1.25, rule="per-token", minimum=1, group_tokens=group_tokens))
    return model


def test_the_published_layout_is_written_and_read_again(saved: Path) -> None:
    shapes = {name: list(tensor.shape) for name, tensor in load_file(saved / "model.safetensors").items()}
    at = "model.layers.1.mlp"
    assert shapes[f"{at}.gate_weight"] == [5, 20]
    assert shapes[f"{at}.experts.wi_gate"] == [5, 20, 28]
    assert shapes[f"{at}.experts.wi_up"] == [5, 20, 14]
    assert shapes[f"{at}.experts.wo"] == [5, 14, 20]
    assert shapes["model.layers.0.mlp.gate_proj.weight"] == [28, 20]
    assert shapes["model.layers.3.extra_mlp.down_proj.weight"] == [20, 14]
    assert len(shapes) == 3 + 4 * 6 + 2 * 3 + 2 * (4 + 4)
    again = load_language_model(saved)
    for name, tensor in tiny().state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    assert again.config == replace(
        TINY, router=replace(TINY.router, capacity=Capacity(factor=1.25, rule="per-token", minimum=1, group_tokens=4096))
    )


def test_published_files_that_call_themselves_a_llama_are_known_by_their_architecture() -> None:
    from tripod.models.architectures import LANGUAGE_MODELS, architecture_of

    base = {  # with the longer names, which the code beside the weights reads
        "architectures": ["OpenMoeForCausalLM"], "model_type": "llama", "vocab_size": 256_384, "hidden_size": 768,
        "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12, "head_dim": 64, "num_experts": 16,
        "router_topk": 2, "mlp_gated": True, "router_capacity_factor_train": 1.25, "router_min_capacity": 4,
        "moe_layer_interval": 4, "hidden_act": "swiglu",
    }  # fmt: skip
    architecture = architecture_of(base, LANGUAGE_MODELS)
    assert architecture.read_config(base) == OpenMoEConfig.base()
    roomier = OpenMoEConfig.from_hf({**base, "router_capacity_factor_train": 1.5, "router_min_capacity": 8}).router.capacity
    assert roomier == Capacity(factor=1.5, rule="per-token", minimum=8, group_tokens=4096)
    assert OpenMoEConfig.from_hf({**base, "router_drop_tks": False}).router.capacity is None
    with pytest.raises(ConfigError, match="moe_layer_interval=None"):
        OpenMoEConfig.from_hf({**base, "moe_layer_interval": None})


def test_a_missing_half_of_the_experts_is_named(saved: Path, tmp_path: Path) -> None:
    tensors = load_file(saved / "model.safetensors")
    del tensors["model.layers.1.mlp.experts.wi_up"]
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((saved / "config.json").read_bytes())
    with pytest.raises(CheckpointError, match=r"model\.layers\.1\.mlp\.experts\.wi_up"):
        load_language_model(tmp_path)


def test_routing_is_watched_with_its_gradients_and_recorded_layer_by_layer() -> None:
    model = tiny()
    model.requires_grad_(True)
    seen: dict[int, Routing] = {}
    with watch_routing(model, seen.__setitem__), record_routing(model) as record:
        run(model, TOKENS)
        run(model, TOKENS[:, :5])
    assert record.layers == (1, 3) == tuple(seen)
    assert record.expert_ids(1).shape == record.weights(1).shape == (32 + 10, 2)
    seen[3].logits.sum().backward()
    assert model.blocks[3].mlp.router.weight.grad is not None  # type: ignore[union-attr]
    run(model, TOKENS)
    assert len(record.expert_ids(1)) == 42, "what comes after is not recorded"


def test_dropped_assignments_have_no_weight_in_a_record() -> None:
    model = tiny().train()
    with record_routing(model) as record, torch.no_grad():
        run(model, TOKENS)
    dropped = record.weights(1) == 0
    assert 0.375 <= dropped.float().mean() < 0.7  # groups of 16 tokens, 4 slots of 5 experts: at most 20 of 32
