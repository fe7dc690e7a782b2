"""Which keys each query sees, and with what bias: computed once a forward, shared by the layers.

Key j is visible to query i if and only if j is a token (not padding), the pattern of the head
allows it, and, in a causal layer, j <= i; positions count the past. One exception, made here and
in sparse_attention.py: every query sees itself, so that no row is fully masked, even where the
query is padding. Runtimes disagree about such rows; the numbers of real tokens are the same.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TypeAlias

import torch
from torch import Tensor

from .attention_pattern import AttentionPattern
from .positions import AlibiBias, RelativeBias

RANDOM_ROWS = 1024  # blocks of queries after which the random draws repeat
RANDOM_STEPS = 1 << 16

HeadBias: TypeAlias = Callable[[Tensor], Tensor]
"""Key position less query position, [...] int64, to the bias of some heads, [H, ...]."""


@dataclass(frozen=True)
class Mask:
    """Which keys one attention sees.

    `tensor` is [B or 1, H or 1, T, S]: bool (True: visible), or float to be added to the scores.
    Where `by_pattern` is given, there is no tensor: the heads of each pattern run by themselves.
    """

    tensor: Tensor | None = None
    is_causal: bool = False
    by_pattern: SelfAttentionMasks | None = None


class SelfAttentionMasks:
    """The masks of one stack's self-attentions in one forward, each made when first asked for."""

    def __init__(
        self,
        reference: Tensor,
        past: int,
        token_mask: Tensor | None,
        causal: bool,
        bias: RelativeBias | AlibiBias | None,
        sparse_threshold: int,
    ) -> None:
        """Take what all layers share.

        Args:
            reference: [B, T, C], for its length, device and dtype.
            past: P, keys before the first query.
            token_mask: [B, P + T] int64, 1 for a token; None: no padding.
            causal: whether later keys are hidden.
            bias: the position bias of all heads, if there is one.
            sparse_threshold: the length from which sparse patterns run by blocks.
        """
        self.past, self.causal, self.bias, self.token_mask = past, causal, bias, token_mask
        self.length, self.device, self.dtype = reference.shape[1], reference.device, reference.dtype
        # A trace takes the dense form, whose numbers are the same at every length; a symbolic
        # length must not be compared with anything.
        eager = not torch.compiler.is_exporting() and isinstance(self.length + past, int)
        self.starts_here = eager and past == 0
        self.blockwise = self.starts_here and self.length >= sparse_threshold
        self._made: dict[tuple[object, ...], Mask] = {}

    def of(self, patterns: tuple[AttentionPattern, ...], heads: tuple[int, ...]) -> Mask:
        """The mask for these ``heads`` (numbered before any removal) with these ``patterns``."""
        sees = tuple(p if p.is_sparse else AttentionPattern() for p in patterns)
        if len(set(sees)) == 1:
            sees = sees[:1]
        if self.blockwise and any(pattern.is_sparse for pattern in sees):
            return Mask(by_pattern=self)
        key = (sees, heads if self.bias is not None else None)
        if key not in self._made:
            self._made[key] = self._make(sees, heads)
        return self._made[key]

    def bias_of(self, heads: tuple[int, ...]) -> HeadBias | None:
        """The position bias of some heads."""
        if self.bias is None or heads == tuple(range(self.bias.heads)):
            return self.bias
        return partial(self.bias, heads=list(heads))

    def _make(self, patterns: tuple[AttentionPattern, ...], heads: tuple[int, ...]) -> Mask:
        dense = not any(pattern.is_sparse for pattern in patterns)
        if dense and self.bias is None and self.token_mask is None:
            if not self.causal:
                return Mask()
            # A causal flag can be read in two ways where queries and keys differ in number.
            if self.starts_here:
                return Mask(is_causal=True)
        queries = torch.arange(self.past, self.past + self.length, device=self.device).unsqueeze(1)
        keys = torch.arange(self.past + self.length, device=self.device).unsqueeze(0)
        visible = self._visible(None if dense else patterns, queries, keys)
        bias = self.bias_of(heads)
        if bias is None:
            return Mask(visible)
        return Mask(biased(bias(keys - queries).unsqueeze(0), visible, self.dtype))

    def _visible(
        self, patterns: tuple[AttentionPattern, ...] | None, queries: Tensor, keys: Tensor
    ) -> Tensor | None:
        """Positions [T, 1] and [1, S] -> [B or 1, H or 1, T, S] bool, or None: all is visible."""
        visible = None
        if patterns is not None:
            by_pattern = {
                p: allowed(p, queries, keys, self.causal) for p in dict.fromkeys(patterns)
            }
            visible = torch.stack([by_pattern[p] for p in patterns]).unsqueeze(0)
        elif self.causal:
            visible = (keys <= queries).unsqueeze(0).unsqueeze(0)
        if self.token_mask is None:
            return visible
        tokens = key_mask(self.token_mask) | (keys == queries)  # [B, 1, T, S]
        return tokens if visible is None else tokens & visible


def cross_attention_mask(token_mask: Tensor | None, length: int) -> Mask:
    """The encoder's mask [B, S] for T queries: [B, 1, T, S], with T rows.

    onnxruntime's Attention broadcasts the batch and the heads of a mask, and not its queries.
    A row of the batch without any token gives 0, as an attention over no keys.
    """
    if token_mask is None:
        return Mask()
    return Mask(key_mask(token_mask).expand(-1, -1, length, -1))


def key_mask(token_mask: Tensor) -> Tensor:
    """[B, S] of 0 and 1 -> [B, 1, 1, S] bool."""
    return token_mask.to(torch.bool).unsqueeze(1).unsqueeze(1)


def biased(bias: Tensor, visible: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The bias as an additive mask: the least finite number where a key is not visible."""
    if visible is not None:
        bias = torch.where(visible, bias, torch.finfo(bias.dtype).min)
    return bias.to(dtype)


def allowed(pattern: AttentionPattern, queries: Tensor, keys: Tensor, causal: bool) -> Tensor:
    """What a ``pattern`` lets through, by positions that broadcast -> bool."""
    if not pattern.is_sparse:  # a head beside sparse ones
        return keys <= queries if causal else (keys >= 0) & (queries >= 0)
    if pattern.type == "sliding_window":
        if causal:
            return (keys <= queries) & (keys > queries - pattern.window)
        return (queries - keys).abs() < pattern.window
    of_query, of_key = queries // pattern.block_size, keys // pattern.block_size
    through = (of_query - of_key).abs() <= 1
    if pattern.global_blocks:
        through = through | (of_key < pattern.global_blocks) | (of_query < pattern.global_blocks)
    for slot in range(pattern.random_blocks):
        through = through | (random_block(pattern, slot, of_query, causal) == of_key)
    return through & (keys <= queries) if causal else through


def random_block(pattern: AttentionPattern, slot: int, of_query: Tensor, causal: bool) -> Tensor:
    """The block of keys that a block of queries sees by chance: the same at any length.

    Block n draws from the blocks 0 to n when causal, and from 0 to 2n + 1 otherwise, as many
    after it as before. A block beyond the last one is not there, and so not seen.
    """
    table = torch.tensor(random_table(pattern.seed, slot), device=of_query.device)
    draws = of_query + 1 if causal else 2 * of_query + 2
    rows = (of_query % RANDOM_ROWS).flatten()
    drawn = table.index_select(0, rows).view_as(of_query)  # a plain Gather once traced
    return drawn * draws // RANDOM_STEPS


@lru_cache(maxsize=64)
def random_table(seed: int, slot: int) -> tuple[int, ...]:
    """RANDOM_ROWS fractions, in units of 1 / RANDOM_STEPS; integers, so that no runtime rounds."""
    draw = random.Random(f"{seed}/{slot}")
    return tuple(int(draw.random() * RANDOM_STEPS) for _ in range(RANDOM_ROWS))
