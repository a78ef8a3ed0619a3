"""The sparse layer of a step in three calls: what a router makes of each row, who goes to which expert, and each row through its own.

    logits = score(x, weight)                            # x weight^T
    routing = route(logits, config, selection_bias)      # the twin of `tripod.ops.moe_routing.choose_experts`
    experts = ExpertTable([PackedExpert(up, down), ...]) # up from `pack_gate_up`; once
    experts.add(x, routing, out)                         # out += what the chosen experts make of x, times their weights

A row's bits do not depend on the rows beside it.
"""

# N rows, E experts, k choices, D hidden size, F size of an expert

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tripod.errors import ConfigError, ShapeError
from tripod.ops.kernels.cpu.library import POINTER, KernelFunction, expect_tensor
from tripod.ops.kernels.cpu.linear import FORMATS
from tripod.ops.kernels.cpu.packing import PackedWeight
from tripod.ops.moe_routing import RouterConfig, Routing

_INT, _INT64, _FLOAT = ctypes.c_int32, ctypes.c_int64, ctypes.c_float


class _CExpert(ctypes.Structure):
    _fields_ = (("up", POINTER), ("factor", POINTER), ("down", POINTER))


class _CExperts(ctypes.Structure):
    _fields_ = (
        *(("format", _INT), ("group", _INT), ("num_experts", _INT64), ("hidden_size", _INT64), ("size", _INT64)),
        ("experts", POINTER),
    )


class CRouter(ctypes.Structure):
    _fields_ = (
        *(("num_experts", _INT64), ("top_k", _INT64), ("is_sigmoid", _INT), ("is_normalized", _INT)),
        *(("scale", _FLOAT), ("bias", POINTER)),
    )


_score = KernelFunction("tripod_score", POINTER, _INT64, POINTER, _INT64, _INT64, POINTER)
_route = KernelFunction("tripod_route", POINTER, POINTER, _INT64, POINTER, POINTER, POINTER)
_experts = KernelFunction("tripod_experts", POINTER, POINTER, _INT64, POINTER, POINTER, _INT64, POINTER)


def score(x: Tensor, weight: Tensor) -> Tensor:
    """x weight^T of a router: few outputs, whose weights are read where they lie. A row's bits do not depend on the rows beside it.

    Args:
        x: [N, D], float32, contiguous.
        weight: [E, D], likewise.

    Returns:
        [N, E].

    Raises:
        ShapeError: shapes that do not fit, or gaps between elements.
        ConfigError: another dtype or device.
    """
    expect_tensor("weight", weight, (None, None), (torch.float32,))
    num_outputs, size = weight.shape
    expect_tensor("x", x, (None, size), (torch.float32,))
    out = torch.empty((len(x), num_outputs))
    _score(x.data_ptr(), len(x), weight.data_ptr(), num_outputs, size, out.data_ptr())
    return out


def route(logits: Tensor, config: RouterConfig, selection_bias: Tensor | None = None) -> Routing:
    """The twin of `tripod.ops.moe_routing.choose_experts` where tokens choose and nothing is dropped; the first of equals is chosen.

    Args:
        logits: [N, E], float32, contiguous.
        config: of the router.
        selection_bias: [E], float32.

    Raises:
        ShapeError: shapes that do not fit, or gaps between elements.
        ConfigError: another dtype or device, or experts that choose.
    """
    expect_tensor("logits", logits, (None, config.num_experts), (torch.float32,))
    num_rows = logits.shape[0]
    gates = torch.empty_like(logits)
    expert_ids = torch.empty((num_rows, config.top_k), dtype=torch.int64)
    weights = torch.empty((num_rows, config.top_k))
    router = router_struct(config, selection_bias)
    _route(ctypes.addressof(router), logits.data_ptr(), num_rows, gates.data_ptr(), expert_ids.data_ptr(), weights.data_ptr())
    return Routing(logits, gates, expert_ids, weights)


def router_struct(config: RouterConfig, selection_bias: Tensor | None) -> CRouter:
    """How tokens choose, as the kernels read it; it holds the address of the bias.

    Raises:
        ShapeError: the bias is not [E], or has gaps.
        ConfigError: the bias is not float32 in main memory, or experts choose.
    """
    if config.chooser != "token":
        raise ConfigError(f"chooser={config.chooser!r}: the kernel routes tokens that choose; use tripod.ops.moe_routing.choose_experts")
    if selection_bias is not None:
        expect_tensor("selection_bias", selection_bias, (config.num_experts,), (torch.float32,))
    return CRouter(
        *(config.num_experts, config.top_k, config.gate == "sigmoid", config.is_normalized),
        *(config.scale, None if selection_bias is None else selection_bias.data_ptr()),
    )


@dataclass(frozen=True, slots=True)
class PackedExpert:
    """The matrices of one expert: down(silu(gate x) * up x * factor x)."""

    up: PackedWeight  # gate and up together, D inputs and F outputs
    down: PackedWeight  # F inputs, D outputs
    factor: PackedWeight | None = None  # D inputs, F outputs; None: nothing is multiplied

    @property
    def num_bytes(self) -> int:
        return self.up.num_bytes + self.down.num_bytes + (0 if self.factor is None else self.factor.num_bytes)


class ExpertTable:
    """The experts of a layer, as the kernel finds them."""

    def __init__(self, experts: Sequence[PackedExpert]) -> None:
        """
        Args:
            experts: all of one shape and format.

        Raises:
            ShapeError: sizes that do not fit each other.
        """
        size, hidden_size = experts[0].up.shape
        weight_format, group = experts[0].up.format, experts[0].up.group
        for number, expert in enumerate(experts):
            parts = [expert.up, expert.down] + ([] if expert.factor is None else [expert.factor])
            shapes = [(size, hidden_size), (hidden_size, size), (size, hidden_size)][: len(parts)]
            if (
                [part.shape for part in parts] != shapes
                or any((part.format, part.group) != (weight_format, group) for part in parts)
                or [part.is_gate_up for part in parts] != [True, False, False][: len(parts)]
                or (expert.factor is None) != (experts[0].factor is None)
            ):
                raise ShapeError(
                    f"expert {number} has weights of {[part.shape for part in parts]}; expected {shapes}, gate and up together, as expert 0"
                )
        self.hidden_size, self.num_experts = hidden_size, len(experts)
        self._experts = list(experts)
        self._pointers = (_CExpert * len(experts))()
        self._struct = _CExperts(FORMATS[weight_format], group or 0, len(experts), hidden_size, size, ctypes.addressof(self._pointers))
        self.address = ctypes.addressof(self._struct)  # for as long as the table lives
        for number, expert in enumerate(experts):
            self.place(number, expert)

    @property
    def num_bytes(self) -> int:
        return sum(expert.num_bytes for expert in self._experts)

    def place(self, number: int, expert: PackedExpert) -> None:
        """Let the kernel find an expert's weights there; they are of the same shape."""
        self._experts[number] = expert
        factor = None if expert.factor is None else expert.factor.data.data_ptr()
        self._pointers[number] = _CExpert(expert.up.data.data_ptr(), factor, expert.down.data.data_ptr())

    def add(self, x: Tensor, routing: Routing, out: Tensor) -> None:
        """out += the weighted sum of what the chosen experts make of each row of x.

        Args:
            x: [N, D], float32, contiguous.
            routing: of these rows, nothing dropped.
            out: as x; not x itself.

        Raises:
            ShapeError: shapes that do not fit, or gaps between elements.
            ConfigError: another dtype or device, or a routing that drops.
        """
        expect_tensor("x", x, (None, self.hidden_size), (torch.float32,))
        expect_tensor("out", out, tuple(x.shape), (torch.float32,))
        expect_tensor("expert_ids", routing.expert_ids, (x.shape[0], None), (torch.int64,))
        expect_tensor("weights", routing.weights, tuple(routing.expert_ids.shape), (torch.float32,))
        if routing.is_kept is not None or routing.num_experts != self.num_experts or out.data_ptr() == x.data_ptr():
            raise ConfigError("the kernel takes routings to its own experts that drop nothing, and an out that is not x")
        if x.shape[0]:
            _experts(
                *(self.address, x.data_ptr(), x.shape[0], routing.expert_ids.data_ptr(), routing.weights.data_ptr()),
                *(routing.expert_ids.shape[1], out.data_ptr()),
            )
