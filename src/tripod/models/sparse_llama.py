"""Llamas whose feed-forward layers are sparse: Mixtral, OLMoE, Qwen2-MoE, Qwen3-MoE, and what their layouts have no words for.

Mixtral (Jiang et al. 2024, arXiv:2401.04088): few large experts, weights that sum to 1. OLMoE (Muennighoff et al. 2024, arXiv:2409.02060):
many small ones, gates as they are, a norm over all of query and of key. Qwen-MoE (arXiv:2407.10671, 2505.09388): small ones, in Qwen2
beside a shared expert with a gate of its own, and layers that stay dense.
"""

# D hidden size, E experts, V vocabulary; "..." any leading dimensions

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from torch import nn

from tripod.errors import ConfigError
from tripod.models import llama
from tripod.models.decoder_stack import DecoderStack
from tripod.models.expert_layout import MIXTRAL_LAYOUT, SPLIT_LAYOUT
from tripod.models.llama import LlamaBlock, LlamaConfig, LlamaMLP, RMSNorm
from tripod.models.moe import Experts, Router, SparseMLP
from tripod.models.names import NameTable
from tripod.ops.moe_routing import Capacity, RouterConfig
from tripod.ops.rope import Rope

MODEL_TYPES = {  # model_type in config.json -> the architecture that opens it, and the Llama that it is but for its sparse layers
    "mixtral": ("MixtralForCausalLM", "mistral"),
    "olmoe": ("OlmoeForCausalLM", "llama"),
    "qwen2_moe": ("Qwen2MoeForCausalLM", "qwen2"),
    "qwen3_moe": ("Qwen3MoeForCausalLM", "qwen3"),
    "sparse_llama": ("SparseLlama", "llama"),  # ours, for all else: transformers has no such model, and says so
}

_PAIRS = llama.PAIRS | {
    "blocks.{}.mlp.router.weight": "model.layers.{}.mlp.gate.weight",
    "blocks.{}.mlp.router.selection_bias": "model.layers.{}.mlp.gate.e_score_correction_bias",
    "blocks.{}.mlp.experts.up": "model.layers.{}.mlp.experts.gate_up_proj",
    "blocks.{}.mlp.experts.down": "model.layers.{}.mlp.experts.down_proj",
    "blocks.{}.mlp.shared.gate.weight": "model.layers.{}.mlp.shared_expert.gate_proj.weight",
    "blocks.{}.mlp.shared.up.weight": "model.layers.{}.mlp.shared_expert.up_proj.weight",
    "blocks.{}.mlp.shared.down.weight": "model.layers.{}.mlp.shared_expert.down_proj.weight",
    "blocks.{}.mlp.shared_gate.weight": "model.layers.{}.mlp.shared_expert_gate.weight",
}
NAMES = NameTable(_PAIRS, llama.IGNORABLE, layout=SPLIT_LAYOUT)
MIXTRAL_NAMES = NameTable(_PAIRS, llama.IGNORABLE, layout=MIXTRAL_LAYOUT)


@dataclass(frozen=True, slots=True, kw_only=True)
class SparseLlamaConfig:
    """A Llama's configuration, and that of its sparse layers.

    Raises:
        ConfigError: values that do not fit each other, or that the layout of `model_type` has no words for.
    """

    model_type: str = "sparse_llama"  # as whom it is saved
    dense: LlamaConfig  # everything but the sparse layers; its intermediate_size is that of dense layers
    router: RouterConfig
    expert_size: int
    shared_size: int = 0  # of the expert that every token goes through; 0: there is none
    has_shared_gate: bool = False
    dense_layers: tuple[int, ...] = ()  # which have no router

    def __post_init__(self) -> None:
        if self.model_type not in MODEL_TYPES:
            raise ConfigError(f"model_type={self.model_type!r} is not of the sparse family; known: {', '.join(MODEL_TYPES)}")
        if self.has_shared_gate and not self.shared_size:
            raise ConfigError("has_shared_gate=True is the gate of a shared expert, and shared_size=0 says that there is none")
        if any(not 0 <= layer < self.dense.num_layers for layer in self.dense_layers):
            raise ConfigError(f"dense_layers={self.dense_layers} names a layer that is not one of the {self.dense.num_layers}")
        if self.model_type != "sparse_llama" and (misfits := self._misfits()):
            raise ConfigError(
                f"the layout of {self.model_type} has no words for {', '.join(misfits)}; leave them out, or use model_type='sparse_llama'"
            )

    def _misfits(self) -> list[str]:
        router, default = self.router, RouterConfig(num_experts=1, top_k=1)
        misfits = [
            f"{name}={getattr(router, name)!r}"
            for name in ("gate", "scale", "chooser", "has_selection_bias")
            if getattr(router, name) != getattr(default, name)
        ]
        if self.model_type == "mixtral" and not router.is_normalized:
            misfits.append("is_normalized=False")
        if self.model_type in ("mixtral", "olmoe") and self.dense_layers:
            misfits.append(f"dense_layers={self.dense_layers}")
        if (self.model_type == "qwen2_moe") != (self.shared_size > 0 and self.has_shared_gate):
            misfits.append(f"shared_size={self.shared_size}, has_shared_gate={self.has_shared_gate}")
        if self.dense.model_type != MODEL_TYPES[self.model_type][1]:
            misfits.append(f"dense.model_type={self.dense.model_type!r}")
        if self.dense.is_qk_norm_joint != (self.model_type == "olmoe"):
            misfits.append(f"is_qk_norm_joint={self.dense.is_qk_norm_joint}")
        return misfits

    @property
    def vocab_size(self) -> int:
        return self.dense.vocab_size

    @property
    def hidden_size(self) -> int:
        return self.dense.hidden_size

    @property
    def num_layers(self) -> int:
        return self.dense.num_layers

    @property
    def num_heads(self) -> int:
        return self.dense.num_heads

    @property
    def num_kv_heads(self) -> int:
        return self.dense.num_kv_heads

    @property
    def head_dim(self) -> int:
        return self.dense.head_dim

    @property
    def max_positions(self) -> int:
        return self.dense.max_positions

    @property
    def is_tied(self) -> bool:
        return self.dense.is_tied

    @property
    def sparse_layers(self) -> tuple[int, ...]:
        """The layers that have a router."""
        return tuple(layer for layer in range(self.num_layers) if layer not in self.dense_layers)

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> Self:
        """Read the content of config.json, with transformers' defaults where it is silent.

        Raises:
            ConfigError: a required size is missing, or a value is not supported.
        """
        model_type = config.get("model_type")
        if model_type not in MODEL_TYPES:
            raise ConfigError(f"model_type {model_type!r} is not of the sparse family; known: {', '.join(MODEL_TYPES)}")
        if model_type == "sparse_llama":
            return cls._from_ours(config)
        num_experts = config.get("num_local_experts", config.get("num_experts"))
        default_experts, default_top_k = {"mixtral": (8, 2), "olmoe": (64, 8), "qwen2_moe": (60, 4), "qwen3_moe": (128, 8)}[model_type]
        size_key = "intermediate_size" if model_type in ("mixtral", "olmoe") else "moe_intermediate_size"
        default_size = {"mixtral": 14_336, "olmoe": 2048, "qwen2_moe": 1408, "qwen3_moe": 768}[model_type]
        is_qwen2 = model_type == "qwen2_moe"
        return cls(
            model_type=model_type,
            dense=_dense_from_hf(config, model_type),
            router=RouterConfig(
                num_experts=default_experts if num_experts is None else num_experts,
                top_k=config.get("num_experts_per_tok", default_top_k),
                is_normalized=model_type == "mixtral" or config.get("norm_topk_prob", False),
                jitter=config.get("router_jitter_noise", 0.0) if model_type == "mixtral" else 0.0,
                precision="model",
            ),
            expert_size=config.get(size_key, default_size),
            shared_size=config.get("shared_expert_intermediate_size", 5632) if is_qwen2 else 0,
            has_shared_gate=is_qwen2,
            dense_layers=_dense_layers_from_hf(config, model_type),
        )

    @classmethod
    def _from_ours(cls, config: Mapping[str, Any]) -> Self:
        try:
            router, dense = dict(config["router"]), dict(config["dense"])
            capacity = router.pop("capacity")
            norms = {name: dense.pop(name) for name in ("qk_norm", "is_qk_norm_joint", "qkv_clip")}
            return cls(
                dense=replace(LlamaConfig.from_hf(dense), **norms),
                router=RouterConfig(**router, capacity=None if capacity is None else Capacity(**capacity)),
                expert_size=config["expert_size"],
                shared_size=config["shared_size"],
                has_shared_gate=config["has_shared_gate"],
                dense_layers=tuple(config["dense_layers"]),
            )
        except KeyError as error:
            raise ConfigError(f"config.json of a sparse_llama model lacks {error}") from error

    def to_hf(self) -> dict[str, Any]:
        """The content of config.json. `from_hf` of it gives this config again, but for what matters in training alone where the layout
        is not ours: capacity, jitter and the router's precision.
        """
        config = self.dense.to_hf()
        if self.model_type == "sparse_llama":
            dense = config | {
                "qk_norm": self.dense.qk_norm,
                "is_qk_norm_joint": self.dense.is_qk_norm_joint,
                "qkv_clip": self.dense.qkv_clip,
            }
            return {
                "architectures": [MODEL_TYPES[self.model_type][0]],
                "model_type": self.model_type,
                "vocab_size": self.vocab_size,
                "hidden_size": self.hidden_size,
                "num_hidden_layers": self.num_layers,
                "dense": dense,
                "router": asdict(self.router),
                "expert_size": self.expert_size,
                "shared_size": self.shared_size,
                "has_shared_gate": self.has_shared_gate,
                "dense_layers": list(self.dense_layers),
            }
        router = self.router
        config |= {"architectures": [MODEL_TYPES[self.model_type][0]], "model_type": self.model_type, "num_experts_per_tok": router.top_k}
        own: dict[str, Any]
        match self.model_type:
            case "mixtral":
                own = {"num_local_experts": router.num_experts, "intermediate_size": self.expert_size, "router_jitter_noise": router.jitter}
            case "olmoe":
                own = {"num_experts": router.num_experts, "intermediate_size": self.expert_size, "clip_qkv": self.dense.qkv_clip}
            case _:
                own = {
                    "num_experts" if self.model_type == "qwen2_moe" else "num_local_experts": router.num_experts,
                    "moe_intermediate_size": self.expert_size,
                    "mlp_only_layers": list(self.dense_layers),
                    "decoder_sparse_step": 1,
                }
        if self.model_type == "qwen2_moe":
            own |= {"shared_expert_intermediate_size": self.shared_size, "qkv_bias": self.dense.qkv_bias}
        if self.model_type != "mixtral":
            own |= {"norm_topk_prob": router.is_normalized}
        return config | own


def _dense_from_hf(config: Mapping[str, Any], model_type: str) -> LlamaConfig:
    """The Llama that a sparse model is but for its sparse layers."""
    content = {**config, "model_type": MODEL_TYPES[model_type][1]}
    num_heads, num_layers = config.get("num_attention_heads", 0), config.get("num_hidden_layers", 0)
    content["head_dim"] = config.get("head_dim") or config.get("hidden_size", 0) // max(num_heads, 1)
    match model_type:
        case "mixtral":
            content.setdefault("sliding_window", None)
            content.setdefault("rms_norm_eps", 1e-5)
            if not config.get("rope_parameters"):
                content.setdefault("rope_theta", 1e6)
            return LlamaConfig.from_hf(content)
        case "olmoe":
            content |= {"mlp_bias": False, "rms_norm_eps": config.get("rms_norm_eps", 1e-5)}
            content.setdefault("max_position_embeddings", 4096)
            return replace(LlamaConfig.from_hf(content), qk_norm=True, is_qk_norm_joint=True, qkv_clip=config.get("clip_qkv"))
        case "qwen2_moe":
            content.setdefault("num_key_value_heads", 16)
            if not config.get("layer_types"):  # unlike Qwen2, every other layer
                slides = [layer % 2 == 0 and layer < config.get("max_window_layers", 28) for layer in range(num_layers)]
                content["layer_types"] = ["sliding_attention" if slide else "full_attention" for slide in slides]
            return replace(LlamaConfig.from_hf(content), qkv_bias=config.get("qkv_bias", True))
        case _:
            content.setdefault("num_key_value_heads", 4)
            content["layer_types"] = ["sliding_attention"] * num_layers  # where a window is used at all
            return LlamaConfig.from_hf(content)


def _dense_layers_from_hf(config: Mapping[str, Any], model_type: str) -> tuple[int, ...]:
    if model_type in ("mixtral", "olmoe"):
        return ()
    step, listed = config.get("decoder_sparse_step", 1), config.get("mlp_only_layers") or ()
    return tuple(layer for layer in range(config["num_hidden_layers"]) if layer in listed or (layer + 1) % step)


class SparseLlama(DecoderStack):
    """A `LanguageModel` of the family."""

    norm: RMSNorm

    def __init__(self, config: SparseLlamaConfig) -> None:
        super().__init__(
            nn.Embedding(config.vocab_size, config.hidden_size),
            Rope(config.dense.rope, config.max_positions),
            (LlamaBlock(config.dense, layer, _mlp(config, layer)) for layer in range(config.num_layers)),
            RMSNorm(config.hidden_size, config.dense.norm_eps),
            is_tied=config.is_tied,
        )
        self.config = config


def _mlp(config: SparseLlamaConfig, layer: int) -> nn.Module:
    if layer in config.dense_layers:
        return LlamaMLP(config.dense)
    return SparseMLP(
        Router(config.router, config.hidden_size, layer),
        Experts(config.router.num_experts, config.hidden_size, config.expert_size),
        LlamaMLP(replace(config.dense, intermediate_size=config.shared_size, mlp_bias=False)) if config.shared_size else None,
        nn.Linear(config.hidden_size, 1, bias=False) if config.has_shared_gate else None,
    )
