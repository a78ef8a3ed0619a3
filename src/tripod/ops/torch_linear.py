"""Packed linear layers out of what torch brings: oneDNN's prepacked products, which are faster than `nn.functional.linear`.

Without oneDNN (on a GPU, or in a build that lacks it) f32 and bf16 are `nn.functional.linear`, and int8 is refused.
"""

# N outputs, K inputs; M rows

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear as torch_linear

from tripod.errors import ConfigError
from tripod.ops.linear import PackedLinear, WeightFormat
from tripod.ops.linear_formats import quantize

_ROWS = 32  # the layout is chosen for so many rows; products of other sizes read the same layout
_ZERO_POINT = 128  # oneDNN's products of signed activations take a path that is a hundred times slower


def pack_torch_linear(weight: Tensor, bias: Tensor | None, weight_format: WeightFormat) -> PackedLinear:
    """Make a weight ready in a format.

    Args:
        weight: [N, K].
        bias: [N], or none.
        weight_format: how it is to be kept.

    Raises:
        ConfigError: this build of torch has no product for the format on this device.
    """
    has_onednn = weight.device.type == "cpu" and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    match weight_format:
        case "f32" | "bf16":
            dtype = torch.float32 if weight_format == "f32" else torch.bfloat16
            if has_onednn and (dtype is torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported()):
                return _OneDnnLinear(weight, bias, dtype)
            return _PlainLinear(weight, bias, dtype)
        case "int8" if has_onednn and hasattr(torch.ops.onednn, "qlinear_prepack"):
            return _Int8Linear(weight, bias)
        case _:
            raise ConfigError(
                f"torch has no linear layer for weights in {weight_format} on {weight.device.type}; choose f32 or bf16, or kernels='native'"
            )


class _PlainLinear:
    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        self._weight, self._bias = weight.to(dtype), None if bias is None else bias.to(dtype)

    @property
    def num_bytes(self) -> int:
        return self._weight.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        return torch_linear(x.to(self._weight.dtype), self._weight, self._bias).to(x.dtype)


class _OneDnnLinear:
    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._num_bytes = weight.numel() * dtype.itemsize
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.to(dtype).contiguous(), _ROWS)
        self._bias = None if bias is None else bias.to(dtype)

    @property
    def num_bytes(self) -> int:
        return self._num_bytes

    def __call__(self, x: Tensor) -> Tensor:
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x.to(self._dtype), self._weight, self._bias, "none", [], "")
        return product.to(x.dtype)


class _Int8Linear:
    """Activations are unsigned around a zero point. oneDNN has one scale for all of them, so each token's own is applied to its sums."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._num_outputs, self._num_inputs = weight.shape
        values, self._scales = quantize(weight.float())
        self._zero_points = torch.zeros(self._num_outputs, dtype=torch.int64)
        self._weight = torch.ops.onednn.qlinear_prepack(values, [_ROWS, self._num_inputs])
        self._bias = None if bias is None else bias.float()

    @property
    def num_bytes(self) -> int:
        return self._num_outputs * (self._num_inputs + 4)

    def __call__(self, x: Tensor) -> Tensor:
        rows, scales = quantize(x.reshape(-1, self._num_inputs).float())  # [M, K], [M]
        unsigned = rows.view(torch.uint8) ^ _ZERO_POINT  # of a byte, adding 128 is turning its highest bit
        product: Tensor = torch.ops.onednn.qlinear_pointwise(
            unsigned, 1.0, _ZERO_POINT, self._weight, self._scales, self._zero_points, None, 1.0, 0, torch.float32, "none", [], ""
        )  # [M, N]
        product *= scales[:, None]
        if self._bias is not None:
            product += self._bias
        return product.to(x.dtype).view(*x.shape[:-1], self._num_outputs)
