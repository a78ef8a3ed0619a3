"""BERT (Devlin et al. 2018, arXiv:1810.04805), the encoder inside MiniLM, BGE and E5. Pooling lives in `engine/encode.py`.

The sums between blocks and the norms are float32 whatever the weights are: with bfloat16 matrices that costs little time
and makes the error of a text's vector several times smaller. Matrix products are in the dtype of the weights.
"""

# D hidden size, F feed-forward size, H heads, K head size; "..." any leading dimensions

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from tripod.errors import ConfigError
from tripod.models.activation import activation
from tripod.models.names import NameTable
from tripod.ops.attention import Attend

NAMES = NameTable(
    {
        "embedding.token.weight": "embeddings.word_embeddings.weight",
        "embedding.position.weight": "embeddings.position_embeddings.weight",
        "embedding.token_type.weight": "embeddings.token_type_embeddings.weight",
        "embedding.norm.weight": "embeddings.LayerNorm.weight",
        "embedding.norm.bias": "embeddings.LayerNorm.bias",
        "blocks.{}.attention.query.weight": "encoder.layer.{}.attention.self.query.weight",
        "blocks.{}.attention.query.bias": "encoder.layer.{}.attention.self.query.bias",
        "blocks.{}.attention.key.weight": "encoder.layer.{}.attention.self.key.weight",
        "blocks.{}.attention.key.bias": "encoder.layer.{}.attention.self.key.bias",
        "blocks.{}.attention.value.weight": "encoder.layer.{}.attention.self.value.weight",
        "blocks.{}.attention.value.bias": "encoder.layer.{}.attention.self.value.bias",
        "blocks.{}.attention.output.weight": "encoder.layer.{}.attention.output.dense.weight",
        "blocks.{}.attention.output.bias": "encoder.layer.{}.attention.output.dense.bias",
        "blocks.{}.attention_norm.weight": "encoder.layer.{}.attention.output.LayerNorm.weight",
        "blocks.{}.attention_norm.bias": "encoder.layer.{}.attention.output.LayerNorm.bias",
        "blocks.{}.mlp.up.weight": "encoder.layer.{}.intermediate.dense.weight",
        "blocks.{}.mlp.up.bias": "encoder.layer.{}.intermediate.dense.bias",
        "blocks.{}.mlp.down.weight": "encoder.layer.{}.output.dense.weight",
        "blocks.{}.mlp.down.bias": "encoder.layer.{}.output.dense.bias",
        "blocks.{}.mlp_norm.weight": "encoder.layer.{}.output.LayerNorm.weight",
        "blocks.{}.mlp_norm.bias": "encoder.layer.{}.output.LayerNorm.bias",
    },
    ignorable=(
        r"embeddings\.position_ids",  # 0, 1, 2, ..., which older versions of transformers saved with the weights
        r"pooler\.dense\.(weight|bias)",  # heads of other tasks: an encoder ends with the last block
        r"cls\..*",
    ),
    optional_prefix="bert.",  # checkpoints of BertForMaskedLM and the like have it, those of BertModel do not
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BertConfig:
    """The sizes of a BERT.

    Raises:
        ConfigError: sizes that do not fit each other, or an activation that we do not have.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    max_positions: int
    num_token_types: int = 2
    norm_eps: float = 1e-12
    hidden_act: str = "gelu"

    def __post_init__(self) -> None:
        if self.num_heads < 1 or self.hidden_size % self.num_heads:
            raise ConfigError(f"num_heads={self.num_heads} does not divide hidden_size={self.hidden_size}")
        activation(self.hidden_act)

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> Self:
        """Read the content of config.json, with transformers' defaults where it is silent.

        Raises:
            ConfigError: a required size is missing, or a value is not supported.
        """
        for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
            if not isinstance(config.get(key), int):
                raise ConfigError(f"config.json of a bert model gives {key}={config.get(key)!r}; expected a whole number")
        if (kind := config.get("position_embedding_type", "absolute")) != "absolute":
            raise ConfigError(f"position_embedding_type {kind!r} is not supported; supported: absolute")
        return cls(
            vocab_size=config["vocab_size"],
            hidden_size=config["hidden_size"],
            intermediate_size=config["intermediate_size"],
            num_layers=config["num_hidden_layers"],
            num_heads=config["num_attention_heads"],
            max_positions=config.get("max_position_embeddings", 512),
            num_token_types=config.get("type_vocab_size", 2),
            norm_eps=float(config.get("layer_norm_eps", 1e-12)),
            hidden_act=config.get("hidden_act", "gelu"),
        )


class LayerNorm(nn.LayerNorm):
    """Layer normalisation (Ba et al. 2016, arXiv:1607.06450) of float32 numbers, by weights of any dtype."""

    def forward(self, x: Tensor) -> Tensor:  # [..., D] float32 -> [..., D] float32
        return layer_norm(x, self.normalized_shape, self.weight.float(), self.bias.float(), self.eps)


class BertEmbedding(nn.Module):
    """The sum of what a token is, where it stands and which of two texts it belongs to, normalised."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.token = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position = nn.Embedding(config.max_positions, config.hidden_size)
        self.token_type = nn.Embedding(config.num_token_types, config.hidden_size)
        self.norm = LayerNorm(config.hidden_size, config.norm_eps)

    def forward(self, token_ids: Tensor, positions: Tensor, token_types: Tensor | None) -> Tensor:  # [...] -> [..., D]
        kind = self.token_type.weight[0] if token_types is None else self.token_type(token_types)
        return self.norm(self.token(token_ids).float() + kind.float() + self.position(positions).float())  # type: ignore[no-any-return]


class BertAttention(nn.Module):
    def __init__(self, config: BertConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        self.scale = config.head_dim**-0.5
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)
        self.output = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor, attend: Attend) -> Tensor:  # [..., D] -> [..., D]
        x = x.to(self.output.weight.dtype)
        query, key, value = (project(x).unflatten(-1, (-1, self.head_dim)) for project in (self.query, self.key, self.value))
        return self.output(attend(self.layer, query, key, value, scale=self.scale).flatten(-2))  # type: ignore[no-any-return]


class BertMLP(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.hidden_size, config.intermediate_size)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size)
        self.activation = activation(config.hidden_act)

    def forward(self, x: Tensor) -> Tensor:  # [..., D] -> [..., D]
        return self.down(self.activation(self.up(x.to(self.up.weight.dtype))))  # type: ignore[no-any-return]


class BertBlock(nn.Module):
    """Norms after the sums, as in the first Transformer: LN(x + Attention x), then LN(x + MLP x)."""

    def __init__(self, config: BertConfig, layer: int) -> None:
        super().__init__()
        self.attention = BertAttention(config, layer)
        self.attention_norm = LayerNorm(config.hidden_size, config.norm_eps)
        self.mlp = BertMLP(config)
        self.mlp_norm = LayerNorm(config.hidden_size, config.norm_eps)

    def forward(self, x: Tensor, attend: Attend) -> Tensor:  # [..., D] -> [..., D]
        x = self.attention_norm(x + self.attention(x, attend))
        return self.mlp_norm(x + self.mlp(x))  # type: ignore[no-any-return]


class Bert(nn.Module):
    """The encoder: a state for each token, which has seen all tokens of its text."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = BertEmbedding(config)
        self.blocks = nn.ModuleList(BertBlock(config, layer) for layer in range(config.num_layers))

    @property
    def dtype(self) -> torch.dtype:
        return self.embedding.token.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.embedding.token.weight.device

    def hidden(self, token_ids: Tensor, positions: Tensor, attend: Attend, *, token_types: Tensor | None = None) -> Tensor:
        """The state of each token after the last block.

        Args:
            token_ids: [...], int64.
            positions: [...], int64: the place of each token in its own text, from 0, below max_positions.
            attend: which tokens see which; in an encoder all of one text see each other.
            token_types: [...], int64: which of two texts a token belongs to; None is the first, for all.

        Returns:
            [..., D] float32.
        """
        x = self.embedding(token_ids, positions, token_types)
        for block in self.blocks:
            x = block(x, attend)
        return x  # type: ignore[no-any-return]
