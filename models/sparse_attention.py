"""Sparse attention by blocks: the numbers of dense attention with the mask, at a cost linear in T.

Queries come in blocks. Each block gathers the few blocks of keys that its pattern can see, and
attends to those alone, with the same visibility and bias as masks.py makes, evaluated only there.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .attention_pattern import AttentionPattern
from .masks import HeadBias, allowed, biased, key_mask, random_block

LEAST_BLOCK = 32  # smaller blocks cost more in overhead than they save in keys


@dataclass(frozen=True)
class BlockLayout:
    """T positions as N blocks of b, and the K blocks of keys that each block of queries gathers."""

    length: int
    size: int
    gathered: Tensor  # [N, K] int64, each in 0 to N - 1
    valid: Tensor  # [N, K] bool, False for a block that is not there or is gathered already

    def split(self, x: Tensor) -> Tensor:
        """[..., T, D] -> [..., N, b, D], padded with zeros."""
        padding = len(self.gathered) * self.size - self.length
        return F.pad(x, (0, 0, 0, padding)).unflatten(-2, (-1, self.size))


def sparse_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pattern: AttentionPattern,
    causal: bool,
    token_mask: Tensor | None,
    bias: HeadBias | None,
    dropout: float,
) -> Tensor:
    """Attention of some heads that share a sparse pattern, without a past.

    Args:
        query, key, value: [B, H, T, D].
        pattern: sliding_window or block_sparse.
        causal: whether later keys are hidden.
        token_mask: [B, T] int64, 1 for a token; None: no padding.
        bias: the position bias of these heads.
        dropout: the rate on the attention weights.

    Returns:
        [B, H, T, D].
    """
    layout = block_layout(pattern, query.shape[2], causal, query.device)
    blocks, size = len(layout.gathered), layout.size
    within = torch.arange(size, device=query.device)
    keys = (layout.gathered.unsqueeze(-1) * size + within).flatten(1).unsqueeze(1)  # [N, 1, K*b]
    starts = torch.arange(blocks, device=query.device) * size
    queries = (starts.unsqueeze(-1) + within).unsqueeze(-1)  # [N, b, 1]

    seen = (keys < layout.length).unsqueeze(0)  # [1, N, 1, K*b]
    if token_mask is not None:
        tokens = layout.split(token_mask.to(torch.bool).unsqueeze(-1)).squeeze(-1)  # [B, N, b]
        seen = seen & tokens[:, layout.gathered].flatten(2).unsqueeze(2)  # [B, N, 1, K*b]
    valid = layout.valid.repeat_interleave(size, dim=1).unsqueeze(1)  # [N, 1, K*b]
    visible = allowed(pattern, queries, keys, causal) & valid & (seen | (keys == queries))
    mask = visible.unsqueeze(2)  # [B or 1, N, 1, b, K*b]
    if bias is not None:
        scores = bias(keys - queries).transpose(0, 1)  # [N, H, b, K*b]
        mask = biased(scores, mask, query.dtype)

    batch = query.shape[0]
    mask = mask.expand(batch, *mask.shape[1:]).flatten(0, 1)  # [B*N, H or 1, b, K*b]
    context = F.scaled_dot_product_attention(
        layout.split(query).transpose(1, 2).flatten(0, 1),  # [B*N, H, b, D]
        _gather(layout, key),
        _gather(layout, value),
        mask,
        dropout,
    )
    context = context.unflatten(0, (batch, blocks)).transpose(1, 2).flatten(2, 3)
    context = context[:, :, : layout.length]
    if causal or pattern.type == "sliding_window" or not pattern.global_blocks:
        return context
    first = min(pattern.global_blocks * size, layout.length)
    top = _global_rows(query[:, :, :first], key, value, token_mask, bias, dropout)
    return torch.cat((top, context[:, :, first:]), dim=2)


def block_layout(
    pattern: AttentionPattern, length: int, causal: bool, device: torch.device
) -> BlockLayout:
    """Which blocks of keys each block of queries has to look at."""
    if pattern.type == "sliding_window":
        size = max(pattern.window, LEAST_BLOCK)  # so that the neighbours reach far enough
    else:
        size = pattern.block_size
    own = torch.arange(-(-length // size), device=device)  # [N]
    columns = [own - 1, own] if causal else [own - 1, own, own + 1]
    if pattern.type == "block_sparse":
        columns += [torch.full_like(own, block) for block in range(pattern.global_blocks)]
        columns += [
            random_block(pattern, slot, own, causal) for slot in range(pattern.random_blocks)
        ]
    gathered = torch.stack(columns, dim=1)  # [N, K]
    valid = (gathered >= 0) & (gathered < len(own))
    same = (gathered.unsqueeze(2) == gathered.unsqueeze(1)).tril(diagonal=-1)  # [N, K, K]
    return BlockLayout(length, size, gathered.clamp(0, len(own) - 1), valid & ~same.any(dim=2))


def _gather(layout: BlockLayout, x: Tensor) -> Tensor:
    """[B, H, T, D] -> [B*N, H, K*b, D]."""
    blocks = layout.split(x).transpose(1, 2)  # [B, N, H, b, D]
    gathered = blocks[:, layout.gathered]  # [B, N, K, H, b, D]
    return gathered.transpose(2, 3).flatten(3, 4).flatten(0, 1)


def _global_rows(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    token_mask: Tensor | None,
    bias: HeadBias | None,
    dropout: float,
) -> Tensor:
    """The first queries, which see every key: [B, H, G, D]."""
    keys = torch.arange(key.shape[2], device=key.device).unsqueeze(0)
    queries = torch.arange(query.shape[2], device=key.device).unsqueeze(1)
    mask = None
    if token_mask is not None:
        mask = key_mask(token_mask) | (keys == queries)  # [B, 1, G, T]
    if bias is not None:
        mask = biased(bias(keys - queries).unsqueeze(0), mask, query.dtype)  # [.., H, G, T]
    return F.scaled_dot_product_attention(query, key, value, mask, dropout)
