"""One layer of a stack: self-attention, cross-attention if there is an encoder, feed-forward."""

from __future__ import annotations

from torch import Tensor, nn

from .attention import Attention, KeyValue
from .config import OmniNetConfig
from .feed_forward import FeedForward
from .masks import Mask


def make_norm(config: OmniNetConfig) -> nn.Module:
    """LayerNorm (Ba et al. 2016, section 3) or RMSNorm (Zhang & Sennrich 2019, section 4)."""
    if config.norm == "rmsnorm":
        return nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
    return nn.LayerNorm(config.hidden_size, eps=config.norm_eps)


class Block(nn.Module):
    """x + f(norm(x)) for each part f where ``norm_order`` is pre, norm(x + f(x)) where it is post.

    Xiong et al. 2020, section 3.1 and table 1, compares the two.
    """

    def __init__(self, config: OmniNetConfig, side: str, index: int) -> None:
        super().__init__()
        self.norm_first = config.norm_order == "pre"
        self.self_attention = Attention(config, f"{side}.{index}.self")
        self.self_attention_norm = make_norm(config)
        self.cross_attention: Attention | None = None
        self.cross_attention_norm: nn.Module | None = None
        if side == "decoder" and config.kind == "encoder-decoder":
            self.cross_attention = Attention(config, f"{side}.{index}.cross")
            self.cross_attention_norm = make_norm(config)
        self.feed_forward = FeedForward(config)
        self.feed_forward_norm = make_norm(config)
        self.dropout = nn.Dropout(config.residual_dropout)

    def forward(
        self,
        hidden: Tensor,
        mask: Mask,
        token_mask: Tensor | None = None,
        rotary: tuple[Tensor, Tensor] | None = None,
        past: KeyValue | None = None,
        cross: KeyValue | None = None,
        cross_mask: Mask | None = None,
    ) -> tuple[Tensor, KeyValue]:
        """[B, T, C] -> [B, T, C], and the keys and values of its self-attention, [B, H, P+T, D].

        The arguments are those of `Attention.forward`; ``cross`` is its ``memory``.
        """
        norm: nn.Module | None = self.self_attention_norm
        attended, present = self.self_attention(
            self._before(norm, hidden), mask, token_mask, rotary, past
        )
        hidden = self._after(norm, hidden, attended)
        if self.cross_attention is not None and cross is not None:
            norm = self.cross_attention_norm
            attended, _ = self.cross_attention(
                self._before(norm, hidden), cross_mask or Mask(), token_mask, memory=cross
            )
            hidden = self._after(norm, hidden, attended)
        norm = self.feed_forward_norm
        return self._after(norm, hidden, self.feed_forward(self._before(norm, hidden))), present

    def _before(self, norm: nn.Module | None, hidden: Tensor) -> Tensor:
        return norm(hidden) if self.norm_first and norm is not None else hidden

    def _after(self, norm: nn.Module | None, hidden: Tensor, change: Tensor) -> Tensor:
        hidden = hidden + self.dropout(change)
        return hidden if self.norm_first or norm is None else norm(hidden)
