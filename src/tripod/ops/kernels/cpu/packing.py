"""Packed weights: the panels of 64 output rows that the kernels read straight through (drawn in `linear.hpp`).

One packed weight serves a batch of any size, decode and prefill, on every level of processor. Its bytes may lie in a file that is
mapped into memory; they must start at a multiple of 64.
"""

# P panels, S steps of a panel, G groups of a row

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tripod.errors import ConfigError, ShapeError
from tripod.ops.linear_formats import FormattedWeight, LinearFormat, check_format, format_weight

PANEL = 64
ALIGNMENT = 64  # bytes: a cache line
_STEP_BYTES = 4 * PANEL


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """The weight of one linear layer, or of gate and up together, as the kernels read it."""

    data: Tensor  # uint8, one dimension
    shape: tuple[int, int]  # (outputs, inputs) of the layer; of gate and up: of one of the two
    format: LinearFormat
    group: int | None = None  # int4: inputs under one scale
    is_gate_up: bool = False  # panels of the gate and of up take turns, and the output is silu(gate) * up

    def __post_init__(self) -> None:
        check_format(self.format, self.group)
        expected = packed_bytes(self.shape, self.format, self.group, is_gate_up=self.is_gate_up)
        if (
            self.data.dtype != torch.uint8
            or self.data.shape != (expected,)
            or not self.data.is_contiguous()
            or self.data.device.type != "cpu"
        ):
            raise ShapeError(
                f"a packed {self.format} weight of shape {self.shape} needs {expected} bytes (uint8, one dimension, in main memory); "
                f"got {self.data.dtype} {list(self.data.shape)} on {self.data.device}"
            )
        if self.data.data_ptr() % ALIGNMENT:
            raise ConfigError(
                f"packed weights start at address {self.data.data_ptr():#x}; the kernels read whole cache lines: "
                f"place them at a multiple of {ALIGNMENT} bytes in the file or buffer"
            )

    @property
    def padded_outputs(self) -> int:
        """Rows of the panels, padding and the gate included."""
        return -(-self.shape[0] // PANEL) * PANEL * (2 if self.is_gate_up else 1)

    @property
    def num_bytes(self) -> int:
        return self.data.numel()


def packed_bytes(shape: tuple[int, int], format: LinearFormat, group: int | None = None, *, is_gate_up: bool = False) -> int:
    """How many bytes a packed weight takes."""
    num_outputs, num_inputs = shape
    panels = -(-num_outputs // PANEL) * (2 if is_gate_up else 1)
    match format:
        case "f32":
            panel = num_inputs * _STEP_BYTES
        case "bf16":
            panel = -(-num_inputs // 2) * _STEP_BYTES
        case "int8":
            panel = PANEL * 4 + -(-num_inputs // 4) * _STEP_BYTES
        case "int4":
            assert group is not None
            panel = -(-num_inputs // group) * (PANEL * 2 + group // 8 * _STEP_BYTES)
    return panels * panel


def pack_linear(weight: Tensor, format: str, group: int | None = None) -> PackedWeight:
    """Round the weight of a linear layer to a format and lay it out for the kernels.

    Args:
        weight: [N, K], as in `torch.nn.Linear`; any sizes, floating point.
        format: "f32", "bf16", "int8" or "int4".
        group: for int4, the number of inputs under one scale: 32, 64 or 128.

    Raises:
        ConfigError: an unknown format, or a group that does not fit it.
        ShapeError: weight is not a matrix.
    """
    return pack_formatted(format_weight(weight.cpu(), format, group))


def pack_gate_up(gate: Tensor, up: Tensor, format: str, group: int | None = None) -> PackedWeight:
    """Pack gate and up projections so that one pass over the input gives silu(x gate^T) * (x up^T).

    Args:
        gate: [N, K].
        up: [N, K].
        format: as in `pack_linear`.
        group: as in `pack_linear`.

    Raises:
        ShapeError: the two differ in shape.
        ConfigError: an unknown format, or a group that does not fit it.
    """
    if gate.shape != up.shape:
        raise ShapeError(f"gate has shape {list(gate.shape)}, up {list(up.shape)}; they multiply each other, so give two of one shape")
    halves = [pack_linear(weight, format, group) for weight in (gate, up)]
    panels = -(-gate.shape[0] // PANEL)
    data = torch.stack([half.data.view(panels, -1) for half in halves], dim=1).flatten()
    return PackedWeight(data, halves[0].shape, halves[0].format, group, is_gate_up=True)


def gate_up_bias(gate: Tensor, up: Tensor) -> Tensor:
    """The biases of gate and up, [N] each, in the order of the panels of `pack_gate_up`: float32 [padded outputs]."""
    halves = [F.pad(bias.detach().float(), (0, -bias.shape[0] % PANEL)).view(-1, PANEL) for bias in (gate, up)]
    return torch.stack(halves, dim=1).flatten()


def pack_formatted(weight: FormattedWeight) -> PackedWeight:
    """Lay out a weight that is rounded already, for instance with calibrated scales."""
    num_outputs, num_inputs = weight.values.shape
    values = F.pad(weight.values, (0, 0, 0, -num_outputs % PANEL))
    match weight.format:
        case "f32":
            data = _steps(values, 1).flatten(1)
        case "bf16":
            data = _steps(values, 2).flatten(1)
        case "int8":
            assert weight.scales is not None
            scales = F.pad(weight.scales, (0, -num_outputs % PANEL)).view(-1, PANEL)
            unsigned = (_steps(values, 4).to(torch.int16) + 128).to(torch.uint8)
            data = torch.cat([scales.view(torch.uint8), unsigned.flatten(1)], dim=1)
        case "int4":
            assert weight.scales is not None
            assert weight.group is not None
            scales = (
                F.pad(weight.scales, (0, 0, 0, -num_outputs % PANEL)).view(-1, PANEL, weight.scales.shape[1]).transpose(1, 2).contiguous()
            )  # [P, G, 64]
            nibbles = (_steps(F.pad(values, (0, -num_inputs % weight.group)), 8) + 8).to(torch.uint8)  # [P, S, 64, 8]
            pairs = (nibbles[..., :4] | nibbles[..., 4:] << 4).view(len(nibbles), -1, weight.group // 8, PANEL, 4)  # [P, G, steps, 64, 4]
            data = torch.cat([scales.view(torch.uint8), pairs.flatten(2)], dim=2)
    return PackedWeight(data.contiguous().view(torch.uint8).flatten(), (num_outputs, num_inputs), weight.format, weight.group)


def _steps(values: Tensor, inputs_per_step: int) -> Tensor:
    """[64 P, K] as [P, S, 64, inputs_per_step], zeros after the last input."""
    padded = F.pad(values, (0, -values.shape[1] % inputs_per_step))
    return padded.view(-1, PANEL, padded.shape[1] // inputs_per_step, inputs_per_step).transpose(1, 2).contiguous()
