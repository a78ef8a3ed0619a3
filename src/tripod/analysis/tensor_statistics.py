"""A few numbers that describe the tensors of a checkpoint, and the activations of its layers."""

from __future__ import annotations

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
        for statistic, value in _moments(values):
            yield {**about, "statistic": statistic, "value": value}
        if before is not None and name in before and before[name].shape == tensor.shape:
            start = before[name].double().flatten()
            norms = float(values.norm()), float(start.norm())
            if norms[1] > 0:
                yield {**about, "statistic": "moved", "value": float((values - start).norm()) / norms[1]}
            if min(norms) > 0:
                yield {**about, "statistic": "cosine to start", "value": float(values @ start) / (norms[0] * norms[1])}


def activation_rows(folder: Path, tokens: NDArray[np.int64], *, device: str = "cpu") -> list[Row]:
    """The same of what each layer adds up to (the residual stream); the loss, and how unsure the model is.

    Args:
        folder: of the checkpoint.
        tokens: [B, T + 1], of which the model reads all but the last column.
        device: where it is computed.
    """
    import torch

    from tripod.models.load import load_language_model
    from tripod.ops.attention import causal_attention

    model = load_language_model(folder, device=device)
    found: list[Row] = []

    def watch(layer: int, output: Tensor) -> None:
        about: Row = {"kind": "activation", "layer": layer, "part": "residual stream"}
        found.extend({**about, "statistic": statistic, "value": value} for statistic, value in _moments(output.double().flatten()))

    hooks = [
        block.register_forward_hook(lambda _, __, output, layer=layer: watch(layer, output)) for layer, block in enumerate(model.blocks)
    ]
    ids = torch.from_numpy(tokens).to(device)
    with torch.inference_mode():
        positions = torch.arange(ids.shape[1] - 1, device=device).expand(len(ids), -1)
        logits = model.logits(model.hidden(ids[:, :-1], positions, causal_attention)).float()
        logprobs = logits.log_softmax(-1)
        loss = -logprobs.gather(-1, ids[:, 1:, None]).mean()
        entropy = -(logprobs.exp() * logprobs).sum(-1).mean()
    for hook in hooks:
        hook.remove()
    about: Row = {"kind": "output", "layer": None, "part": "logits"}
    found += [
        {**about, "statistic": "loss of these rows", "value": float(loss)},
        {**about, "statistic": "entropy", "value": float(entropy)},
        {**about, "statistic": "largest logit", "value": float(logits.max())},
    ]
    return found


def split_name(name: str) -> tuple[int | None, str]:
    """gpt_neox.layers.3.mlp.dense_h_to_4h.weight -> (3, "mlp.dense_h_to_4h.weight"); None for what belongs to no layer."""
    match = _LAYER.fullmatch(name)
    return (int(match[1]), match[2]) if match else (None, name)


def _moments(values: Tensor) -> Iterator[tuple[str, float]]:
    yield "rms", float(values.square().mean().sqrt())
    yield "largest", float(values.abs().max())
    centred = values - values.mean()
    variance = float(centred.square().mean())
    if variance > 0:  # a bias at the start, all zeros, has no shape
        yield "excess kurtosis", float(centred.pow(4).mean()) / variance**2 - 3
