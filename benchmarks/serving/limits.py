"""What this machine allows at this moment, and what that means for a workload. Machines change speed from minute to minute."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.serving.shapes import Shape

BYTES = {"float32": 4, "bfloat16": 2, "int8": 1, "int4": 0.5625}  # int4: a scale of 16 bits for every 32 weights
_PROBE_BYTES = 512 * 2**20  # far beyond any cache


@dataclass(frozen=True, slots=True)
class Limits:
    """bytes/s of reading memory, and operations/s of a large matrix product by format."""

    bandwidth: float
    gemm: dict[str, float]

    def decode_tokens_per_s(self, shape: Shape, weight_format: str, context: int) -> float:
        """One stream: all matrices, keys and values are read once a token. Keys and values are bfloat16 unless weights are float32."""
        kv_bytes = 2 * shape.num_layers * shape.kv_size * context * (4 if weight_format == "float32" else 2)
        return self.bandwidth / ((shape.block_weights + shape.head_weights) * BYTES[weight_format] + kv_bytes)

    def prefill_tokens_per_s(self, shape: Shape, weight_format: str, num_tokens: int) -> float:
        """Matrix products of all layers, causal attention, and the logits of the last token."""
        attention = 2 * 2 * shape.num_layers * shape.hidden_size * num_tokens**2 / 2
        operations = 2 * shape.block_weights * num_tokens + 2 * shape.head_weights + attention
        return num_tokens * self.gemm[weight_format] / operations

    def batch_tokens_per_s(self, shape: Shape, weight_format: str, num_prompt_tokens: float, num_output_tokens: float) -> float:
        """Generated tokens of many requests together, were there nothing but matrix products, each at the peak."""
        operations = 2 * (num_prompt_tokens + num_output_tokens) * shape.block_weights + 2 * num_output_tokens * shape.head_weights
        return num_output_tokens * self.gemm[weight_format] / operations


def measure() -> Limits:
    """Takes about two seconds."""
    import torch

    memory = torch.ones(_PROBE_BYTES // 4)
    bandwidth = _PROBE_BYTES / _best(memory.sum)
    gemm = {}
    with torch.inference_mode():
        x, weight = torch.randn(1024, 1024), torch.randn(3072, 1024)
        operations = 2 * 1024 * 1024 * 3072
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, 1024)
        gemm["float32"] = operations / _best(lambda: torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], ""))
        x_bf16, weight_bf16 = x.bfloat16(), weight.bfloat16()
        gemm["bfloat16"] = operations / _best(lambda: torch.nn.functional.linear(x_bf16, weight_bf16))
        x_u8, weight_s8 = torch.randint(0, 255, (1024, 1024), dtype=torch.uint8), torch.randint(-127, 127, (3072, 1024), dtype=torch.int8)
        packed_s8 = torch.ops.onednn.qlinear_prepack(weight_s8, [1024, 1024])
        scales, zeros = torch.ones(3072), torch.zeros(3072, dtype=torch.int64)
        gemm["int8"] = operations / _best(
            lambda: torch.ops.onednn.qlinear_pointwise(
                x_u8, 1.0, 128, packed_s8, scales, zeros, None, 1.0, 0, torch.float32, "none", [], ""
            )
        )
    gemm["int4"] = gemm["int8"]  # it multiplies as int8 does
    return Limits(bandwidth, gemm)


def _best(call: Callable[[], object], tries: int = 7) -> float:
    seconds = []
    for _ in range(tries):
        began_s = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began_s)
    return sorted(seconds)[1]  # the second best: one lucky clock reading does not set a limit
