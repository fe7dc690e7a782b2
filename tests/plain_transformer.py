"""A small transformer as others write one: attention without scaled_dot_product_attention."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

WIDTH, HEADS, ROWS = 16, 2, 40


class Attention(nn.Module):
    """Attention as it is written without scaled_dot_product_attention."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        size = (*hidden.shape[:2], HEADS, WIDTH // HEADS)
        query, key, value = (
            part(hidden).view(size).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        scores = query @ key.transpose(-1, -2) / (WIDTH // HEADS) ** 0.5 + mask
        return self.out((scores.softmax(-1) @ value).transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.norm = Attention(), nn.LayerNorm(WIDTH)

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.norm(hidden + self.attention(hidden, mask))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(ROWS, WIDTH)
        self.layers = nn.ModuleList([Block(), Block()])

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        mask = (1 - attention_mask[:, None, None, :].float()) * -1e9
        hidden = self.embedding(input_ids)
        for layer in self.layers:
            hidden = layer(hidden, mask)
        return hidden


def example() -> tuple[nn.Module, Mapping[str, torch.Tensor]]:
    """The transformer and inputs [2, 7] for it, the same at each call."""
    torch.manual_seed(0)
    ids = torch.randint(0, ROWS, (2, 7))
    return Net().eval(), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def open_shapes() -> tuple[dict[int, torch.export.Dim], ...]:
    """Names for the axes of both inputs, as torch's exporters take them."""
    batch, length = torch.export.Dim("batch_size"), torch.export.Dim("sequence_length")
    return ({0: batch, 1: length}, {0: batch, 1: length})
