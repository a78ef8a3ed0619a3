"""How an encoder is computed: by the native kernels where they can run, by torch elsewhere. Chosen once, when it is loaded."""

# N tokens of a batch, D hidden size

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from tripod.engine.execution.route import Kernels
from tripod.engine.side_by_side import SideBySide
from tripod.errors import ConfigError
from tripod.models.bert import Bert
from tripod.models.native_bert import NativeBert, why_not_native
from tripod.ops.attention import bidirectional_attention
from tripod.ops.kernels.cpu import threads

_log = logging.getLogger(__name__)
T = TypeVar("T")
R = TypeVar("R")


class EncoderRoute(Protocol):
    """Gives the state of each token of texts that lie one after the other, [N, D] float32."""

    def hidden(self, token_ids: Tensor, positions: Tensor, lengths: Sequence[int], *, token_types: Tensor | None = None) -> Tensor: ...

    def map(self, function: Callable[[T], R], batches: Sequence[T]) -> list[R]: ...  # the results, in their order


def choose_encoder_route(model: Bert, kernels: Kernels = "auto") -> EncoderRoute:
    """The native kernels, or torch with the reason in the log.

    Raises:
        ConfigError: kernels="native", and they cannot run here.
    """
    reason = "asked for" if kernels == "torch" else why_not_native(model)
    if reason is None:
        return NativeEncoderRoute(model)
    if kernels == "native":
        raise ConfigError(f"kernels='native' cannot run this encoder here: {reason}; use kernels='auto' or 'torch'")
    _log.info("the encoder runs on torch: %s", reason)
    return TorchEncoderRoute(model)


class NativeEncoderRoute:
    """A text's states have the same bits whatever texts stand beside it. A single batch is shared among the kernels' threads."""

    def __init__(self, model: Bert) -> None:
        self._model = NativeBert(model)
        self._num_threads = min(threads.default_num_threads(), torch.get_num_threads())  # who limits torch limits this as well
        self._side_by_side = SideBySide(threads.work_alone)

    def hidden(self, token_ids: Tensor, positions: Tensor, lengths: Sequence[int], *, token_types: Tensor | None = None) -> Tensor:
        return self._model.hidden(token_ids, positions, lengths, token_types=token_types)

    def map(self, function: Callable[[T], R], batches: Sequence[T]) -> list[R]:
        if len(batches) != 1:
            return self._side_by_side.map(function, batches)
        if threads.num_threads() < self._num_threads:  # an engine beside this may have asked for as many already
            threads.set_num_threads(self._num_threads)
        with threads.held_awake():
            return [function(batches[0])]


class TorchEncoderRoute:
    """The last bits of a text's states may depend on the texts beside it, as the matrix products have other shapes then."""

    def __init__(self, model: Bert) -> None:
        self._model = model
        self._side_by_side = SideBySide()

    def hidden(self, token_ids: Tensor, positions: Tensor, lengths: Sequence[int], *, token_types: Tensor | None = None) -> Tensor:
        return self._model.hidden(token_ids, positions, bidirectional_attention(lengths), token_types=token_types)

    def map(self, function: Callable[[T], R], batches: Sequence[T]) -> list[R]:
        return self._side_by_side.map(function, batches)
