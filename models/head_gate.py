"""Dynamic head pruning: a gate decides, for each input, which heads contribute."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from .config import OmniNetConfig
from .linear import Linear


class HeadGate(nn.Module):
    """Scores each head from the layer's input; those at or below the threshold give nothing.

    In the encoder the input is pooled: its mean over the tokens that are not padding. In the
    decoder each position is scored by itself, because a mean would show it later positions, and
    because then decoding with a cache gives what decoding without one gives.

    The gate is 0 or 1. In training its gradient is that of the score (straight-through, Bengio et
    al. 2013, section 4); the mean score is the penalty that drives heads to close (in the spirit
    of Voita et al. 2019, section 5.1).
    """

    def __init__(self, config: OmniNetConfig, heads: int, pooled: bool) -> None:
        super().__init__()
        self.pooled = pooled
        self.threshold = config.head_pruning_threshold
        self.score = Linear(config.hidden_size, heads)
        self.mean_score: Tensor | None = None  # of the last forward in training

    def open_all(self) -> None:
        """Set the biases such that untrained heads are open, whatever the threshold."""
        threshold = min(max(self.threshold, 1e-3), 1 - 1e-3)
        nn.init.constant_(self.score.bias, math.log(threshold / (1 - threshold)) + 2.0)

    def forward(self, hidden: Tensor, token_mask: Tensor | None) -> Tensor:
        """Gates for the context of each head.

        Args:
            hidden: [B, T, C].
            token_mask: [B, T] int64, 1 for a token; None: no padding.

        Returns:
            [B, H, 1, 1] where pooled, [B, H, T, 1] where not; zeros and ones of hidden's dtype.
        """
        if self.pooled:
            hidden = masked_mean(hidden, token_mask)  # [B, 1, C]
        score = torch.sigmoid(self.score(hidden))  # [B, T or 1, H]
        gate = (score > self.threshold).to(score.dtype)
        if self.training:
            self.mean_score = masked_mean(score, None if self.pooled else token_mask).mean()
            gate = gate + score - score.detach()
        return gate.transpose(1, 2).unsqueeze(-1)

    def __getstate__(self) -> dict[str, Any]:
        """Without the score of the last forward, which belongs to a graph that cannot be copied."""
        return {**self.__dict__, "mean_score": None}


def masked_mean(hidden: Tensor, token_mask: Tensor | None) -> Tensor:
    """The mean over tokens that are not padding: [B, T, C] and [B, T] -> [B, 1, C]."""
    if token_mask is None:
        return hidden.mean(dim=1, keepdim=True)
    weight = token_mask.to(hidden.dtype).unsqueeze(-1)  # [B, T, 1]
    return (hidden * weight).sum(dim=1, keepdim=True) / weight.sum(1, keepdim=True).clamp(min=1)


def sparsity_penalty(model: nn.Module, weight: float) -> Tensor:
    """``weight`` times the mean score of all gates in the last forward in training; 0 if none.

    Taking it forgets it: call it once for each forward, before the next.
    """
    gates = [module for module in model.modules() if isinstance(module, HeadGate)]
    scores = [gate.mean_score for gate in gates if gate.mean_score is not None]
    for gate in gates:
        gate.mean_score = None
    if not scores:
        return next(model.parameters()).new_zeros(())
    return weight * torch.stack(scores).mean()
