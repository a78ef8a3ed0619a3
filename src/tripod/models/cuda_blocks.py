"""Blocks over the kernels for GPUs: the same arithmetic as the model files', in a fifth of the launches.

Projections of the same row are joined, and what stands between products is done by one kernel: additions and norms, rotation and attention.
A step of a single row, which is the reading of all weights once, takes products in which that is done as well. The stream between blocks
is float32 whatever the weights are.
"""

# N tokens, D hidden size, F feed-forward size, H query heads, G key/value heads, K head size

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from tripod.models.gpt_neox import GPTNeoX, GPTNeoXBlock, GPTNeoXMLP
from tripod.models.language_model import LanguageModel, LanguageModelConfig
from tripod.models.llama import Llama, LlamaBlock, LlamaMLP, RMSNorm
from tripod.models.moe import SparseMLP
from tripod.models.sparse_llama import SparseLlama
from tripod.ops.attention import Attend
from tripod.ops.kernels.cuda.page_attention import PageAttention
from tripod.ops.kernels.cuda.paged_attention import Turn
from tripod.ops.kernels.cuda.row_linear import ROWS, linear_add, norm_linear
from tripod.ops.kernels.cuda.rows import Activation, Norms, activate, add_norm
from tripod.ops.kernels.gpu import is_for_gpu

ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu_erf",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
}


class _Stream:
    """The sum that runs through the layers, [N, D] in float32, and a product that is still to be added to it."""

    def __init__(self, x: Tensor, dtype: torch.dtype) -> None:
        self.x = x
        self.dtype = dtype
        self._pending: tuple[Tensor | None, Tensor | None] = (None, None)

    @property
    def is_row(self) -> bool:
        return len(self.x) == 1

    def empty(self, size: int) -> Tensor:
        return torch.empty(len(self.x), size, dtype=self.dtype, device=self.x.device)

    def normed(self, norms: Norms) -> Tensor:
        """[S, N, D]."""
        pending, self._pending = self._pending, (None, None)
        return add_norm(self.x, norms, self.dtype, *pending)

    def add(self, rows: Tensor) -> None:
        """[N, D]."""
        if self.is_row:
            self.x.add_(rows)
        else:
            self._pending = (rows, None)

    def add_product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
        if self.is_row:
            linear_add(self.x, x, weight, bias)
        else:
            self._pending = (linear(x, weight), bias)


class _Heads:
    """Where query, key and value stand in a row of their joint projection, and how they attend."""

    def __init__(
        self,
        layer: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        *,
        scale: float,
        window: int | None,
        is_interleaved: bool,
        turn: Turn,
    ) -> None:
        self.layer, self.num_heads, self.num_kv_heads, self.head_dim = layer, num_heads, num_kv_heads, head_dim
        self.scale, self.window = scale, window
        self.is_interleaved = is_interleaved  # head by head: query, key, value; else all queries, all keys, all values
        self.turn = turn

    def attend(self, joined: Tensor, out: Tensor, attend: PageAttention) -> None:
        """[N, (H + 2 G) K] -> [N, H K]."""
        if self.is_interleaved:
            query, key, value = joined.view(len(joined), self.num_heads, 3, self.head_dim).unbind(2)
        else:
            heads = joined.view(len(joined), -1, self.head_dim)
            query, key, value = torch.split(heads, [self.num_heads, self.num_kv_heads, self.num_kv_heads], dim=1)
        seen = out.view(len(out), self.num_heads, self.head_dim)
        attend.attend(self.layer, query, key, value, seen, scale=self.scale, window=self.window, turn=self.turn)


class ParallelBlock:
    """x + Attention(LN1 x) + MLP(LN2 x), as GPT-NeoX has it: two products with the stream, one with attention and activations together."""

    def __init__(self, block: GPTNeoXBlock, activation: Activation, heads: _Heads) -> None:
        attention, mlp = block.attention, block.mlp
        self.norms = _norms(block.attention_norm, block.mlp_norm)
        self.activation, self.heads = activation, heads
        self.num_joined = attention.query_key_value.out_features
        self.weight, self.bias = _stacked(attention.query_key_value, mlp.up)
        self.out_weight = torch.cat((attention.output.weight, mlp.down.weight), dim=1)
        bias = mlp.down.bias.float()
        self.out_bias = bias if attention.output.bias is None else bias + attention.output.bias.float()
        self.sizes = [attention.output.in_features, mlp.down.in_features]

    def __call__(self, stream: _Stream, attend: PageAttention) -> None:
        mixed = stream.empty(sum(self.sizes))
        attended, active = torch.split(mixed, self.sizes, dim=1)
        if stream.is_row:
            joined = stream.empty(self.num_joined)
            norm_linear(stream.x, self.norms, self.weight, self.bias, joined, active, self.activation)
        else:
            parts = [self.num_joined, self.sizes[1]]
            weights = torch.split(self.weight, parts)
            biases = (None, None) if self.bias is None else torch.split(self.bias, parts)
            first, second = stream.normed(self.norms)
            joined = linear(first, weights[0], biases[0])
            activate(linear(second, weights[1], biases[1]), self.activation, active, is_gated=False)
        self.heads.attend(joined, attended, attend)
        stream.add_product(mixed, self.out_weight, self.out_bias)


class _Attention:
    """x + Attention(norm x)."""

    def __init__(self, norm: nn.LayerNorm | RMSNorm, inputs: tuple[nn.Linear, ...], output: nn.Linear, heads: _Heads) -> None:
        self.norm, self.output, self.heads = _norms(norm), output, heads
        self.weight, self.bias = _stacked(*inputs)

    def add_to(self, stream: _Stream, attend: PageAttention) -> None:
        seen = stream.empty(self.output.in_features)
        if stream.is_row:
            joined = stream.empty(len(self.weight))
            norm_linear(stream.x, self.norm, self.weight, self.bias, joined, None)
        else:
            joined = linear(stream.normed(self.norm)[0], self.weight, self.bias)
        self.heads.attend(joined, seen, attend)
        stream.add_product(seen, self.output.weight, self.output.bias)


class _MLP:
    """x + MLP(norm x), where the MLP may be gated."""

    def __init__(self, norm: nn.LayerNorm | RMSNorm, mlp: GPTNeoXMLP | LlamaMLP, activation: Activation) -> None:
        self.norm, self.activation, self.down = _norms(norm), activation, mlp.down
        self.is_gated = isinstance(mlp, LlamaMLP)
        self.weight, self.bias = _stacked(mlp.gate, mlp.up) if isinstance(mlp, LlamaMLP) else _stacked(mlp.up)

    def add_to(self, stream: _Stream) -> None:
        active = stream.empty(self.down.in_features)
        if stream.is_row:
            norm_linear(stream.x, self.norm, self.weight, self.bias, None, active, self.activation, is_gated=self.is_gated)
        else:
            activate(linear(stream.normed(self.norm)[0], self.weight, self.bias), self.activation, active, is_gated=self.is_gated)
        stream.add_product(active, self.down.weight, self.down.bias)


class _SparseMLP:
    """x + SparseMLP(norm x)."""

    def __init__(self, norm: RMSNorm, sparse: SparseMLP) -> None:
        self.norm, self.sparse = _norms(norm), sparse

    def add_to(self, stream: _Stream) -> None:
        stream.add(self.sparse(stream.normed(self.norm)[0]))


class SerialBlock:
    """x + Attention(norm x), then x + MLP(norm x), where the MLP may be gated, or sparse."""

    def __init__(self, block: GPTNeoXBlock | LlamaBlock, activation: Activation, heads: _Heads) -> None:
        attention, mlp = block.attention, block.mlp
        if isinstance(block, LlamaBlock):
            inputs: tuple[nn.Linear, ...] = (block.attention.query, block.attention.key, block.attention.value)
        else:
            inputs = (block.attention.query_key_value,)
        self.attention = _Attention(block.attention_norm, inputs, attention.output, heads)
        if isinstance(mlp, SparseMLP):
            assert isinstance(block, LlamaBlock)
            self.mlp: _MLP | _SparseMLP = _SparseMLP(block.mlp_norm, mlp)
        else:
            assert isinstance(mlp, GPTNeoXMLP | LlamaMLP)
            self.mlp = _MLP(block.mlp_norm, mlp, activation)

    def __call__(self, stream: _Stream, attend: PageAttention) -> None:
        self.attention.add_to(stream, attend)
        self.mlp.add_to(stream)


class CudaModel:
    """A `LanguageModel` over pages: it attends by `PageAttention` only."""

    def __init__(self, model: GPTNeoX | Llama | SparseLlama) -> None:
        """The model itself stays as it is; joined weights are copies."""
        self.config: LanguageModelConfig = model.config
        self.dtype, self.device = model.dtype, model.device
        self._embedding = model.embedding
        self._head = model.embedding.weight if model.head is None else model.head.weight
        self._norm = _norms(model.norm)
        self._blocks = [_block(model, block) for block in model.blocks]

    def hidden(self, token_ids: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """[N] token ids and positions -> [N, D]. The positions are those of `attend`."""
        assert isinstance(attend, PageAttention)
        stream = _Stream(self._embedding(token_ids).float(), self.dtype)
        for block in self._blocks:
            block(stream, attend)
        return stream.normed(self._norm)[0]

    def logits(self, hidden: Tensor) -> Tensor:
        """[N, D] -> [N, V]."""
        return linear(hidden, self._head)


def why_not(model: LanguageModel) -> str | None:
    """Why a model cannot be run so; None where it can."""
    if isinstance(model, Llama | SparseLlama):
        blocks = [cast(LlamaBlock, block) for block in model.blocks]
        others = {type(block.mlp).__name__ for block in blocks if type(block.mlp) not in (LlamaMLP, SparseMLP)}
        if others:
            return f"its blocks hold {', '.join(sorted(others))}, not LlamaMLP or SparseMLP"
        if any(block.attention.is_norm_joint or block.attention.clip is not None for block in blocks):
            return "it norms all heads at once, or clips queries, keys and values"
        sparse = [block.mlp for block in blocks if isinstance(block.mlp, SparseMLP)]
        if any(mlp.router.config.chooser == "expert" for mlp in sparse):
            return "its experts choose among the tokens of a step"
        if model.device.type == "cuda" and not all(is_for_gpu(mlp.experts.up) for mlp in sparse):
            return f"there are no kernels for experts in {model.dtype} on this GPU"
        return None
    if not isinstance(model, GPTNeoX):
        return f"a {type(model).__name__} has no kernels of its own"
    if model.config.hidden_act not in ACTIVATIONS:
        return f"the kernels have no activation {model.config.hidden_act!r}"
    if 3 * model.config.hidden_size % ROWS:
        return f"hidden_size={model.config.hidden_size} is not a multiple of {ROWS}"
    return None


@torch.inference_mode()
def pack_cuda(model: LanguageModel) -> CudaModel:
    """The model over joined weights, on its device; one of which `why_not` says nothing."""
    assert isinstance(model, GPTNeoX | Llama | SparseLlama)
    return CudaModel(model)


def _block(model: GPTNeoX | Llama | SparseLlama, block: nn.Module) -> ParallelBlock | SerialBlock:
    config = model.config
    cos, sin = model.rope.tables(model.device)
    if isinstance(block, LlamaBlock):
        attention = block.attention
        query_norm, key_norm = (
            norm.weight.float() if isinstance(norm, RMSNorm) else None for norm in (attention.query_norm, attention.key_norm)
        )
        turn = Turn(cos, sin, query_norm, key_norm, block.attention_norm.eps)
        layer, scale, window = attention.layer, attention.scale, attention.window
    else:
        block = cast(GPTNeoXBlock, block)
        turn = Turn(cos, sin)
        layer, scale, window = block.attention.layer, block.attention.scale, None
    heads = _Heads(
        layer, config.num_heads, config.num_kv_heads, config.head_dim,
        scale=scale, window=window, is_interleaved=isinstance(block, GPTNeoXBlock), turn=turn,
    )  # fmt: skip
    if isinstance(block, LlamaBlock):
        return SerialBlock(block, "silu", heads)
    activation = ACTIVATIONS[cast(GPTNeoX, model).config.hidden_act]
    return ParallelBlock(block, activation, heads) if block.is_parallel else SerialBlock(block, activation, heads)


def _norms(*norms: nn.LayerNorm | RMSNorm) -> Norms:
    biases = [norm.bias.float() for norm in norms if isinstance(norm, nn.LayerNorm)]
    return Norms(
        torch.stack([norm.weight.float() for norm in norms]), torch.stack(biases) if biases else None, norms[0].eps, is_rms=not biases
    )


def _stacked(*layers: nn.Linear) -> tuple[Tensor, Tensor | None]:
    """One weight and bias whose outputs are those of all layers, one after the other."""
    if len(layers) == 1:
        return layers[0].weight, layers[0].bias
    weights: list[Tensor] = [layer.weight for layer in layers]
    if all(layer.bias is None for layer in layers):
        return torch.cat(weights), None
    biases: list[Tensor] = [layer.weight.new_zeros(layer.out_features) if layer.bias is None else layer.bias for layer in layers]
    return torch.cat(weights), torch.cat(biases)
