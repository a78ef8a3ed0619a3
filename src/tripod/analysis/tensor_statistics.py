"""A few numbers that describe the tensors of a checkpoint, and the activations of its layers."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tripod.evaluation.table import Row
from tripod.models.checkpoint import read_tensors

if TYPE_CHECKING:
    from torch import Tensor

_POSITIONS_AT_ONCE = 128  # whose logits are in memory
_LAYER = re.compile(r".*\.(?:layers|blocks|h)\.(\d+)\.(.+)")


def weight_rows(folder: Path, first: Path | None) -> Iterator[Row]:
    """Root mean square, largest magnitude and excess kurtosis of each tensor; and how far it has moved.

    Args:
        folder: of the checkpoint.
        first: of the beginning of its run. Then `moved` is |w - w0| / |w0|, and `cosine to start` that of the angle between them.
    """
    before = None if first is None else read_tensors(first)
    for name, tensor in read_tensors(folder).items():
        layer, part = split_name(name)
        about: Row = {"kind": "weight", "layer": layer, "part": part}
        values = tensor.double().flatten()
        moments = _Moments()
        moments.add(values)
        yield from moments.rows(about)
        if before is not None and name in before and before[name].shape == tensor.shape:
            start = before[name].double().flatten()
            norms = float(values.norm()), float(start.norm())
            if norms[1] > 0:
                yield {**about, "statistic": "moved", "value": float((values - start).norm()) / norms[1]}
            if min(norms) > 0:
                yield {**about, "statistic": "cosine to start", "value": float(values @ start) / (norms[0] * norms[1])}


def activation_rows(folder: Path, tokens: NDArray[np.int64], *, device: str = "cpu") -> list[Row]:
    """The same of what each layer adds up to (the residual stream); the loss, and how unsure the model is.

    Rows are read one at a time, and the logits of some of their positions at a time, so a large vocabulary needs no more memory.

    Args:
        folder: of the checkpoint.
        tokens: [B, T + 1], of which the model reads all but the last column.
        device: where it is computed.
    """
    import torch

    from tripod.models.load import load_language_model
    from tripod.ops.attention import causal_attention

    model = load_language_model(folder, device=device)
    streams = [_Moments() for _ in model.blocks]
    for block, stream in zip(model.blocks, streams, strict=True):
        block.register_forward_hook(lambda _, __, output, stream=stream: stream.add(output.double().flatten()))
    ids = torch.from_numpy(tokens).to(device)
    positions = torch.arange(ids.shape[1] - 1, device=device)[None]
    loss = entropy = 0.0
    largest = -math.inf
    with torch.inference_mode():
        for row in ids:
            hidden = model.hidden(row[None, :-1], positions, causal_attention)[0]
            for start in range(0, len(hidden), _POSITIONS_AT_ONCE):
                some = slice(start, start + _POSITIONS_AT_ONCE)
                logits, targets = model.logits(hidden[some]).float(), row[1:][some]
                logprobs = logits.log_softmax(-1)
                loss -= float(logprobs.gather(-1, targets[:, None]).sum(dtype=torch.float64))
                entropy -= float((logprobs.exp() * logprobs).sum(dtype=torch.float64))
                largest = max(largest, float(logits.max()))
    found: list[Row] = []
    for layer, stream in enumerate(streams):
        found += stream.rows({"kind": "activation", "layer": layer, "part": "residual stream"})
    about: Row = {"kind": "output", "layer": None, "part": "logits"}
    return [
        *found,
        {**about, "statistic": "loss of these rows", "value": loss / tokens[:, 1:].size},
        {**about, "statistic": "entropy", "value": entropy / tokens[:, 1:].size},
        {**about, "statistic": "largest logit", "value": largest},
    ]


def split_name(name: str) -> tuple[int | None, str]:
    """gpt_neox.layers.3.mlp.dense_h_to_4h.weight -> (3, "mlp.dense_h_to_4h.weight"); None for what belongs to no layer."""
    match = _LAYER.fullmatch(name)
    return (int(match[1]), match[2]) if match else (None, name)


class _Moments:
    """Of numbers that come in parts. Their powers are of what they are above the mean of the first part, so that sums cancel little."""

    def __init__(self) -> None:
        self._count, self._shift, self._squares, self._largest = 0, 0.0, 0.0, 0.0
        self._powers = [0.0] * 4  # sums of the first to the fourth

    def add(self, values: Tensor) -> None:
        """More of them: [N], float64."""
        if not self._count:
            self._shift = float(values.mean())
        shifted = values - self._shift
        self._powers = [before + float(shifted.pow(power).sum()) for power, before in enumerate(self._powers, 1)]
        self._squares += float(values.square().sum())
        self._largest = max(self._largest, float(values.abs().max()))
        self._count += len(values)

    def rows(self, about: Row) -> Iterator[Row]:
        yield {**about, "statistic": "rms", "value": math.sqrt(self._squares / self._count)}
        yield {**about, "statistic": "largest", "value": self._largest}
        first, second, third, fourth = (total / self._count for total in self._powers)
        variance = second - first**2
        if variance > 0:  # a bias at the start, all zeros, has no shape
            central = fourth - 4 * first * third + 6 * first**2 * second - 3 * first**4
            yield {**about, "statistic": "excess kurtosis", "value": central / variance**2 - 3}
