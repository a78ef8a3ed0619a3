"""What the engine runs on: native kernels or torch. Chosen once, at start, and logged."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Literal, Protocol, TypeAlias, cast

import torch
from torch import Tensor

from tripod.engine.execution.fixed_tiles import FixedTiles
from tripod.engine.execution.kv_cache import KVCache, KVCacheDtype, KVCacheSpec
from tripod.engine.execution.paged_attention import TorchKVCache
from tripod.engine.execution.ragged_batch import RaggedBatch
from tripod.engine.execution.row_attention import RowKVCache
from tripod.engine.execution.sampler import torch_argmax, torch_greedy
from tripod.errors import ConfigError
from tripod.models.architectures import Decoder
from tripod.models.expert_cache import ExpertCache, check_room
from tripod.models.language_model import LanguageModel
from tripod.models.pack import pack
from tripod.models.sparse_llama import SparseLlama
from tripod.ops.attention import Attend
from tripod.ops.kernels.gpu import has_triton
from tripod.ops.linear import WeightFormat
from tripod.ops.torch_linear import pack_torch_linear

Kernels: TypeAlias = Literal["auto", "native", "torch"]


class Route(Protocol):
    """One way to carry a step out."""

    @property
    def name(self) -> str:
        """What it is and why it was taken, for the log."""
        ...

    @property
    def weight_format(self) -> str:
        """Of linear layers."""
        ...

    @property
    def kv_dtype(self) -> torch.dtype:
        """Of the keys and values that it keeps."""
        ...

    @property
    def is_batch_invariant(self) -> bool:
        """Whether a row has the same bits whatever its neighbours, by the way its sums are made."""
        ...

    @property
    def expert_cache(self) -> ExpertCache | None:
        """Which experts of a sparse model are in memory; None: all."""
        ...

    def pack(self, model: LanguageModel, checkpoint: Path | None = None) -> LanguageModel:
        """The model with its weights made ready; itself where its architecture is not known here.

        Args:
            model: as loaded.
            checkpoint: the folder whose weights it has, for a route that keeps what it made of them.
        """
        ...

    def allocate(self, spec: KVCacheSpec) -> KVCache:
        """Take the memory of the pool."""
        ...

    def start_thread(self) -> None:
        """Called once on the thread that will run the steps."""
        ...

    def hidden(self, model: LanguageModel, batch: RaggedBatch, attend: Attend, rows: Sequence[int] | None) -> Tensor:
        """The state after the last norm of some rows of a batch, ascending, or of all: [K, D]. Keys and values of all are written."""
        ...

    def argmax(self, logits: Tensor) -> Tensor:
        """The place of each row's largest logit, the first of equals; NaN counts as the largest: [R, V] -> [R]."""
        ...

    def greedy(self, model: LanguageModel, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """What `argmax` finds in the model's logits of these rows, and the logit itself: [R, D] -> [R], [R]."""
        ...

    def step(self) -> AbstractContextManager[None]:
        """Entered around each step."""
        ...


def format_of(dtype: torch.dtype) -> WeightFormat | None:
    """The format that keeps weights as they are; None: they stay in torch's own layers."""
    return {torch.float32: "f32", torch.bfloat16: "bf16"}.get(dtype)  # type: ignore[return-value]


def choose_route(
    model: LanguageModel,
    *,
    kernels: Kernels,
    weight_format: WeightFormat | None,
    block_size: int,
    batch_invariant: bool = False,
    expert_cache: int | None = None,
    kv_cache_dtype: KVCacheDtype | None = None,
) -> Route:
    """Native kernels where they can run, torch elsewhere.

    Args:
        model: as loaded.
        kernels: "native" and "torch" insist on one.
        weight_format: of the linear layers; None: of the model's dtype.
        batch_invariant: a row must have the same bits whatever its neighbours.
        expert_cache: experts that are kept in memory of their own; None: all are used where they lie.
        kv_cache_dtype: of keys and values; None: as precise as the weights.

    Raises:
        ConfigError: what was asked for cannot run here, or the model nowhere; the message says why.
    """
    check_rows_are_apart(model)
    if kernels not in ("auto", "native", "torch"):
        raise ConfigError(f"kernels={kernels!r} is unknown; choose auto, native or torch")
    if (
        model.device.type == "cuda"
        and kernels != "torch"
        and expert_cache is None
        and kv_cache_dtype is None
        and weight_format is None
        and not batch_invariant
        and has_triton()
    ):
        from tripod.engine.execution.cuda_route import CudaRoute

        return CudaRoute(model)
    chosen = weight_format or format_of(model.dtype)
    reason = "asked for" if kernels == "torch" else _why_not_native(model, chosen, block_size, kv_cache_dtype)
    if reason is None and chosen is not None:
        if expert_cache is not None:
            check_room(expert_cache, cast("Decoder", model))
        from tripod.engine.execution.native_route import NativeRoute

        return NativeRoute(chosen, expert_cache, kv_cache_dtype)
    for name, value in (("expert_cache", expert_cache), ("kv_cache_dtype", kv_cache_dtype)):
        if value is not None:
            raise ConfigError(f"{name}={value!r} needs the native kernels, which cannot run here: {reason}; leave it out")
    if kernels == "native":
        raise ConfigError(f"kernels='native' cannot run here: {reason}; use kernels='auto' or 'torch'")
    return TorchRoute(model, weight_format, reason or "", is_batch_invariant=batch_invariant)


def check_rows_are_apart(model: LanguageModel) -> None:
    """Whether what a token becomes is its own and its predecessors' affair.

    Raises:
        ConfigError: it depends on others that are computed with it, so that no route can serve the model.
    """
    if isinstance(model, SparseLlama) and model.config.router.chooser == "expert":
        raise ConfigError(
            "the experts of this model choose their tokens (chooser='expert') among all of a step: those of other requests and later ones "
            "of the same, so that an answer would depend on who else asks; serve a model whose tokens choose (chooser='token'). This one "
            "can be studied by its weights and whole texts (`tripod study model-statistics`)"
        )


def _why_not_native(
    model: LanguageModel, weight_format: WeightFormat | None, block_size: int, kv_cache_dtype: KVCacheDtype | None
) -> str | None:
    if not isinstance(model, Decoder):
        return f"a {type(model).__name__} is not one of the architectures that can be packed"
    if model.device.type != "cpu":
        return f"the model is on {model.device}"
    if weight_format is None:
        return f"the kernels have no linear layer in {model.dtype}"
    from tripod.engine.execution.native_route import why_not

    return why_not(model, weight_format, block_size, kv_cache_dtype)


def mode_of(route: Route) -> str:
    """How answers are computed, as a reply tells it."""
    kv = ", keys and values in int8" if route.kv_dtype == torch.int8 else ""
    return f"{route.name.partition(' (')[0]}, {route.weight_format}{kv}" + (", batch-invariant" if route.is_batch_invariant else "")


def torch_hidden(model: LanguageModel, batch: RaggedBatch, attend: Attend, rows: Sequence[int] | None) -> Tensor:
    """`Route.hidden` of a model that computes all rows, on any device."""
    hidden = model.hidden(batch.token_ids, batch.positions, attend)  # [N, D]
    return hidden if rows is None else hidden[rows]


class TorchRoute:
    """Torch's own operations; linear layers prepacked for oneDNN where a format is asked for."""

    def __init__(self, model: LanguageModel, weight_format: WeightFormat | None, reason: str, *, is_batch_invariant: bool) -> None:
        self.expert_cache = None
        self.kv_dtype = model.dtype
        self.is_batch_invariant = is_batch_invariant
        self._device = model.device
        self._format = weight_format
        self.weight_format = weight_format or str(model.dtype).removeprefix("torch.")
        self.name = f"torch ({reason})"

    def pack(self, model: LanguageModel, checkpoint: Path | None = None) -> LanguageModel:
        packed = self._packed(model)
        return FixedTiles(packed) if self.is_batch_invariant else packed

    def _packed(self, model: LanguageModel) -> LanguageModel:
        if self._format is None:
            return model
        if not isinstance(model, Decoder):
            raise ConfigError(f"weight_format={self._format!r} was asked for, but a {type(model).__name__} cannot be packed; leave it out")
        return pack(model, functools.partial(pack_torch_linear, weight_format=self._format))

    def allocate(self, spec: KVCacheSpec) -> KVCache:
        return (RowKVCache if self.is_batch_invariant else TorchKVCache)(spec, self._device)

    def start_thread(self) -> None:
        pass

    def hidden(self, model: LanguageModel, batch: RaggedBatch, attend: Attend, rows: Sequence[int] | None) -> Tensor:
        return torch_hidden(model, batch, attend, rows)

    def argmax(self, logits: Tensor) -> Tensor:
        return torch_argmax(logits)

    def greedy(self, model: LanguageModel, hidden: Tensor) -> tuple[Tensor, Tensor]:
        return torch_greedy(model, hidden)

    def step(self) -> AbstractContextManager[None]:
        return nullcontext()
