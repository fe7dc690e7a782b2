"""Multi-head attention, to itself (with a past) or across to the encoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from .config import OmniNetConfig
from .linear import Linear
from .masks import Mask
from .positions import rotate

KeyValue = tuple[Tensor, Tensor]
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

    def forward(
        self,
        hidden: Tensor,
        mask: Mask,
        rotary: tuple[Tensor, Tensor] | None = None,
        past: KeyValue | None = None,
    ) -> tuple[Tensor, KeyValue]:
        """Attend to ``hidden`` itself: [B, T, C] -> [B, T, C], and keys and values [B, H, P+T, D]."""
        query, key = self._split(self.query(hidden)), self._split(self.key(hidden))
        value = self._split(self.value(hidden))  # [B, H, T, D]
        if rotary is not None:
            query, key = rotate(query, rotary), rotate(key, rotary)
        if past is not None:
            key = torch.cat((past[0], key), dim=2)  # [B, H, P+T, D]
            value = torch.cat((past[1], value), dim=2)
        return self._attend(query, key, value, mask), (key, value)

    def cross(self, hidden: Tensor, key_value: KeyValue, mask: Mask) -> Tensor:
        """Attend to keys and values made by `project`: [B, T, C] -> [B, T, C]."""
        return self._attend(self._split(self.query(hidden)), *key_value, mask)

    def project(self, memory: Tensor) -> KeyValue:
        """Keys and values of the encoder's output: [B, S, C] -> two of [B, H, S, D]."""
        return self._split(self.key(memory)), self._split(self.value(memory))

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Mask) -> Tensor:
        context = self._dot_product(query, key, value, mask)  # [B, H, T, D]
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

    def _split(self, projected: Tensor) -> Tensor:
        """[B, T, H * D] -> [B, H, T, D]."""
        return projected.unflatten(-1, (len(self.heads), self.head_size)).transpose(1, 2)
