"""Which keys each query sees, and with what bias: computed once a forward, shared by the layers.

Key j is visible to query i if and only if j is a token (not padding), the pattern of the head
allows it, and, in a causal layer, j <= i; positions count the past. One exception, made here and
nowhere else: every query sees itself, so that no row is fully masked, even where the query is
padding. Runtimes disagree about such rows, and the numbers of real tokens are the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .attention_pattern import AttentionPattern

RANDOM_ROWS = 1024  # query blocks after which the random draws repeat
RANDOM_STEPS = 1 << 16


@dataclass(frozen=True)
class Mask:
    """What scaled_dot_product_attention is given.

    `tensor` is [B or 1, H or 1, T, S]: bool (True: visible), or float to be added to the scores.
    """

    tensor: Tensor | None = None
    is_causal: bool = False


class SelfAttentionMasks:
    """The masks of one stack's self-attentions in one forward, each made when first asked for."""

    def __init__(
        self,
        reference: Tensor,
        past: int,
        token_mask: Tensor | None,
        causal: bool,
        bias: nn.Module | None,
    ) -> None:
        """
        Args:
            reference: [B, T, C], for its length, device and dtype.
            past: P, keys before the first query.
            token_mask: [B, P + T] int64, 1 for a token; None: no padding.
            causal: whether later keys are hidden.
            bias: `RelativeBias`, `AlibiBias` or None.
        """
        self.past, self.causal, self.bias = past, causal, bias
        self.length, self.device, self.dtype = reference.shape[1], reference.device, reference.dtype
        self.token_mask = token_mask
        self._made: dict[tuple[object, ...], Mask] = {}

    def of(self, patterns: tuple[AttentionPattern, ...], heads: tuple[int, ...]) -> Mask:
        """The mask of a layer with these ``heads`` (numbered before any removal)."""
        if len(set(patterns)) == 1:
            patterns = patterns[:1]
        sees = tuple(p if p.is_sparse else AttentionPattern() for p in patterns)
        key = (sees, heads if self.bias is not None else None)
        if key not in self._made:
            self._made[key] = self._make(sees, heads)
        return self._made[key]

    def _make(self, patterns: tuple[AttentionPattern, ...], heads: tuple[int, ...]) -> Mask:
        sparse = any(pattern.is_sparse for pattern in patterns)
        if self.bias is None and self.token_mask is None and not sparse:
            if not self.causal:
                return Mask()
            # A causal flag is read in two ways where queries and keys differ in number.
            if not torch.compiler.is_exporting() and isinstance(self.past, int) and not self.past:
                return Mask(is_causal=True)
        queries = torch.arange(self.past, self.past + self.length, device=self.device).unsqueeze(1)
        keys = torch.arange(self.past + self.length, device=self.device).unsqueeze(0)  # [1, S]
        visible = self._visible(patterns, queries, keys)
        if self.bias is None:
            return Mask(visible)
        all_heads = heads == tuple(range(len(heads))) and len(heads) == self.bias_heads
        bias = self.bias(keys - queries, None if all_heads else list(heads)).unsqueeze(0)
        if visible is not None:
            bias = bias.masked_fill(~visible, torch.finfo(bias.dtype).min)  # [B, H, T, S]
        return Mask(bias.to(self.dtype))

    @property
    def bias_heads(self) -> int:
        """How many heads the bias was made for."""
        for tensor in (getattr(self.bias, "slopes", None), getattr(self.bias, "table", None)):
            if isinstance(tensor, Tensor):
                return len(tensor)
            if isinstance(tensor, nn.Embedding):
                return tensor.embedding_dim
        return 0

    def _visible(
        self, patterns: tuple[AttentionPattern, ...], queries: Tensor, keys: Tensor
    ) -> Tensor | None:
        """[B or 1, H or 1, T, S] bool, or None where all is visible."""
        visible = None
        if any(pattern.is_sparse for pattern in patterns):
            by_pattern = {p: allowed(p, queries, keys, self.causal) for p in set(patterns)}
            visible = torch.stack([by_pattern[p] for p in patterns]).unsqueeze(0)  # [1, H, T, S]
        elif self.causal:
            visible = (keys <= queries).unsqueeze(0).unsqueeze(0)  # [1, 1, T, S]
        if self.token_mask is not None:
            tokens = key_mask(self.token_mask) | (keys == queries)  # [B, 1, T, S]
            visible = tokens if visible is None else tokens & visible
        return visible


def cross_attention_mask(token_mask: Tensor | None, length: int) -> Mask:
    """The encoder's mask [B, S] for T queries: [B, 1, T, S], where T is written out.

    onnxruntime's Attention broadcasts the batch and the heads of a mask, and not its queries.
    A row of the batch without any token gives 0, as an attention over no keys.
    """
    if token_mask is None:
        return Mask()
    return Mask(key_mask(token_mask).expand(-1, -1, length, -1))


def key_mask(token_mask: Tensor) -> Tensor:
    """[B, S] of 0 and 1 -> [B, 1, 1, S] bool."""
    return token_mask.to(torch.bool).unsqueeze(1).unsqueeze(1)


def allowed(pattern: AttentionPattern, queries: Tensor, keys: Tensor, causal: bool) -> Tensor:
    """What ``pattern`` lets through, by positions that broadcast ([T, 1] and [1, S]) -> bool."""
    if pattern.type == "sliding_window":
        distance = queries - keys
        if causal:
            return (distance >= 0) & (distance < pattern.window)
        return distance.abs() < pattern.window
    if pattern.type == "block_sparse":
        of_query, of_key = queries // pattern.block_size, keys // pattern.block_size
        through = block_allowed(pattern, of_query, of_key, causal)
        return through & (keys <= queries) if causal else through
    if causal:
        return keys <= queries
    return (keys >= 0) | (queries >= 0)


def block_allowed(
    pattern: AttentionPattern, of_query: Tensor, of_key: Tensor, causal: bool
) -> Tensor:
    """Whether a block of queries sees a block of keys, by block numbers that broadcast."""
    through = (of_query - of_key).abs() <= 1
    if pattern.global_blocks:
        through = through | (of_key < pattern.global_blocks) | (of_query < pattern.global_blocks)
    for slot in range(pattern.random_blocks):
        through = through | (random_block(pattern, slot, of_query, causal) == of_key)
    return through


def random_block(pattern: AttentionPattern, slot: int, of_query: Tensor, causal: bool) -> Tensor:
    """The key block that a query block sees by chance: the same at any length and with any past.

    Block n draws from the blocks 0 to n when causal, and from 0 to 2n + 1 otherwise: as many
    after it as before. A block beyond the last one is not there, and so not seen.
    """
    table = random_table(pattern, slot).to(of_query.device)
    draws = of_query + 1 if causal else 2 * of_query + 2
    return table[of_query % RANDOM_ROWS] * draws // RANDOM_STEPS


def random_table(pattern: AttentionPattern, slot: int) -> Tensor:
    """[RANDOM_ROWS] int64 fractions of RANDOM_STEPS, by the pattern's seed."""
    generator = torch.Generator().manual_seed(pattern.seed * 1009 + slot)
    return torch.randint(RANDOM_STEPS, (RANDOM_ROWS,), generator=generator)
