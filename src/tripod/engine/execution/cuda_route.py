"""The route on an NVIDIA GPU: Triton's kernels, and decode steps replayed from recorded graphs."""

# N tokens of the step, M blocks of the longest request that the model can hold

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import Tensor

from tripod.engine.execution.kv_cache import KVCache, KVCacheSpec
from tripod.engine.execution.paged_attention import TorchKVCache
from tripod.engine.execution.ragged_batch import RaggedBatch, Span
from tripod.engine.execution.route import torch_hidden
from tripod.engine.execution.sampler import torch_argmax, torch_greedy
from tripod.models.cuda_blocks import pack_cuda, why_not
from tripod.models.language_model import LanguageModel, LanguageModelConfig
from tripod.ops.attention import Attend
from tripod.ops.kernels.cuda.page_attention import PageAttention
from tripod.ops.kernels.cuda.paged_attention import PART, Tiles

CHUNK_ROWS = 64  # of a prompt's tokens times the query heads that share a key head: so many read the keys together
BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)  # decode steps of up to so many requests share a graph


class CudaRoute:
    """Chosen on a CUDA device where Triton is installed."""

    is_batch_invariant = False  # its matrix products are cuBLAS's
    expert_cache = None

    def __init__(self, model: LanguageModel) -> None:
        self.kv_dtype = model.dtype
        self.weight_format = str(model.dtype).removeprefix("torch.")
        self._device = model.device
        self._group = model.config.num_heads // model.config.num_kv_heads
        self._why_not = why_not(model)
        how = "on" if self._why_not is None else f"attention only: {self._why_not}; on"
        self.name = f"cuda (Triton, {how} {torch.cuda.get_device_name(model.device)})"

    def pack(self, model: LanguageModel, checkpoint: Path | None = None) -> LanguageModel:
        if self._why_not is not None:
            return model  # which may do what a graph cannot record
        return DecodeGraphs(pack_cuda(model))

    def allocate(self, spec: KVCacheSpec) -> KVCache:
        return TritonKVCache(spec, self._device, max(1, CHUNK_ROWS // self._group))

    def start_thread(self) -> None:
        torch.cuda.set_device(self._device)

    def hidden(self, model: LanguageModel, batch: RaggedBatch, attend: Attend, rows: Sequence[int] | None) -> Tensor:
        return torch_hidden(model, batch, attend, rows)

    def argmax(self, logits: Tensor) -> Tensor:
        return torch_argmax(logits)

    def greedy(self, model: LanguageModel, hidden: Tensor) -> tuple[Tensor, Tensor]:
        return torch_greedy(model, hidden)

    def step(self) -> AbstractContextManager[None]:
        return nullcontext()


class TritonKVCache(TorchKVCache):
    """The pool of `TorchKVCache`, read by Triton's kernels."""

    def __init__(self, spec: KVCacheSpec, device: torch.device, chunk_tile: int) -> None:
        """
        Args:
            spec: of the pool.
            device: whose memory it takes.
            chunk_tile: tokens of a prompt that read the keys together.
        """
        super().__init__(spec, device)
        self._chunk_tile = chunk_tile

    def attend(self, batch: RaggedBatch) -> PageAttention:  # type: ignore[override]
        """A launch for all decodes, one for all chunks."""
        rows = list(enumerate(batch.spans))
        longest = max(span.end for span in batch.spans)
        tiles: list[Tiles] = []
        if chunks := [(row, span) for row, span in rows if span.num_tokens > 1]:
            decodes = [(row, span) for row, span in rows if span.num_tokens == 1]
            tiles = [_tiles(spans, size, self.pages.device) for spans, size in ((decodes, 1), (chunks, self._chunk_tile)) if spans]
        return PageAttention(self.pages, batch.rows, batch.block_tables, tiles, longest=longest)


def _tiles(spans: Sequence[tuple[int, Span]], size: int, device: torch.device) -> Tiles:
    """`spans` with their rows of the block tables, cut into tiles of at most `size` tokens."""
    tiles = [
        (request, span.rows.start + offset, min(size, span.num_tokens - offset), span.start + offset)
        for request, span in spans
        for offset in range(0, span.num_tokens, size)
    ]
    request, row, count, start = torch.tensor(tiles, dtype=torch.int32).T.contiguous().to(device).unbind()
    return Tiles(request, row, count, start, size=size)


Record = Callable[[Callable[[], None]], Callable[[], None]]


def record_graph(body: Callable[[], None]) -> Callable[[], None]:
    """A CUDA graph of what `body` launches, as a function that launches it again. All that it reads and writes stays where it is."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # compiles the kernels and fills the caches, which a graph must not do
        body()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        body()
    return graph.replay


class DecodeGraphs:
    """A model whose decode steps are launched as one graph: where a step is short, its hundreds of launches are most of it.

    Steps with prompt chunks, and those of more requests than the largest bucket, go the plain way.
    """

    def __init__(self, model: LanguageModel, record: Record = record_graph) -> None:
        self._model = model
        self._record = record
        self._graphs: dict[tuple[int, int], _Graph] = {}  # by bucket and longest context; recorded when first needed

    @property
    def config(self) -> LanguageModelConfig:
        return self._model.config

    @property
    def dtype(self) -> torch.dtype:
        return self._model.dtype

    @property
    def device(self) -> torch.device:
        return self._model.device

    def logits(self, hidden: Tensor) -> Tensor:
        return self._model.logits(hidden)

    def hidden(self, token_ids: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        num_tokens = len(token_ids)
        bucket = next((size for size in BUCKETS if size >= num_tokens), None)
        if bucket is None or not isinstance(attend, PageAttention) or not attend.is_decode:
            return self._model.hidden(token_ids, positions, attend)
        longest = PART << ((attend.longest - 1) // PART).bit_length()
        graph = self._graphs.get((bucket, longest))
        if graph is None:
            graph = self._graphs[bucket, longest] = _Graph(self._model, attend.pages, bucket, longest, self._record)
        return graph.run(attend)


class _Graph:
    """One recorded decode step of a fixed number of requests. What a step does not fill is padding: it is not stored and sees nothing."""

    def __init__(self, model: LanguageModel, pages: Tensor, size: int, longest: int, record: Record) -> None:
        device = pages.device
        num_blocks = -(-model.config.max_positions // pages.shape[3])
        self._padding = torch.tensor([[0], [0], [-1]], device=device)
        rows = self._padding.repeat(1, size)
        self._hidden = torch.zeros(size, model.config.hidden_size, dtype=model.dtype, device=device)
        self._replay: Callable[[], None] | None = None
        self._record = record
        tables = torch.zeros(size, num_blocks, dtype=torch.int64, device=device)
        self._attend = attend = PageAttention(pages, rows, tables, longest=longest)

        def body() -> None:
            self._hidden.copy_(model.hidden(attend.token_ids, attend.positions, attend))

        self._body = body

    def run(self, attend: PageAttention) -> Tensor:
        """[N, D]; overwritten by the next run."""
        own, (num_tokens, num_blocks) = self._attend, attend.block_tables.shape
        own.rows[:, :num_tokens] = attend.rows[:3]
        own.block_tables[:num_tokens, :num_blocks] = attend.block_tables
        if num_tokens < len(self._hidden):
            own.rows[:, num_tokens:] = self._padding
        if self._replay is None:
            self._replay = self._record(self._body)  # which may run it: running it twice writes the same twice
        self._replay()
        return self._hidden[:num_tokens]
