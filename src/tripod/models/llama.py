"""The Llama family: Llama 2 and 3, Mistral, Qwen2, Qwen3, SmolLM. One pre-norm transformer, told apart by its config.

Llama (Touvron et al. 2023, arXiv:2302.13971, 2307.09288), Mistral 7B (arXiv:2310.06825: sliding window), Qwen2
(arXiv:2407.10671: biases on query, key and value), Qwen3 (arXiv:2505.09388: norms on query and key).
"""

# D hidden size, F feed-forward size, H query heads, G key/value heads, K head size, V vocabulary; "..." any leading dimensions

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from tripod.errors import ConfigError
from tripod.models.decoder_stack import DecoderStack
from tripod.models.names import NameTable
from tripod.models.rope_config import rope_from_hf, rope_to_hf
from tripod.ops.attention import Attend
from tripod.ops.rms_norm import rms_norm
from tripod.ops.rope import Rope, RopeConfig, rotate

MODEL_TYPES = {  # model_type in config.json -> the architecture that transformers opens it with
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}

PAIRS = {  # our name -> that in the Hugging Face layout
    "embedding.weight": "model.embed_tokens.weight",
    "blocks.{}.attention_norm.weight": "model.layers.{}.input_layernorm.weight",
    "blocks.{}.attention.query.weight": "model.layers.{}.self_attn.q_proj.weight",
    "blocks.{}.attention.query.bias": "model.layers.{}.self_attn.q_proj.bias",
    "blocks.{}.attention.key.weight": "model.layers.{}.self_attn.k_proj.weight",
    "blocks.{}.attention.key.bias": "model.layers.{}.self_attn.k_proj.bias",
    "blocks.{}.attention.value.weight": "model.layers.{}.self_attn.v_proj.weight",
    "blocks.{}.attention.value.bias": "model.layers.{}.self_attn.v_proj.bias",
    "blocks.{}.attention.query_norm.weight": "model.layers.{}.self_attn.q_norm.weight",
    "blocks.{}.attention.key_norm.weight": "model.layers.{}.self_attn.k_norm.weight",
    "blocks.{}.attention.output.weight": "model.layers.{}.self_attn.o_proj.weight",
    "blocks.{}.attention.output.bias": "model.layers.{}.self_attn.o_proj.bias",
    "blocks.{}.mlp_norm.weight": "model.layers.{}.post_attention_layernorm.weight",
    "blocks.{}.mlp.gate.weight": "model.layers.{}.mlp.gate_proj.weight",
    "blocks.{}.mlp.gate.bias": "model.layers.{}.mlp.gate_proj.bias",
    "blocks.{}.mlp.up.weight": "model.layers.{}.mlp.up_proj.weight",
    "blocks.{}.mlp.up.bias": "model.layers.{}.mlp.up_proj.bias",
    "blocks.{}.mlp.down.weight": "model.layers.{}.mlp.down_proj.weight",
    "blocks.{}.mlp.down.bias": "model.layers.{}.mlp.down_proj.bias",
    "norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
}
IGNORABLE = (r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq", r"model\.rotary_emb\.inv_freq")
NAMES = NameTable(PAIRS, IGNORABLE)


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaConfig:
    """What tells the members of the family apart.

    Raises:
        ConfigError: sizes that do not fit each other, or a value that these models do not have.
    """

    model_type: str = "llama"  # as whom it is saved
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int  # < num_heads: grouped-query attention (arXiv:2305.13245)
    head_dim: int
    max_positions: int
    rope: RopeConfig
    norm_eps: float = 1e-6
    is_tied: bool = False  # the output matrix is the embedding
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False  # RMSNorm on each head of query and key, before the rotation
    is_qk_norm_joint: bool = False  # that norm is over all heads at once (OLMoE)
    qkv_clip: float | None = None  # query, key and value are kept within plus and minus this (OLMoE); None: as they are
    windows: tuple[int | None, ...] = ()  # by layer, the tokens that a query sees; () is all tokens in all layers

    def __post_init__(self) -> None:
        if self.model_type not in MODEL_TYPES:
            raise ConfigError(f"model_type={self.model_type!r} is not of the Llama family; known: {', '.join(MODEL_TYPES)}")
        if self.num_kv_heads < 1 or self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"num_kv_heads={self.num_kv_heads} does not divide num_heads={self.num_heads}; "
                f"use a divisor such as 1 (multi-query) or {self.num_heads} (multi-head)"
            )
        if self.rope.rotary_dim > self.head_dim:
            raise ConfigError(f"rotary_dim={self.rope.rotary_dim} is larger than head_dim={self.head_dim}")
        if self.is_qk_norm_joint and not self.qk_norm:
            raise ConfigError("is_qk_norm_joint=True says how qk_norm works, and qk_norm is False; set both")
        if self.windows and len(self.windows) != self.num_layers:
            raise ConfigError(f"windows has {len(self.windows)} entries; give one for each of the {self.num_layers} layers, or none")

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> Self:
        """Read the content of config.json, with transformers' defaults where it is silent.

        Raises:
            ConfigError: a required size is missing, or a value is not supported.
        """
        model_type = config.get("model_type")
        if model_type not in MODEL_TYPES:
            raise ConfigError(f"model_type {model_type!r} is not of the Llama family; known: {', '.join(MODEL_TYPES)}")
        for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
            if not isinstance(config.get(key), int):
                raise ConfigError(f"config.json of a {model_type} model gives {key}={config.get(key)!r}; expected a whole number")
        if config.get("hidden_act", "silu") not in ("silu", "swish"):
            raise ConfigError(f"hidden_act {config['hidden_act']!r} of a {model_type} model is not supported; supported: silu")
        num_heads = config["num_attention_heads"]
        default_kv_heads = {"llama": num_heads, "mistral": 8, "qwen2": 32, "qwen3": 32}[model_type]
        default_head_dim = 128 if model_type == "qwen3" else config["hidden_size"] // num_heads
        head_dim = config.get("head_dim") or default_head_dim
        max_positions = config.get("max_position_embeddings") or {"llama": 2048, "mistral": 131_072}.get(model_type, 32_768)
        has_bias = bool(config.get("attention_bias", False)) and model_type in ("llama", "qwen3")
        return cls(
            model_type=model_type,
            vocab_size=config["vocab_size"],
            hidden_size=config["hidden_size"],
            intermediate_size=config["intermediate_size"],
            num_layers=config["num_hidden_layers"],
            num_heads=num_heads,
            num_kv_heads=(config["num_key_value_heads"] or num_heads) if "num_key_value_heads" in config else default_kv_heads,
            head_dim=head_dim,
            max_positions=max_positions,
            rope=rope_from_hf(config, head_dim=head_dim, max_positions=max_positions),
            norm_eps=float(config.get("rms_norm_eps", 1e-6)),
            is_tied=config.get("tie_word_embeddings", False),
            qkv_bias=has_bias or model_type == "qwen2",
            output_bias=has_bias,
            mlp_bias=bool(config.get("mlp_bias", False)) and model_type == "llama",
            qk_norm=model_type == "qwen3",
            windows=_windows_from_hf(config, model_type),
        )

    def to_hf(self) -> dict[str, Any]:
        """The content of config.json; `from_hf` of it gives this config again."""
        config: dict[str, Any] = {
            "architectures": [MODEL_TYPES[self.model_type]],
            "model_type": self.model_type,
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "max_position_embeddings": self.max_positions,
            "hidden_act": "silu",
            "rms_norm_eps": self.norm_eps,
            "rope_parameters": rope_to_hf(self.rope, head_dim=self.head_dim),
            "tie_word_embeddings": self.is_tied,
        }
        window = next((window for window in self.windows if window is not None), None)
        match self.model_type:
            case "llama":
                config |= {"attention_bias": self.output_bias, "mlp_bias": self.mlp_bias}
            case "mistral":
                config |= {"sliding_window": window}
            case _:
                kinds = ["full_attention" if w is None else "sliding_attention" for w in self.windows or [None] * self.num_layers]
                config |= {"use_sliding_window": window is not None, "sliding_window": window, "layer_types": kinds}
                if self.model_type == "qwen3":
                    config |= {"attention_bias": self.output_bias}
        return config


def _windows_from_hf(config: Mapping[str, Any], model_type: str) -> tuple[int | None, ...]:
    """Mistral slides in every layer; the Qwens, when told to, in the layers that are listed or from a layer on."""
    num_layers = config["num_hidden_layers"]
    window = config.get("sliding_window", 4096)
    if model_type == "mistral":
        return (window,) * num_layers if window else ()
    if model_type == "llama" or not config.get("use_sliding_window", False) or not window:
        return ()
    first = config.get("max_window_layers", 28)
    kinds = config.get("layer_types") or ["full_attention"] * first + ["sliding_attention"] * (num_layers - first)
    return tuple(window if kind == "sliding_attention" else None for kind in kinds[:num_layers])


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:  # [..., D] -> [..., D]
        return rms_norm(x, self.weight, self.eps)


class LlamaAttention(nn.Module):
    """Grouped-query attention; query and key are rotated, and in Qwen3 normalised before."""

    def __init__(self, config: LlamaConfig, layer: int, *, scale: float | None = None) -> None:
        """scale: factor on the dot products; None: 1 / sqrt(K)."""
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        self.scale = config.head_dim**-0.5 if scale is None else scale
        self.window = config.windows[layer] if config.windows else None
        query_size, key_size = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.query = nn.Linear(config.hidden_size, query_size, bias=config.qkv_bias)
        self.key = nn.Linear(config.hidden_size, key_size, bias=config.qkv_bias)
        self.value = nn.Linear(config.hidden_size, key_size, bias=config.qkv_bias)
        self.output = nn.Linear(query_size, config.hidden_size, bias=config.output_bias)
        is_joint = config.is_qk_norm_joint
        self.query_norm = RMSNorm(query_size if is_joint else config.head_dim, config.norm_eps) if config.qk_norm else nn.Identity()
        self.key_norm = RMSNorm(key_size if is_joint else config.head_dim, config.norm_eps) if config.qk_norm else nn.Identity()
        self.is_norm_joint, self.clip = is_joint, config.qkv_clip

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:  # [..., D] -> [..., D]
        query, key, value = self.query(x), self.key(x), self.value(x)
        if self.is_norm_joint:
            query, key = self.query_norm(query), self.key_norm(key)
        if self.clip is not None:
            query, key, value = (part.clamp(-self.clip, self.clip) for part in (query, key, value))
        query, key, value = (part.unflatten(-1, (-1, self.head_dim)) for part in (query, key, value))  # [..., H, K], [..., G, K] twice
        if not self.is_norm_joint:
            query, key = self.query_norm(query), self.key_norm(key)
        seen = attend(self.layer, rotate(query, cos, sin), rotate(key, cos, sin), value, scale=self.scale, window=self.window)
        return self.output(seen.flatten(-2))  # type: ignore[no-any-return]


class LlamaMLP(nn.Module):
    """SwiGLU: down(silu(gate x) * up x) (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.up = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:  # [..., D] -> [..., D]
        return self.down(silu(self.gate(x)) * self.up(x))  # type: ignore[no-any-return]


class LlamaBlock(nn.Module):
    """x + Attention(norm x), then x + MLP(norm x)."""

    def __init__(self, config: LlamaConfig, layer: int, mlp: nn.Module | None = None) -> None:
        """mlp: None: a `LlamaMLP`."""
        super().__init__()
        self.attention_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.attention = LlamaAttention(config, layer)
        self.mlp_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.mlp = LlamaMLP(config) if mlp is None else mlp

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:  # [..., D] -> [..., D]
        x = x + self.attention(self.attention_norm(x), cos, sin, attend)
        return x + self.mlp(self.mlp_norm(x))  # type: ignore[no-any-return]


class Llama(DecoderStack):
    """A `LanguageModel` of the family."""

    norm: RMSNorm

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(
            nn.Embedding(config.vocab_size, config.hidden_size),
            Rope(config.rope, config.max_positions),
            (LlamaBlock(config, layer) for layer in range(config.num_layers)),
            RMSNorm(config.hidden_size, config.norm_eps),
            is_tied=config.is_tied,
        )
        self.config = config
