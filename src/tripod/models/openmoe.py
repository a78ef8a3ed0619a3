"""OpenMoE (Xue et al. 2024, arXiv:2402.01739): a decoder out of ST-MoE's parts, in which every fourth or sixth layer is sparse.

What sets it apart: scores of attention are not scaled; a feed-forward gate is twice as wide and gated itself; a sparse layer is followed by
a dense one that every token goes through, one after the other; the weights of the two chosen experts are the router's probabilities as they
are. It was trained with a capacity, and drops nothing here outside of training.
"""

# D hidden size, E experts, V vocabulary; "..." any leading dimensions

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor, nn
from torch.nn.functional import silu

from tripod.errors import ConfigError
from tripod.models.decoder_stack import DecoderStack
from tripod.models.expert_layout import OpenMoELayout
from tripod.models.llama import LlamaAttention, LlamaConfig, RMSNorm
from tripod.models.moe import Experts, Router, SparseMLP
from tripod.models.names import NameTable
from tripod.ops.attention import Attend
from tripod.ops.moe_routing import Capacity, RouterConfig
from tripod.ops.rope import Rope, RopeConfig

ARCHITECTURE = "OpenMoeForCausalLM"
GROUP_TOKENS = 4096  # that competed for an expert's slots in training; 8192 in the 34B, whose files do not say so

NAMES = NameTable(
    {
        "embedding.weight": "model.embed_tokens.weight",
        "blocks.{}.attention_norm.weight": "model.layers.{}.input_layernorm.weight",
        "blocks.{}.attention.query.weight": "model.layers.{}.self_attn.q_proj.weight",
        "blocks.{}.attention.key.weight": "model.layers.{}.self_attn.k_proj.weight",
        "blocks.{}.attention.value.weight": "model.layers.{}.self_attn.v_proj.weight",
        "blocks.{}.attention.output.weight": "model.layers.{}.self_attn.o_proj.weight",
        "blocks.{}.mlp_norm.weight": "model.layers.{}.post_attention_layernorm.weight",
        "blocks.{}.mlp.gate.weight": "model.layers.{}.mlp.gate_proj.weight",
        "blocks.{}.mlp.up.weight": "model.layers.{}.mlp.up_proj.weight",
        "blocks.{}.mlp.down.weight": "model.layers.{}.mlp.down_proj.weight",
        "blocks.{}.mlp.router.weight": "model.layers.{}.mlp.gate_weight",
        "blocks.{}.mlp.experts.up": "model.layers.{}.mlp.experts.wi",
        "blocks.{}.mlp.experts.down": "model.layers.{}.mlp.experts.wo",
        "blocks.{}.extra_norm.weight": "model.layers.{}.pre_extra_mlp_layernorm.weight",
        "blocks.{}.extra_mlp.gate.weight": "model.layers.{}.extra_mlp.gate_proj.weight",
        "blocks.{}.extra_mlp.up.weight": "model.layers.{}.extra_mlp.up_proj.weight",
        "blocks.{}.extra_mlp.down.weight": "model.layers.{}.extra_mlp.down_proj.weight",
        "norm.weight": "model.norm.weight",
        "head.weight": "lm_head.weight",
    },
    ignorable=(r"model\.layers\.\d+\.self_attn\.(rotary_emb\.inv_freq|sin|cos)",),
    layout=OpenMoELayout(),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenMoEConfig:
    """The sizes of an OpenMoE.

    Raises:
        ConfigError: sizes that do not fit each other.
    """

    vocab_size: int = 256_384
    hidden_size: int
    intermediate_size: int  # of a dense layer, and of each expert
    num_layers: int
    num_heads: int
    head_dim: int
    sparse_interval: int  # the last of so many layers is sparse
    router: RouterConfig
    max_positions: int = 2048
    norm_eps: float = 1e-6
    eval_capacity_factor: float = 2.0  # with which it was evaluated; kept for its file, not used

    def __post_init__(self) -> None:
        if self.sparse_interval < 1:
            raise ConfigError(f"sparse_interval={self.sparse_interval}; give 1 for sparse layers alone, or more")
        if self.router.has_selection_bias or self.router.chooser != "token" or self.router.gate != "softmax" or self.router.is_normalized:
            raise ConfigError(f"{self.router} is not OpenMoE's; its tokens choose by the softmax as it is")

    @property
    def num_kv_heads(self) -> int:
        return self.num_heads

    @property
    def is_tied(self) -> bool:
        return False

    @property
    def model_type(self) -> str:
        return "openmoe"

    @property
    def sparse_layers(self) -> tuple[int, ...]:
        """The layers that have a router."""
        return tuple(range(self.sparse_interval - 1, self.num_layers, self.sparse_interval))

    @classmethod
    def base(cls) -> Self:
        """16 experts, 800 million parameters."""
        return cls(hidden_size=768, intermediate_size=2048, num_layers=12, num_heads=12, head_dim=64, sparse_interval=4, router=_router(16))

    @classmethod
    def of_8b(cls) -> Self:
        """32 experts, 11.9 billion parameters."""
        return cls(
            hidden_size=2048, intermediate_size=8192, num_layers=24, num_heads=24, head_dim=128, sparse_interval=6, router=_router(32)
        )

    @classmethod
    def of_34b(cls) -> Self:
        """32 experts, 46.3 billion parameters."""
        router = _router(32, group_tokens=8192)
        return cls(hidden_size=3072, intermediate_size=12_288, num_layers=32, num_heads=24, head_dim=128, sparse_interval=4, router=router)

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> Self:
        """Read the content of config.json, in the spelling of the published files or in that of the code beside them.

        Raises:
            ConfigError: a required size is missing, or a value is not supported.
        """
        sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim", "num_experts")
        for key in (*sizes, "moe_layer_interval"):
            if not isinstance(config.get(key), int):
                raise ConfigError(f"config.json of an OpenMoE gives {key}={config.get(key)!r}; expected a whole number")
        if config.get("hidden_act", "swiglu") != "swiglu" or not config.get("gated", config.get("mlp_gated", True)):
            raise ConfigError(f"hidden_act {config.get('hidden_act')!r} of an OpenMoE is not supported; supported: swiglu, gated")
        if config.get("num_key_value_heads", config["num_attention_heads"]) != config["num_attention_heads"]:
            raise ConfigError(
                f"num_key_value_heads={config['num_key_value_heads']} of an OpenMoE is not supported; it has as many as heads"
            )

        def either(short: str, long: str, default: Any) -> Any:
            return config.get(short, config.get(long, default))

        capacity = Capacity(
            factor=either("capacity_factor_train", "router_capacity_factor_train", 1.25),
            rule="per-token",
            minimum=either("min_capacity", "router_min_capacity", 4),
            group_tokens=GROUP_TOKENS,
        )
        return cls(
            vocab_size=config["vocab_size"],
            hidden_size=config["hidden_size"],
            intermediate_size=config["intermediate_size"],
            num_layers=config["num_hidden_layers"],
            num_heads=config["num_attention_heads"],
            head_dim=config["head_dim"],
            sparse_interval=config["moe_layer_interval"],
            router=RouterConfig(
                num_experts=config["num_experts"],
                top_k=either("topk", "router_topk", 2),
                capacity=capacity if either("drop_tks", "router_drop_tks", True) else None,
            ),
            max_positions=config.get("max_position_embeddings", 2048),
            norm_eps=float(either("layer_norm_epsilon", "rms_norm_eps", 1e-6)),
            eval_capacity_factor=either("capacity_factor_eval", "router_capacity_factor_eval", 2.0),
        )

    def to_hf(self) -> dict[str, Any]:
        """The content of config.json; `from_hf` of it gives this config again, but for the rule and the groups of its capacity."""
        capacity = self.router.capacity
        return {
            "architectures": [ARCHITECTURE],
            "model_type": "openmoe",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "head_dim": self.head_dim,
            "max_position_embeddings": self.max_positions,
            "dropout_rate": 0.0,
            "layer_norm_epsilon": self.norm_eps,
            "hidden_act": "swiglu",
            "gated": True,
            "num_experts": self.router.num_experts,
            "topk": self.router.top_k,
            "capacity_factor_train": 1.25 if capacity is None else capacity.factor,
            "capacity_factor_eval": self.eval_capacity_factor,
            "min_capacity": 4 if capacity is None else capacity.minimum,
            "noisy_policy": None,
            "drop_tks": capacity is not None,
            "expert_parallel": None,
            "moe_layer_interval": self.sparse_interval,
        }


def _router(num_experts: int, group_tokens: int = GROUP_TOKENS) -> RouterConfig:
    return RouterConfig(num_experts=num_experts, top_k=2, capacity=Capacity(factor=1.25, rule="per-token", group_tokens=group_tokens))


class DoubleGatedMLP(nn.Module):
    """down(a * silu(b) * up x), where gate x is a and b."""

    def __init__(self, config: OpenMoEConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.up = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # [..., D] -> [..., D]
        linear_gate, gate = self.gate(x).chunk(2, dim=-1)
        return self.down(linear_gate * silu(gate) * self.up(x))  # type: ignore[no-any-return]


class OpenMoEBlock(nn.Module):
    """x + Attention(norm x), then x + MLP(norm x); in a sparse layer the experts stand in the MLP's place, and the MLP follows them."""

    def __init__(self, config: OpenMoEConfig, layer: int) -> None:
        super().__init__()
        size, eps = config.hidden_size, config.norm_eps
        self.attention_norm = RMSNorm(size, eps)
        self.attention = LlamaAttention(_attention_config(config), layer, scale=1.0)
        self.mlp_norm = RMSNorm(size, eps)
        self.mlp = _sparse_mlp(config, layer) if layer in config.sparse_layers else DoubleGatedMLP(config)
        self.extra_norm = RMSNorm(size, eps) if layer in config.sparse_layers else None
        self.extra_mlp = DoubleGatedMLP(config) if layer in config.sparse_layers else None

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:  # [..., D] -> [..., D]
        x = x + self.attention(self.attention_norm(x), cos, sin, attend)
        x = x + self.mlp(self.mlp_norm(x))
        if self.extra_norm is None or self.extra_mlp is None:
            return x
        return x + self.extra_mlp(self.extra_norm(x))  # type: ignore[no-any-return]


def _sparse_mlp(config: OpenMoEConfig, layer: int) -> SparseMLP:
    experts = Experts(config.router.num_experts, config.hidden_size, config.intermediate_size, "double")
    return SparseMLP(Router(config.router, config.hidden_size, layer), experts)


class OpenMoE(DecoderStack):
    """A `LanguageModel`."""

    norm: RMSNorm

    def __init__(self, config: OpenMoEConfig) -> None:
        super().__init__(
            nn.Embedding(config.vocab_size, config.hidden_size),
            Rope(_attention_config(config).rope, config.max_positions),
            (OpenMoEBlock(config, layer) for layer in range(config.num_layers)),
            RMSNorm(config.hidden_size, config.norm_eps),
        )
        self.config = config


def _attention_config(config: OpenMoEConfig) -> LlamaConfig:
    """The Llama that has the same attention."""
    return LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        num_kv_heads=config.num_heads,
        head_dim=config.head_dim,
        max_positions=config.max_positions,
        rope=RopeConfig(rotary_dim=config.head_dim, theta=10_000.0),
        norm_eps=config.norm_eps,
    )
