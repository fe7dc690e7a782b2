"""The feed-forward half of a block."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from .activations import ACTIVATIONS
from .config import OmniNetConfig
from .linear import Linear


class FeedForward(nn.Module):
    """Two projections around an activation (Vaswani et al. 2017, section 3.3), gated where asked.

    The gated form is activation(gate(x)) * up(x), of Shazeer 2020, equation 6.
    """

    def __init__(self, config: OmniNetConfig) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.activation]
        self.dropout = config.ffn_dropout
        self.up = Linear(config.hidden_size, config.ffn_size, bias=config.ffn_bias)
        self.gate = (
            Linear(config.hidden_size, config.ffn_size, bias=config.ffn_bias)
            if self.activation.gated
            else None
        )
        self.down = Linear(config.ffn_size, config.hidden_size, bias=config.ffn_bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, T, C] -> [B, T, C]."""
        if self.gate is None:
            inner = self.activation.function(self.up(hidden))  # [B, T, F]
        else:
            inner = self.activation.function(self.gate(hidden)) * self.up(hidden)
        if self.training and self.dropout:
            inner = F.dropout(inner, self.dropout)
        return self.down(inner)
