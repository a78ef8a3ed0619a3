"""Causal attention over keys and values kept in blocks (PagedAttention, Kwon et al. 2023, arXiv:2309.06180).

Queries that share key/value head g are treated as the Q = H/G queries of one head, so keys and values are never repeated.
"""

# N tokens, R requests, M blocks of the longest request, S = M * block_size, H query heads, G key/value heads, K head size

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

TOGETHER = 8  # requests whose gathered keys and values stay in a processor's caches


def write_pages(pages: Tensor, slots: Tensor, new: Tensor) -> None:
    """Store each token's key (or value) in its slot, in place.

    Args:
        pages: [num_blocks, block_size, G, K], contiguous.
        slots: [N], int64: block id * block_size + offset in the block; no slot twice.
        new: [N, G, K], in the dtype of pages.
    """
    pages.view(-1, *pages.shape[2:]).index_copy_(0, slots, new)


def gather_pages(pages: Tensor, block_tables: Tensor) -> Tensor:
    """The blocks of each request side by side: pages [num_blocks, block_size, G, K], tables [R, M] -> [R, S, G, K]."""
    num_requests, num_blocks = block_tables.shape
    return pages.index_select(0, block_tables.flatten()).view(num_requests, num_blocks * pages.shape[1], *pages.shape[2:])


def visible(context_lens: Tensor, num_slots: int, window: int | None) -> Tensor:
    """Which slots the last token of each request sees: [R] int64 -> [R, S] bool."""
    slot = torch.arange(num_slots, device=context_lens.device)
    seen = slot < context_lens[:, None]
    if window is not None:
        seen &= slot >= context_lens[:, None] - window
    return seen


def paged_decode(
    query: Tensor, keys: Tensor, values: Tensor, block_tables: Tensor, *, num_slots: int, seen: Tensor | None, scale: float
) -> Tensor:
    """One query for each request, all requests at once.

    Args:
        query: [R, H, K].
        keys: [num_blocks, block_size, G, K]; the query's own key is written already.
        values: as keys. Unused slots hold finite numbers.
        block_tables: [R, M], int64; rows shorter than M are filled with any valid block.
        num_slots: of the S slots of each request, so many are read: the longest context.
        seen: [R, num_slots], bool, True where seen, at least once a row; None sees all.
        scale: factor on the dot products.

    Returns:
        [R, H, K].
    """
    num_requests, num_heads, head_dim = query.shape
    num_kv_heads = keys.shape[2]
    if query.device.type == "cpu" and num_requests > TOGETHER:
        starts = range(0, num_requests, TOGETHER)
        return torch.cat(
            [
                paged_decode(
                    query[start : start + TOGETHER],
                    keys,
                    values,
                    block_tables[start : start + TOGETHER],
                    num_slots=num_slots,
                    seen=None if seen is None else seen[start : start + TOGETHER],
                    scale=scale,
                )
                for start in starts
            ]
        )
    # On CPUs torch attends with one query six times slower in bfloat16 than in float32.
    dtype = torch.promote_types(query.dtype, torch.float32) if query.device.type == "cpu" else query.dtype

    def gather(pages: Tensor) -> Tensor:
        """[R, G, S, K]."""
        return gather_pages(pages, block_tables)[:, :num_slots].to(dtype).transpose(1, 2)

    attended = scaled_dot_product_attention(
        query.view(num_requests, num_kv_heads, num_heads // num_kv_heads, head_dim).to(dtype),
        gather(keys),
        gather(values),
        attn_mask=None if seen is None else seen[:, None, None, :],
        scale=scale,
    )
    return attended.reshape(num_requests, num_heads, head_dim).to(query.dtype)


def paged_chunk(query: Tensor, keys: Tensor, values: Tensor, block_ids: Tensor, *, start: int, scale: float, window: int | None) -> Tensor:
    """Consecutive queries of one request, each of which sees itself and what stands before it.

    Args:
        query: [N, H, K], tokens start .. start + N of the request.
        keys: [num_blocks, block_size, G, K]; the queries' own keys are written already.
        values: as keys.
        block_ids: [M], int64, blocks that hold at least start + N tokens.
        start: tokens of the request before this chunk.
        scale: factor on the dot products.
        window: how many tokens a query sees, itself included; None is all.

    Returns:
        [N, H, K].
    """
    num_tokens, num_kv_heads = query.shape[0], keys.shape[2]
    end = start + num_tokens
    mask = None
    if start or (window is not None and window < end):
        position = torch.arange(end, device=query.device)
        distance = position[start:, None] - position[None, :]
        mask = distance >= 0 if window is None else (distance >= 0) & (distance < window)  # [N, end], True where seen
    return scaled_dot_product_attention(
        query.transpose(0, 1)[None],
        gather_pages(keys, block_ids[None])[:, :end].transpose(1, 2),
        gather_pages(values, block_ids[None])[:, :end].transpose(1, 2),
        attn_mask=mask,
        is_causal=mask is None,
        scale=scale,
        enable_gqa=query.shape[1] != num_kv_heads,
    )[0].transpose(0, 1)
