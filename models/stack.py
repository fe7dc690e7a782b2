"""A stack of blocks with its positions: the encoder, or the decoder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .attention import KeyValue
from .block import Block, make_norm
from .config import OmniNetConfig
from .masks import SelfAttentionMasks, cross_attention_mask
from .positions import (
    AbsolutePositions,
    AlibiBias,
    RelativeBias,
    RotaryPositions,
    SinusoidalPositions,
    position_ids,
)


class Stack(nn.Module):
    """Positions, blocks and the last norm of one ``side``: "encoder", or "decoder" (causal)."""

    def __init__(self, config: OmniNetConfig, side: str) -> None:
        super().__init__()
        self.config, self.causal = config, side == "decoder"
        self.embedding_scale = math.sqrt(config.hidden_size) if config.scale_embeddings else None
        self.positions: nn.Module | None = None
        self.rotary: RotaryPositions | None = None
        self.bias: RelativeBias | AlibiBias | None = None
        if config.positions == "absolute":
            self.positions = AbsolutePositions(config)
        elif config.positions == "sinusoidal":
            self.positions = SinusoidalPositions(config)
        elif config.positions == "rotary":
            self.rotary = RotaryPositions(config)
        elif config.positions == "relative":
            self.bias = RelativeBias(config, self.causal)
        else:
            self.bias = AlibiBias(config)
        self.embedding_norm = make_norm(config) if config.embedding_norm else None
        self.dropout = nn.Dropout(config.residual_dropout)
        layers = config.decoder_layers if self.causal else config.encoder_layers
        self.blocks = nn.ModuleList(Block(config, side, index) for index in range(layers))
        self.final_norm = make_norm(config) if config.norm_order == "pre" else None

    def forward(
        self,
        input_ids: Tensor,
        embedded: Tensor,
        token_mask: Tensor | None = None,
        past_key_values: Sequence[KeyValue] | None = None,
        cross_key_values: Sequence[KeyValue] | None = None,
        cross_token_mask: Tensor | None = None,
    ) -> tuple[Tensor, list[KeyValue]]:
        """Run the blocks.

        Args:
            input_ids: [B, T] int64, for positions only.
            embedded: [B, T, C], the tokens' embeddings.
            token_mask: [B, P+T] int64, 1 for a token and 0 for padding.
            past_key_values: a pair of [B, H, P, D] for each block.
            cross_key_values: a pair of [B, H, S, D] for each block.
            cross_token_mask: [B, S] int64, the encoder's.

        Returns:
            [B, T, C], and for each block keys and values [B, H, P+T, D].
        """
        past = past_key_values[0][0].shape[2] if past_key_values else 0
        self._check_mask(token_mask, input_ids, past)
        hidden, rotary = self._embed(input_ids, embedded, token_mask, past)
        masks = SelfAttentionMasks(
            hidden, past, token_mask, self.causal, self.bias, self.config.sparse_threshold
        )
        new_tokens = None if token_mask is None else token_mask[:, past:]
        cross_mask = cross_attention_mask(cross_token_mask, input_ids.shape[1])
        presents: list[KeyValue] = []
        for index, block in enumerate(self.layers()):
            attention = block.self_attention
            arguments = (
                hidden,
                masks.of(attention.patterns, attention.heads),
                new_tokens,
                rotary,
                past_key_values[index] if past_key_values else None,
                cross_key_values[index] if cross_key_values else None,
                cross_mask,
            )
            if self.config.gradient_checkpointing and self.training:
                hidden, present = checkpoint(block, *arguments, use_reentrant=False)
            else:
                hidden, present = block(*arguments)
            presents.append(present)
        return hidden if self.final_norm is None else self.final_norm(hidden), presents

    def layers(self) -> list[Block]:
        """The blocks, first to last."""
        return [cast("Block", block) for block in self.blocks]

    def _embed(
        self, input_ids: Tensor, embedded: Tensor, token_mask: Tensor | None, past: int
    ) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """What enters the first block [B, T, C]; the rotary cosines and sines [B, 1, T, R/2]."""
        if self.embedding_scale is not None:
            embedded = embedded * self.embedding_scale
        rotary = None
        if self.positions is not None:
            self._check_length(past + input_ids.shape[1])
            positions = self.positions(position_ids(input_ids, token_mask, past))
            embedded = embedded + positions.to(embedded.dtype)
        elif self.rotary is not None:
            # Angles only matter by their differences, so padding needs no counting.
            cosines, sines = self.rotary(position_ids(input_ids, None, past))
            rotary = cosines.unsqueeze(1), sines.unsqueeze(1)
        if self.embedding_norm is not None:
            embedded = self.embedding_norm(embedded)
        return self.dropout(embedded), rotary

    def _check_mask(self, token_mask: Tensor | None, input_ids: Tensor, past: int) -> None:
        if torch.compiler.is_exporting() or token_mask is None:
            return
        expected = (input_ids.shape[0], past + input_ids.shape[1])
        if tuple(token_mask.shape) != expected:
            raise ValueError(
                f"attention mask of the {'decoder' if self.causal else 'encoder'}: expected shape "
                f"{list(expected)}, found {list(token_mask.shape)}\n"
                f"hint: one number for each token, the {past} of the past included"
            )

    def _check_length(self, length: int) -> None:
        if torch.compiler.is_exporting() or not isinstance(self.positions, AbsolutePositions):
            return
        if length > self.config.max_positions:
            raise ValueError(
                f"absolute positions: expected at most max_positions "
                f"{self.config.max_positions} tokens, found {length}\n"
                "hint: raise max_positions, or use rotary, alibi, relative or sinusoidal positions"
            )
