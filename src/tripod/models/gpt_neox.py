"""GPT-NeoX (Black et al. 2022, arXiv:2204.06745), the architecture of Pythia (Biderman et al. 2023, arXiv:2304.01373)."""

# D hidden size, F feed-forward size, H heads, K head size, V vocabulary; "..." any leading dimensions

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor, nn

from tripod.errors import ConfigError
from tripod.models.activation import activation
from tripod.models.decoder_stack import DecoderStack
from tripod.models.names import NameTable
from tripod.models.rope_config import rope_from_hf, rope_to_hf
from tripod.ops.attention import Attend
from tripod.ops.rope import Rope, RopeConfig, rotate

NAMES = NameTable(
    {
        "embedding.weight": "gpt_neox.embed_in.weight",
        "blocks.{}.attention_norm.weight": "gpt_neox.layers.{}.input_layernorm.weight",
        "blocks.{}.attention_norm.bias": "gpt_neox.layers.{}.input_layernorm.bias",
        "blocks.{}.attention.query_key_value.weight": "gpt_neox.layers.{}.attention.query_key_value.weight",
        "blocks.{}.attention.query_key_value.bias": "gpt_neox.layers.{}.attention.query_key_value.bias",
        "blocks.{}.attention.output.weight": "gpt_neox.layers.{}.attention.dense.weight",
        "blocks.{}.attention.output.bias": "gpt_neox.layers.{}.attention.dense.bias",
        "blocks.{}.mlp_norm.weight": "gpt_neox.layers.{}.post_attention_layernorm.weight",
        "blocks.{}.mlp_norm.bias": "gpt_neox.layers.{}.post_attention_layernorm.bias",
        "blocks.{}.mlp.up.weight": "gpt_neox.layers.{}.mlp.dense_h_to_4h.weight",
        "blocks.{}.mlp.up.bias": "gpt_neox.layers.{}.mlp.dense_h_to_4h.bias",
        "blocks.{}.mlp.down.weight": "gpt_neox.layers.{}.mlp.dense_4h_to_h.weight",
        "blocks.{}.mlp.down.bias": "gpt_neox.layers.{}.mlp.dense_4h_to_h.bias",
        "norm.weight": "gpt_neox.final_layer_norm.weight",
        "norm.bias": "gpt_neox.final_layer_norm.bias",
        "head.weight": "embed_out.weight",
    },
    ignorable=(  # the causal mask and the rotary table, which older versions of transformers saved with the weights
        r"gpt_neox\.layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)",
        r"gpt_neox\.rotary_emb\.inv_freq",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class GPTNeoXConfig:
    """The sizes of a GPT-NeoX.

    Raises:
        ConfigError: sizes that do not fit each other, or an activation that we do not have.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    max_positions: int
    rope: RopeConfig  # a quarter of each head in Pythia
    norm_eps: float = 1e-5
    hidden_act: str = "gelu"
    is_parallel: bool = True  # attention and MLP side by side, not one after the other
    attention_bias: bool = True
    is_tied: bool = False  # the output matrix is the embedding

    def __post_init__(self) -> None:
        if self.num_heads < 1 or self.hidden_size % self.num_heads:
            raise ConfigError(f"num_heads={self.num_heads} does not divide hidden_size={self.hidden_size}")
        if self.rope.rotary_dim > self.head_dim:
            raise ConfigError(f"rotary_dim={self.rope.rotary_dim} is larger than head_dim={self.head_dim}")
        activation(self.hidden_act)

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def num_kv_heads(self) -> int:
        return self.num_heads

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> Self:
        """Read the content of config.json, with transformers' defaults where it is silent.

        Raises:
            ConfigError: a required size is missing, or a value is not supported.
        """
        for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
            if not isinstance(config.get(key), int):
                raise ConfigError(f"config.json of a gpt_neox model gives {key}={config.get(key)!r}; expected a whole number")
        max_positions = config.get("max_position_embeddings", 2048)
        return cls(
            vocab_size=config["vocab_size"],
            hidden_size=config["hidden_size"],
            intermediate_size=config["intermediate_size"],
            num_layers=config["num_hidden_layers"],
            num_heads=config["num_attention_heads"],
            max_positions=max_positions,
            rope=rope_from_hf(
                config,
                head_dim=config["hidden_size"] // max(config["num_attention_heads"], 1),
                max_positions=max_positions,
                theta_key="rotary_emb_base",
                fraction_key="rotary_pct",
                default_fraction=0.25,
            ),
            norm_eps=float(config.get("layer_norm_eps", 1e-5)),
            hidden_act=config.get("hidden_act", "gelu"),
            is_parallel=config.get("use_parallel_residual", True),
            attention_bias=config.get("attention_bias", True),
            is_tied=config.get("tie_word_embeddings", False),
        )

    def to_hf(self) -> dict[str, Any]:
        """The content of config.json; `from_hf` of it gives this config again."""
        return {
            "architectures": ["GPTNeoXForCausalLM"],
            "model_type": "gpt_neox",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "max_position_embeddings": self.max_positions,
            "rope_parameters": rope_to_hf(self.rope, head_dim=self.head_dim),
            "rotary_emb_base": self.rope.theta,  # the older spelling, which other programs still read
            "rotary_pct": self.rope.rotary_dim / self.head_dim,
            "layer_norm_eps": self.norm_eps,
            "hidden_act": self.hidden_act,
            "use_parallel_residual": self.is_parallel,
            "attention_bias": self.attention_bias,
            "tie_word_embeddings": self.is_tied,
        }


class GPTNeoXAttention(nn.Module):
    """Multi-head attention. One matrix makes query, key and value, head by head: [H, 3, K] rows."""

    def __init__(self, config: GPTNeoXConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.num_heads = config.num_heads
        self.scale = config.head_dim**-0.5
        self.query_key_value = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=config.attention_bias)
        self.output = nn.Linear(config.hidden_size, config.hidden_size, bias=config.attention_bias)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:  # [..., D] -> [..., D]
        query, key, value = self.query_key_value(x).unflatten(-1, (self.num_heads, -1)).chunk(3, dim=-1)  # each [..., H, K]
        seen = attend(self.layer, rotate(query, cos, sin), rotate(key, cos, sin), value, scale=self.scale)
        return self.output(seen.flatten(-2))  # type: ignore[no-any-return]


class GPTNeoXMLP(nn.Module):
    def __init__(self, config: GPTNeoXConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.hidden_size, config.intermediate_size)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size)
        self.activation = activation(config.hidden_act)

    def forward(self, x: Tensor) -> Tensor:  # [..., D] -> [..., D]
        return self.down(self.activation(self.up(x)))  # type: ignore[no-any-return]


class GPTNeoXBlock(nn.Module):
    """Parallel residual: x + Attention(LN1 x) + MLP(LN2 x). Otherwise one after the other, as in GPT-2."""

    def __init__(self, config: GPTNeoXConfig, layer: int) -> None:
        super().__init__()
        self.is_parallel = config.is_parallel
        self.attention_norm = nn.LayerNorm(config.hidden_size, config.norm_eps)
        self.attention = GPTNeoXAttention(config, layer)
        self.mlp_norm = nn.LayerNorm(config.hidden_size, config.norm_eps)
        self.mlp = GPTNeoXMLP(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:  # [..., D] -> [..., D]
        attended = self.attention(self.attention_norm(x), cos, sin, attend)
        if self.is_parallel:
            return x + attended + self.mlp(self.mlp_norm(x))  # type: ignore[no-any-return]
        x = x + attended
        return x + self.mlp(self.mlp_norm(x))  # type: ignore[no-any-return]


class GPTNeoX(DecoderStack):
    """A `LanguageModel`."""

    norm: nn.LayerNorm

    def __init__(self, config: GPTNeoXConfig) -> None:
        super().__init__(
            nn.Embedding(config.vocab_size, config.hidden_size),
            Rope(config.rope, config.max_positions),
            (GPTNeoXBlock(config, layer) for layer in range(config.num_layers)),
            nn.LayerNorm(config.hidden_size, config.norm_eps),
            is_tied=config.is_tied,
        )
        self.config = config
