"""The route on an NVIDIA GPU: Triton's paged attention, and decode steps replayed from recorded graphs. Not yet measured on a GPU."""

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
from tripod.engine.execution.sampler import torch_argmax, torch_greedy
from tripod.models.language_model import LanguageModel, LanguageModelConfig
from tripod.ops.attention import Attend
from tripod.ops.kernels.cuda.paged_attention import PART, Tiles, paged_attention, write_pages

CHUNK_TILE = 16  # tokens of a prompt that read the keys together
BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)  # decode steps of up to so many requests share a graph


class CudaRoute:
    """Chosen on a CUDA device where Triton is installed."""

    is_batch_invariant = False  # its matrix products are cuBLAS's
    expert_cache = None

    def __init__(self, model: LanguageModel) -> None:
        self.kv_dtype = model.dtype
        self.weight_format = str(model.dtype).removeprefix("torch.")
        self._device = model.device
        self.name = f"cuda (Triton, on {torch.cuda.get_device_name(model.device)})"

    def pack(self, model: LanguageModel, checkpoint: Path | None = None) -> LanguageModel:
        return DecodeGraphs(model)

    def allocate(self, spec: KVCacheSpec) -> KVCache:
        return TritonKVCache(spec, self._device)

    def start_thread(self) -> None:
        torch.cuda.set_device(self._device)

    def argmax(self, logits: Tensor) -> Tensor:
        return torch_argmax(logits)

    def greedy(self, model: LanguageModel, hidden: Tensor) -> tuple[Tensor, Tensor]:
        return torch_greedy(model, hidden)

    def step(self) -> AbstractContextManager[None]:
        return nullcontext()


class TritonKVCache(TorchKVCache):
    """The pool of `TorchKVCache`, read by Triton's kernels."""

    def attend(self, batch: RaggedBatch) -> TritonAttention:  # type: ignore[override]
        return TritonAttention(self.pages, batch)


class TritonAttention:
    """The `Attend` of one step: a launch for all decodes, one for all chunks."""

    def __init__(self, pages: Tensor, batch: RaggedBatch) -> None:
        """
        Args:
            pages: [L, 2, num_blocks, block_size, G, K].
            batch: the step's tokens.
        """
        self.pages = pages
        self.slots = batch.slots
        self.block_tables = batch.block_tables
        rows = list(enumerate(batch.spans))
        decodes = _tiles([(row, span) for row, span in rows if span.num_tokens == 1], 1, pages.device)
        chunks = _tiles([(row, span) for row, span in rows if span.num_tokens > 1], CHUNK_TILE, pages.device)
        self.tiles = [tiles for tiles in (decodes, chunks) if tiles is not None]
        self.is_decode = chunks is None

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float, window: int | None = None) -> Tensor:
        keys, values = self.pages[layer, 0], self.pages[layer, 1]
        query, key, value = _rows(query), _rows(key), _rows(value)
        write_pages(keys, values, self.slots, key, value)
        out = torch.empty_like(query, memory_format=torch.contiguous_format)
        for tiles in self.tiles:
            paged_attention(query, keys, values, self.block_tables, tiles, scale=scale, window=window, out=out)
        return out


def _rows(x: Tensor) -> Tensor:
    """[N, heads, K] whose rows are contiguous, which slices of a joint projection are already."""
    return x if x.stride(-1) == 1 and x.stride(-2) == x.shape[-1] else x.contiguous()


def _tiles(spans: Sequence[tuple[int, Span]], size: int, device: torch.device) -> Tiles | None:
    """`spans` with their rows of the block tables, cut into tiles of at most `size` tokens; None where there are none."""
    if not spans:
        return None
    tiles = [
        (request, span.rows.start + offset, min(size, span.num_tokens - offset), span.start + offset)
        for request, span in spans
        for offset in range(0, span.num_tokens, size)
    ]
    request, row, count, start = torch.tensor(tiles, dtype=torch.int32).T.contiguous().to(device).unbind()
    return Tiles(request, row, count, start, size=size, num_parts=-(-max(span.end for _, span in spans) // PART))


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
        self._graphs: dict[tuple[int, int], _Graph] = {}  # by bucket and parts; recorded when first needed

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
        if bucket is None or not isinstance(attend, TritonAttention) or not attend.is_decode:
            return self._model.hidden(token_ids, positions, attend)
        num_parts = 1 << (attend.tiles[0].num_parts - 1).bit_length()
        graph = self._graphs.get((bucket, num_parts))
        if graph is None:
            graph = self._graphs[bucket, num_parts] = _Graph(self._model, attend.pages, bucket, num_parts, self._record)
        return graph.run(token_ids, positions, attend)


class _Graph:
    """One recorded decode step of a fixed number of requests. What a step does not fill is padding: it is not stored and sees nothing."""

    def __init__(self, model: LanguageModel, pages: Tensor, size: int, num_parts: int, record: Record) -> None:
        device = pages.device
        num_blocks = -(-model.config.max_positions // pages.shape[3])
        rows = torch.arange(size, dtype=torch.int32, device=device)
        self._token_ids = torch.zeros(size, dtype=torch.int64, device=device)
        self._positions = torch.zeros(size, dtype=torch.int64, device=device)
        self._slots = torch.full((size,), -1, dtype=torch.int64, device=device)
        self._tables = torch.zeros(size, num_blocks, dtype=torch.int64, device=device)
        self._tiles = Tiles(rows, rows, torch.zeros_like(rows), torch.zeros_like(rows), size=1, num_parts=num_parts)
        self._hidden = torch.zeros(size, model.config.hidden_size, dtype=model.dtype, device=device)
        self._replay: Callable[[], None] | None = None
        self._record = record
        attend = _StaticAttention(pages, self._slots, self._tables, self._tiles)

        def body() -> None:
            self._hidden.copy_(model.hidden(self._token_ids, self._positions, attend))

        self._body = body

    def run(self, token_ids: Tensor, positions: Tensor, attend: TritonAttention) -> Tensor:
        """[N, D]; overwritten by the next run."""
        num_tokens, num_blocks = len(token_ids), attend.block_tables.shape[1]
        tiles = attend.tiles[0]
        self._token_ids[:num_tokens] = token_ids
        self._positions[:num_tokens] = positions
        self._slots[:num_tokens] = attend.slots
        self._slots[num_tokens:] = -1
        self._tables[:num_tokens, :num_blocks] = attend.block_tables
        self._tiles.count[:num_tokens] = tiles.count
        self._tiles.count[num_tokens:] = 0
        self._tiles.start[:num_tokens] = tiles.start
        if self._replay is None:
            self._replay = self._record(self._body)  # which may run it: running it twice writes the same twice
        self._replay()
        return self._hidden[:num_tokens]


class _StaticAttention(TritonAttention):
    """Over tensors that stay where they are while their contents change."""

    def __init__(self, pages: Tensor, slots: Tensor, block_tables: Tensor, tiles: Tiles) -> None:
        self.pages, self.slots, self.block_tables = pages, slots, block_tables
        self.tiles = [tiles]
        self.is_decode = True
