"""Blocks against torch's own transformer layers, with the same weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from omnigraph.models import OmniNetConfig
from omnigraph.models.attention import Attention
from omnigraph.models.block import Block
from omnigraph.models.masks import Mask, SelfAttentionMasks, cross_attention_mask

# One block of float32 sums of 64 to 256 terms, in another order.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


def copy_attention(ours: Attention, theirs: nn.MultiheadAttention) -> None:
    weights = theirs.in_proj_weight.chunk(3)
    biases = theirs.in_proj_bias.chunk(3)
    for linear, weight, bias in zip(
        (ours.query, ours.key, ours.value), weights, biases, strict=True
    ):
        linear.weight.copy_(weight)
        linear.bias.copy_(bias)
    ours.output.load_state_dict(theirs.out_proj.state_dict())


@torch.no_grad()
def copy_block(ours: Block, theirs: nn.Module) -> None:
    copy_attention(ours.self_attention, theirs.self_attn)
    ours.self_attention_norm.load_state_dict(theirs.norm1.state_dict())
    if ours.cross_attention is not None:
        copy_attention(ours.cross_attention, theirs.multihead_attn)
        ours.cross_attention_norm.load_state_dict(theirs.norm2.state_dict())
        ours.feed_forward_norm.load_state_dict(theirs.norm3.state_dict())
    else:
        ours.feed_forward_norm.load_state_dict(theirs.norm2.state_dict())
    ours.feed_forward.up.load_state_dict(theirs.linear1.state_dict())
    ours.feed_forward.down.load_state_dict(theirs.linear2.state_dict())


def masks_of(hidden, token_mask, causal):
    return SelfAttentionMasks(hidden, 0, token_mask, causal, None, 4096)


@pytest.mark.parametrize("activation", ["gelu", "relu"])
@pytest.mark.parametrize("order", ["pre", "post"])
@pytest.mark.parametrize("padded", [False, True])
def test_encoder_layer(order, activation, padded, randomize, padding):
    config = OmniNetConfig.named("tiny", kind="encoder", norm_order=order, activation=activation)
    theirs = nn.TransformerEncoderLayer(
        64, 4, 256, 0.0, activation, batch_first=True, norm_first=order == "pre"
    )
    randomize(theirs)
    ours = Block(config, "encoder", 0).eval()
    copy_block(ours, theirs)
    hidden = torch.randn(2, 9, 64)
    token_mask = padding(2, 9) if padded else None
    mask = masks_of(hidden, token_mask, causal=False).of(ours.self_attention.patterns, (0, 1, 2, 3))
    got, _ = ours(hidden, mask)
    ignore = None if token_mask is None else token_mask == 0
    want = theirs.train()(hidden, src_key_padding_mask=ignore)  # train: not torch's fused path
    real = slice(None) if token_mask is None else token_mask.bool()
    torch.testing.assert_close(got[real], want[real], **TOLERANCE)


@pytest.mark.parametrize("order", ["pre", "post"])
@pytest.mark.parametrize("padded", [False, True])
def test_decoder_layer(order, padded, randomize, padding):
    config = OmniNetConfig.named("tiny", norm_order=order)
    theirs = nn.TransformerDecoderLayer(
        64, 4, 256, 0.0, "gelu", batch_first=True, norm_first=order == "pre"
    )
    randomize(theirs)
    ours = Block(config, "decoder", 0).eval()
    copy_block(ours, theirs)
    hidden, memory = torch.randn(2, 7, 64), torch.randn(2, 11, 64)
    memory_mask = padding(2, 11) if padded else None
    mask = masks_of(hidden, None, causal=True).of(ours.self_attention.patterns, (0, 1, 2, 3))
    got, _ = ours(
        hidden,
        mask,
        cross=ours.cross_attention.project(memory),
        cross_mask=cross_attention_mask(memory_mask, 7),
    )
    want = theirs(
        hidden,
        memory,
        tgt_mask=nn.Transformer.generate_square_subsequent_mask(7),
        memory_key_padding_mask=None if memory_mask is None else memory_mask == 0,
    )
    torch.testing.assert_close(got, want, **TOLERANCE)


def test_block_without_a_mask_sees_everything(randomize):
    block = Block(OmniNetConfig.named("tiny", kind="encoder"), "encoder", 0)
    randomize(block)
    hidden = torch.randn(1, 5, 64)
    every = Mask(torch.ones(1, 1, 5, 5, dtype=torch.bool))
    torch.testing.assert_close(block(hidden, Mask())[0], block(hidden, every)[0], **TOLERANCE)
