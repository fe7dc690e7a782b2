"""Multi-head attention, to itself (with a past) or across to the encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from .attention_pattern import AttentionPattern
from .config import OmniNetConfig
from .head_gate import HeadGate
from .linear import Linear
from .masks import Mask, SelfAttentionMasks
from .positions import rotate
from .sparse_attention import sparse_attention

KeyValue: TypeAlias = tuple[Tensor, Tensor]
"""Keys and values, each [B, H, S, D]."""

FUSED_FIRST = [
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


class Attention(nn.Module):
    """Scaled dot-product attention with several heads (Vaswani et al. 2017, section 3.2).

    ``name`` is its place in the model, as `OmniNetConfig.attention_names` gives it.
    """

    def __init__(self, config: OmniNetConfig, name: str) -> None:
        super().__init__()
        self.name = name
        self.heads = config.kept_heads(name)
        self.patterns = config.head_patterns(name)
        self.head_size = config.head_size
        self.dropout = config.attention_dropout
        inner, bias = len(self.heads) * self.head_size, config.attention_bias
        self.query = Linear(config.hidden_size, inner, bias=bias)
        self.key = Linear(config.hidden_size, inner, bias=bias)
        self.value = Linear(config.hidden_size, inner, bias=bias)
        self.output = Linear(inner, config.hidden_size, bias=bias)
        pooled = name.startswith("encoder")
        self.gate = HeadGate(config, len(self.heads), pooled) if config.head_pruning else None

    def forward(
        self,
        hidden: Tensor,
        mask: Mask,
        token_mask: Tensor | None = None,
        rotary: tuple[Tensor, Tensor] | None = None,
        past: KeyValue | None = None,
        memory: KeyValue | None = None,
    ) -> tuple[Tensor, KeyValue]:
        """Attend to ``hidden`` itself, or across to the keys and values that `project` made.

        Args:
            hidden: [B, T, C].
            mask: which keys are seen.
            token_mask: [B, T] int64, for the pooling of the head gate.
            rotary: cosines and sines, [B, 1, T, R/2].
            past: keys and values [B, H, P, D].
            memory: keys and values [B, H, S, D] to attend to in the place of hidden's own.

        Returns:
            [B, T, C], and the keys and values attended to, [B, H, P+T or S, D].
        """
        query = self._split(self.query(hidden))
        if memory is not None:
            return self._attend(hidden, query, memory, mask, token_mask), memory
        key = self._split(self.key(hidden))
        value = self._split(self.value(hidden))  # [B, H, T, D]
        if rotary is not None:
            query, key = rotate(query, rotary), rotate(key, rotary)
        if past is not None:
            key = torch.cat((past[0], key), dim=2)  # [B, H, P+T, D]
            value = torch.cat((past[1], value), dim=2)
        return self._attend(hidden, query, (key, value), mask, token_mask), (key, value)

    def project(self, memory: Tensor) -> KeyValue:
        """Keys and values of the encoder's output: [B, S, C] -> two of [B, H, S, D]."""
        return self._split(self.key(memory)), self._split(self.value(memory))

    def _attend(
        self,
        hidden: Tensor,
        query: Tensor,
        key_value: KeyValue,
        mask: Mask,
        token_mask: Tensor | None,
    ) -> Tensor:
        if mask.by_pattern is None:
            context = self._dot_product(query, *key_value, mask)  # [B, H, T, D]
        else:
            context = self._by_pattern(query, *key_value, mask.by_pattern)
        if self.gate is not None:
            context = context * self.gate(hidden, token_mask)
        return self.output(context.transpose(1, 2).flatten(2))

    def _dot_product(self, query: Tensor, key: Tensor, value: Tensor, mask: Mask) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        fused = any(pattern.type == "flash" for pattern in self.patterns)
        if fused and not torch.compiler.is_exporting():
            with sdpa_kernel(FUSED_FIRST, set_priority=True):
                return F.scaled_dot_product_attention(
                    query, key, value, mask.tensor, dropout, mask.is_causal
                )
        return F.scaled_dot_product_attention(
            query, key, value, mask.tensor, dropout, mask.is_causal
        )

    def _by_pattern(
        self, query: Tensor, key: Tensor, value: Tensor, masks: SelfAttentionMasks
    ) -> Tensor:
        """The heads of each pattern by themselves, the sparse ones by blocks."""
        contexts: list[Tensor] = []
        places: list[int] = []
        for pattern in dict.fromkeys(self.patterns):
            group = [place for place, other in enumerate(self.patterns) if other == pattern]
            contexts.append(self._one_pattern(pattern, group, (query, key, value), masks))
            places += group
        if len(contexts) == 1:
            return contexts[0]
        order = sorted(range(len(places)), key=places.__getitem__)
        return torch.cat(contexts, dim=1)[:, order]

    def _one_pattern(
        self,
        pattern: AttentionPattern,
        group: list[int],
        tensors: Sequence[Tensor],
        masks: SelfAttentionMasks,
    ) -> Tensor:
        query, key, value = (
            tensor if len(group) == len(self.heads) else tensor[:, group] for tensor in tensors
        )
        heads = tuple(self.heads[place] for place in group)
        if not pattern.is_sparse:
            mask = masks.of((pattern,) * len(group), heads)
            return self._dot_product(query, key, value, mask)
        return sparse_attention(
            query,
            key,
            value,
            pattern,
            masks.causal,
            masks.token_mask,
            masks.bias_of(heads),
            self.dropout if self.training else 0.0,
        )

    def _split(self, projected: Tensor) -> Tensor:
        """[B, T, H * D] -> [B, H, T, D]."""
        return projected.unflatten(-1, (len(self.heads), self.head_size)).transpose(1, 2)
