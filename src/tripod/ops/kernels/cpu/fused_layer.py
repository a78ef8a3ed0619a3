"""A whole transformer layer in one call, or all layers: norms, projections, rotation, keys and values, attention, feed-forward, residuals.

Once, for each layer of a model (weights packed by `pack_linear` and `pack_gate_up`; biases and norms in float32):

    layer = FusedLayer(
        attention_norm=Norm(weight, bias, eps=1e-5),                # Norm(weight, eps=1e-6, is_rms=True) for a root mean square norm
        query_key_value=Dense(packed, bias),                        # Llama and Qwen: query, key and value rows one after the other
        is_interleaved=True,                                        # GPT-NeoX: [H, 3, K] rows
        num_heads=12, num_kv_heads=12, head_dim=64,
        output=Dense(packed, bias),
        mlp_norm=Norm(weight, bias, eps=1e-5),
        up=Dense(packed, bias), activation="gelu_erf",              # Dense(pack_gate_up(gate, up, ...)) and no activation for SwiGLU
        down=Dense(packed, bias),
        is_parallel=True,                                           # x + attention + MLP of the same x; otherwise one after the other
    )

with `routed=Routed(router, config, experts)` in place of up, activation and down where the second half is sparse.

Once a step, and then layer by layer:

    step = StepRows(cos, sin, slots, requests, positions, block_tables, pool)
    for index, layer in enumerate(layers):
        layer(x, pool, index, step)                                 # x: [N, D], float32, changed in place

or, where a step is short and each call counts, `FusedLayers(layers, norm=norm)(x, pool, step)`, with the norm that follows the last.

With `StepRows(..., kept=rows)` the last layer, called with `is_last=True`, computes these rows alone once the keys and values of all are
written: nobody reads what comes out of the others.

The residual stream is float32 in every format. A row's bits do not depend on the other rows of the step. The sequence of the single
kernels (`linear`, `layer_norm`, `rotate`, `KVPool.write`, `paged_attention`) on float32 rows gives the same bits.
"""

# N rows, D hidden size, F feed-forward size, H query heads, G key/value heads, K head size, R rotary size; R requests, M blocks in tables

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tripod.errors import ConfigError, ShapeError
from tripod.ops.kernels.cpu.experts import CRouter, ExpertTable, router_struct
from tripod.ops.kernels.cpu.library import POINTER, KernelFunction, expect_tensor
from tripod.ops.kernels.cpu.linear import ACTIVATIONS, FORMATS
from tripod.ops.kernels.cpu.packing import PackedWeight
from tripod.ops.kernels.cpu.paged_attention import KVPool
from tripod.ops.linear_formats import LinearActivation
from tripod.ops.moe_routing import RouterConfig

__all__ = ["Dense", "FusedLayer", "FusedLayers", "Norm", "Routed", "StepRows"]

_INT, _INT64, _FLOAT = ctypes.c_int32, ctypes.c_int64, ctypes.c_float
_SILU_MUL = 4


class _CDense(ctypes.Structure):
    _fields_ = (
        *(("format", _INT), ("group", _INT), ("num_outputs", _INT64), ("num_inputs", _INT64), ("num_columns", _INT64)),
        *(("panels", POINTER), ("bias", POINTER)),
    )


class _CNorm(ctypes.Structure):
    _fields_ = (("weight", POINTER), ("bias", POINTER), ("eps", _FLOAT), ("is_rms", _INT))


class _CLayer(ctypes.Structure):
    _fields_ = (
        *(("attention_norm", _CNorm), ("mlp_norm", _CNorm)),
        *(("query_key_value", _CDense), ("output", _CDense), ("up", _CDense), ("down", _CDense)),
        *(("activation", _INT), ("is_parallel", _INT), ("num_heads", _INT), ("num_kv_heads", _INT), ("head_size", _INT)),
        *(("scale", _FLOAT), ("window", _INT64)),
        *(("query_at", _INT64), ("key_at", _INT64), ("value_at", _INT64), ("query_stride", _INT64), ("kv_stride", _INT64)),
        *(("query_norm", POINTER), ("key_norm", POINTER), ("head_norm_eps", _FLOAT)),
        ("routed", POINTER),
    )


class _CRouted(ctypes.Structure):
    _fields_ = (("weight", POINTER), ("router", CRouter), ("experts", POINTER))


class _CStep(ctypes.Structure):
    _fields_ = (
        *(("num_rows", _INT64), ("cos", POINTER), ("sin", POINTER), ("num_angles", _INT64), ("half", _INT64)),
        *(("slots", POINTER), ("requests", POINTER), ("positions", POINTER)),
        *(("block_tables", POINTER), ("num_tables", _INT64), ("table_width", _INT64)),
        *(("num_kept", _INT64), ("kept", POINTER), ("kept_requests", POINTER), ("kept_positions", POINTER)),
    )


_layers = KernelFunction("tripod_layers", POINTER, _INT64, POINTER, _INT64, _INT64, _INT, POINTER, _INT, POINTER, POINTER)
_first_wrong_row = KernelFunction("tripod_first_wrong_row", POINTER, _INT64, restype=_INT64)


@dataclass(frozen=True, slots=True)
class Dense:
    """A linear layer."""

    weight: PackedWeight
    bias: Tensor | None = None  # [N], float32; of gate and up: from `gate_up_bias`


@dataclass(frozen=True, slots=True)
class Norm:
    """Layer normalisation, or root mean square normalisation."""

    weight: Tensor  # [D], float32
    bias: Tensor | None = None  # [D], float32; none in a root mean square norm
    eps: float = 1e-5
    is_rms: bool = False


@dataclass(frozen=True, slots=True)
class Routed:
    """A router, and the experts among which each row is sent to its own."""

    router: Tensor  # [E, D], float32
    config: RouterConfig
    experts: ExpertTable
    selection_bias: Tensor | None = None  # [E], float32


class StepRows:
    """What all layers of a step share: where each row's angles, slot and context are. Checked here, once."""

    def __init__(
        self,
        cos: Tensor,
        sin: Tensor,
        slots: Tensor,
        requests: Tensor,
        positions: Tensor,
        block_tables: Tensor,
        pool: KVPool,
        kept: Sequence[int] | None = None,
    ) -> None:
        """
        Args:
            cos: [P, R/2], float32: of each position, as `Rope.tables` gives them.
            sin: as cos.
            slots: [N], int64: block id * 16 + place in the block, where each row's key and value go.
            requests: [N], int64: the row of block_tables that belongs to each; consecutive tokens of a request stand together.
            positions: [N], int64: the place of each row's token in its request, below P.
            block_tables: [R, M], int64; what lies beyond the blocks of a request is not read.
            pool: keys and values.
            kept: the rows, ascending, that a last layer computes; None: all.

        Raises:
            ShapeError: the shapes do not fit each other.
            ConfigError: another type, rows to keep that do not ascend within the step, or a slot, request, position or block that does
                not exist.
        """
        num_rows, half = slots.shape[0], cos.shape[-1]
        expect_tensor("cos", cos, (None, None), (torch.float32,))
        expect_tensor("sin", sin, (cos.shape[0], half), (torch.float32,))
        for name, numbers in (("slots", slots), ("requests", requests), ("positions", positions)):
            expect_tensor(name, numbers, (num_rows,), (torch.int64,))
        expect_tensor("block_tables", block_tables, (None, None), (torch.int64,))
        if kept is not None and not all(-1 < row < num_rows and row > before for before, row in zip((-1, *kept), kept, strict=False)):
            raise ConfigError(f"kept={list(kept)} must be rows of the step in ascending order, each at least 0 and below {num_rows}")
        self.num_rows, self.half, self.num_kept = num_rows, half, num_rows if kept is None else len(kept)
        rows = None if kept is None else torch.tensor(kept, dtype=torch.int64)
        of_kept = (requests, positions) if rows is None else (requests[rows], positions[rows])
        self._tensors = (cos, sin, slots, requests, positions, block_tables, rows, *of_kept)  # the structure holds their addresses
        self._struct = _CStep(
            *(num_rows, cos.data_ptr(), sin.data_ptr(), *cos.shape, slots.data_ptr(), requests.data_ptr(), positions.data_ptr()),
            *(block_tables.data_ptr(), *block_tables.shape),
            *(self.num_kept, None if rows is None else rows.data_ptr(), *(part.data_ptr() for part in of_kept)),
        )
        self.address = ctypes.addressof(self._struct)
        wrong = _first_wrong_row(self.address, pool.blocks.shape[1])
        if wrong >= 0:
            where = f"slot {int(slots[wrong])}, request {int(requests[wrong])}, position {int(positions[wrong])}"
            raise ConfigError(
                f"row {wrong} ({where}) needs what is not there: {block_tables.shape[0]} requests of at most "
                f"{block_tables.shape[1]} blocks, of the pool's {pool.blocks.shape[1]}, and angles of {cos.shape[0]} positions"
            )


class FusedLayer:
    """One layer; holds its packed weights."""

    def __init__(
        self,
        *,
        attention_norm: Norm,
        query_key_value: Dense,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        output: Dense,
        mlp_norm: Norm | None = None,
        up: Dense | None = None,
        down: Dense | None = None,
        routed: Routed | None = None,
        activation: LinearActivation | None = None,
        is_interleaved: bool = False,
        is_parallel: bool = False,
        scale: float | None = None,
        window: int | None = None,
        query_norm: Norm | None = None,
        key_norm: Norm | None = None,
    ) -> None:
        """
        Args:
            attention_norm: before query, key and value.
            query_key_value: D inputs; outputs [H + 2 G, K], or [H, 3, K] if `is_interleaved` (then H = G).
            num_heads: H.
            num_kv_heads: G, a divisor of H.
            head_dim: K.
            output: H K inputs, D outputs.
            mlp_norm: before the second half, which is up and down, or `routed`; without all of them the layer ends with the attention.
            up: D inputs, F outputs; or gate and up packed together.
            down: F inputs, D outputs.
            routed: in their place; not if `is_parallel`.
            activation: after up; None where gate and up are packed together, which has its own.
            is_interleaved: how query, key and value lie.
            is_parallel: both halves read the same x.
            scale: factor on the attention scores; by default 1 / sqrt(K).
            window: tokens that a row sees, itself included; None: all.
            query_norm: root mean square norm of each query head before it is rotated, as in Qwen3.
            key_norm: the same for keys.

        Raises:
            ShapeError: sizes that do not fit each other.
            ConfigError: an activation beside a gate, or an unknown one; two head norms that differ in eps; half of a second half, or two.
        """
        size = attention_norm.weight.shape[0]
        if num_kv_heads < 1 or num_heads % num_kv_heads or (is_interleaved and num_heads != num_kv_heads):
            raise ShapeError(
                f"num_heads={num_heads} and num_kv_heads={num_kv_heads} do not fit; expected a multiple (equal, if interleaved)"
            )
        if activation not in ACTIVATIONS:
            raise ConfigError(f"activation={activation!r} is unknown; use one of {', '.join(str(name) for name in ACTIVATIONS)}")
        self._expect("query_key_value", query_key_value, ((num_heads + 2 * num_kv_heads) * head_dim, size))
        self._expect("output", output, (size, num_heads * head_dim))
        if (
            (up is None) != (down is None)
            or (mlp_norm is None) != (up is None and routed is None)
            or (up is not None and routed is not None)
        ):
            raise ConfigError("the second half is mlp_norm with up and down, or mlp_norm with routed; give one of the two, or none")
        if up is not None and down is not None:
            if up.weight.is_gate_up == (activation is not None):
                raise ConfigError(
                    f"activation={activation!r}: give one for a single up projection, and none for gate and up packed together"
                )
            self._expect("up", up, (up.weight.shape[0], size))
            self._expect("down", down, (size, up.weight.shape[0]))
        if routed is not None:
            num_experts = routed.experts.num_experts
            if is_parallel or activation is not None or routed.config.num_experts != num_experts:
                raise ConfigError(
                    f"routed has a router for {routed.config.num_experts} experts and {num_experts} of them, is_parallel={is_parallel}, "
                    f"activation={activation!r}; expected as many, after the attention, with the experts' own activation"
                )
            expect_tensor("router", routed.router, (num_experts, size), (torch.float32,))
            if routed.experts.hidden_size != size:
                raise ShapeError(f"the experts read rows of {routed.experts.hidden_size}; expected {size}")
        head_norms = [norm for norm in (query_norm, key_norm) if norm is not None]
        if len({norm.eps for norm in head_norms}) > 1 or not all(norm.is_rms for norm in head_norms):
            raise ConfigError("norms of heads are root mean square norms with one eps; give both so, or none")
        for name, norm, width in (
            ("attention_norm", attention_norm, size),
            *([] if mlp_norm is None else [("mlp_norm", mlp_norm, size)]),
            *(("head norm", norm, head_dim) for norm in head_norms),
        ):
            _expect_norm(name, norm, width)
        self.hidden_size, self.head_dim, self.num_kv_heads = size, head_dim, num_kv_heads
        self._kept = (attention_norm, query_key_value, output, mlp_norm, up, down, query_norm, key_norm, routed)  # whose addresses are held
        self._routed = None if routed is None else _routed(routed)
        key_at = head_dim if is_interleaved else num_heads * head_dim
        value_at = 2 * head_dim if is_interleaved else key_at + num_kv_heads * head_dim
        stride = (3 if is_interleaved else 1) * head_dim
        self._struct = _CLayer(
            *(_norm(attention_norm), _norm(mlp_norm), _dense(query_key_value), _dense(output), _dense(up), _dense(down)),
            *(
                _SILU_MUL if up is not None and up.weight.is_gate_up else ACTIVATIONS[activation],
                is_parallel,
                num_heads,
                num_kv_heads,
                head_dim,
            ),
            *(head_dim**-0.5 if scale is None else scale, window or 0, 0, key_at, value_at, stride, stride),
            *(None if norm is None else norm.weight.data_ptr() for norm in (query_norm, key_norm)),
            head_norms[0].eps if head_norms else 0.0,
            None if self._routed is None else ctypes.addressof(self._routed),
        )
        self.address = ctypes.addressof(self._struct)  # for as long as the layer lives
        self._pointers = (POINTER * 1)(self.address)

    @property
    def num_bytes(self) -> int:
        """Memory that the packed weights take."""
        dense = sum(part.weight.num_bytes for part in self._kept if isinstance(part, Dense))
        return dense + sum(part.router.nbytes + part.experts.num_bytes for part in self._kept if isinstance(part, Routed))

    def __call__(self, x: Tensor, pool: KVPool, index: int, step: StepRows, *, is_last: bool = False) -> None:
        """Apply the layer to the rows of a step, in place.

        Args:
            x: [N, D], float32, contiguous: the residual stream.
            pool: where the keys and values of the rows go and where those before them are.
            index: which layer of the pool.
            step: the rows.
            is_last: only the rows that the step keeps are wanted: they come out at the front of x, and what lies behind is undefined.

        Raises:
            ShapeError: x or the pool does not fit the layer.
            ConfigError: x is not float32 in main memory.
        """
        if not 0 <= index < pool.blocks.shape[0]:
            raise ConfigError(f"index={index} is not one of the pool's {pool.blocks.shape[0]} layers")
        self.check(x, pool, step)
        _run(self._pointers, x, pool, index, step, None, is_last=is_last)

    def check(self, x: Tensor, pool: KVPool, step: StepRows) -> None:
        """Refuse what a call would not take.

        Args:
            x: as in a call.
            pool: as in a call.
            step: the rows.

        Raises:
            ShapeError: x or the pool does not fit the layer.
            ConfigError: x is not float32 in main memory.
        """
        expect_tensor("x", x, (step.num_rows, self.hidden_size), (torch.float32,))
        if pool.head_dim != self.head_dim or pool.blocks.shape[2] != self.num_kv_heads or 2 * step.half > self.head_dim:
            raise ShapeError(
                f"the pool has {pool.blocks.shape[2]} heads of {pool.head_dim}, of which the step rotates {2 * step.half}; "
                f"the layer has {self.num_kv_heads} of {self.head_dim}"
            )

    @staticmethod
    def _expect(name: str, dense: Dense, shape: tuple[int, int]) -> None:
        if dense.weight.shape != shape or (dense.weight.is_gate_up and name != "up"):
            raise ShapeError(f"{name} has a weight of shape {list(dense.weight.shape)}; expected {list(shape)}")
        if dense.bias is not None:
            expect_tensor(
                f"{name}.bias", dense.bias, (dense.weight.padded_outputs if dense.weight.is_gate_up else shape[0],), (torch.float32,)
            )


class FusedLayers:
    """All layers of a model in one call: between layers nothing waits for the interpreter, which others may use meanwhile."""

    def __init__(self, layers: Sequence[FusedLayer], *, norm: Norm | None = None) -> None:
        """
        Args:
            layers: in their order, one at least; all with heads of one size and number.
            norm: of what comes out of the last.

        Raises:
            ShapeError: they differ in what they read, or in the heads of their keys and values, or the norm is of another size.
            ConfigError: the norm is not float32 in main memory.
        """
        shapes = {(layer.hidden_size, layer.head_dim, layer.num_kv_heads) for layer in layers}
        if len(shapes) != 1:
            raise ShapeError(
                f"layers have (hidden size, head size, key heads) of {sorted(shapes)}; expected one for all, and a layer at least"
            )
        if norm is not None:
            _expect_norm("norm", norm, layers[0].hidden_size)
        self._layers = tuple(layers)
        self._kept = norm  # whose addresses the next line holds
        self._norm = None if norm is None else _norm(norm)
        self._pointers = (POINTER * len(layers))(*(layer.address for layer in layers))

    def __call__(self, x: Tensor, pool: KVPool, step: StepRows) -> None:
        """Apply all layers, and the norm, to the rows of a step, in place; those that the step keeps come out at the front of x.

        Args:
            x: as in a layer.
            pool: of as many layers, or more.
            step: the rows.

        Raises:
            ShapeError: x or the pool does not fit the layers.
            ConfigError: x is not float32 in main memory, or the pool has fewer layers.
        """
        if pool.blocks.shape[0] < len(self._layers):
            raise ConfigError(f"the pool has {pool.blocks.shape[0]} layers; expected at least {len(self._layers)}")
        self._layers[0].check(x, pool, step)
        _run(self._pointers, x, pool, 0, step, self._norm, is_last=True)


def _run(
    pointers: ctypes.Array[ctypes.c_void_p], x: Tensor, pool: KVPool, first: int, step: StepRows, norm: _CNorm | None, *, is_last: bool
) -> None:
    if step.num_rows:
        layer_bytes = pool.blocks.stride(0) * pool.blocks.element_size()
        _layers(
            *(ctypes.addressof(pointers), len(pointers), pool.blocks.data_ptr() + first * layer_bytes, layer_bytes, pool.blocks.shape[1]),
            *(pool.format, step.address, is_last, None if norm is None else ctypes.addressof(norm), x.data_ptr()),
        )


def _dense(dense: Dense | None) -> _CDense:
    if dense is None:
        return _CDense()
    packed, bias = dense.weight, dense.bias
    return _CDense(
        *(FORMATS[packed.format], packed.group or 0, packed.padded_outputs, packed.shape[1], packed.shape[0]),
        *(packed.data.data_ptr(), None if bias is None else bias.data_ptr()),
    )


def _expect_norm(name: str, norm: Norm, size: int) -> None:
    expect_tensor(f"{name}.weight", norm.weight, (size,), (torch.float32,))
    if norm.bias is not None:
        expect_tensor(f"{name}.bias", norm.bias, (size,), (torch.float32,))


def _norm(norm: Norm | None) -> _CNorm:
    if norm is None:
        return _CNorm()
    return _CNorm(norm.weight.data_ptr(), None if norm.bias is None else norm.bias.data_ptr(), norm.eps, norm.is_rms)


def _routed(routed: Routed) -> _CRouted:
    return _CRouted(routed.router.data_ptr(), router_struct(routed.config, routed.selection_bias), routed.experts.address)
