"""Llama and BLOOM of Hugging Face against OmniNet with the same weights."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import nn
from transformers_weights import SIZES, TOLERANCE, assert_real_tokens_close, copy, copy_layers

from omnigraph.models import OmniNet, OmniNetConfig
from omnigraph.models.attention import Attention
from omnigraph.models.positions import alibi_slopes, rotary_frequencies

transformers = pytest.importorskip("transformers")

# -- Llama: decoder, pre-norm, RMSNorm, SwiGLU, rotary positions --------------------------------


#: Our names, and those of Hugging Face.
LLAMA = {
    "token_embedding": "model.embed_tokens",
    "decoder.final_norm": "model.norm",
    "output": "lm_head",
}
LLAMA_LAYER = {
    "self_attention.query": "self_attn.q_proj",
    "self_attention.key": "self_attn.k_proj",
    "self_attention.value": "self_attn.v_proj",
    "self_attention.output": "self_attn.o_proj",
    "self_attention_norm": "input_layernorm",
    "feed_forward.gate": "mlp.gate_proj",
    "feed_forward.up": "mlp.up_proj",
    "feed_forward.down": "mlp.down_proj",
    "feed_forward_norm": "post_attention_layernorm",
}


def llama(randomize, rope: Mapping[str, object], **overrides: object):
    config = transformers.LlamaConfig(
        vocab_size=256,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        intermediate_size=256,
        max_position_embeddings=16,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        rope_parameters={"rope_theta": 10000.0, **rope},
        attn_implementation="eager",
    )
    theirs = transformers.LlamaForCausalLM(config)
    randomize(theirs)
    ours = OmniNet(
        OmniNetConfig(
            kind="decoder",
            positions="rotary",
            norm="rmsnorm",
            activation="swiglu",
            attention_bias=False,
            ffn_bias=False,
            tie_embeddings=False,
            max_positions=16,
            **SIZES,
            **overrides,
        )
    ).eval()
    copy(ours, theirs, LLAMA)
    copy_layers(ours.decoder.blocks, theirs.model.layers, LLAMA_LAYER)
    return ours, theirs


@pytest.mark.parametrize(
    ("rope", "overrides"),
    [
        ({"rope_type": "default"}, {}),
        (
            {"rope_type": "linear", "factor": 4.0},
            {"rotary_scaling": "linear", "rotary_factor": 4.0},
        ),
        (
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
            {"rotary_scaling": "yarn", "rotary_factor": 4.0},
        ),
    ],
    ids=["plain", "linear", "yarn"],
)
@torch.no_grad()
def test_llama_rotary(rope, overrides, randomize, tokens, padding):
    ours, theirs = llama(randomize, rope, **overrides)
    ids, mask = tokens(3, 29), padding(3, 29)  # longer than max_positions, and padded on the left
    want = theirs(input_ids=ids, attention_mask=mask).logits
    assert_real_tokens_close(ours(ids, mask), want, mask)


@torch.no_grad()
def test_llama_with_its_cache(randomize, tokens):
    ours, theirs = llama(randomize, {"rope_type": "default"})
    ids = tokens(2, 9)
    _, past = ours.decode(ids[:, :5])
    got, _ = ours.decode(ids[:, 5:], past_key_values=past)
    first = theirs(input_ids=ids[:, :5], use_cache=True)
    want = theirs(input_ids=ids[:, 5:], past_key_values=first.past_key_values).logits
    torch.testing.assert_close(got, want, **TOLERANCE)


@pytest.mark.parametrize("length", [64, 100, 500])
def test_yarn_and_ntk_frequencies(length):
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    factor = 8.0
    theirs = transformers.LlamaConfig(
        hidden_size=256,
        num_attention_heads=4,
        max_position_embeddings=length,
        rope_parameters={
            "rope_theta": 5000.0,
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": length,
        },
    )
    ours = OmniNetConfig(
        hidden_size=256,
        num_heads=4,
        positions="rotary",
        rotary_base=5000.0,
        rotary_scaling="yarn",
        rotary_factor=factor,
        rotary_original_length=length,
    )
    want, magnitude = ROPE_INIT_FUNCTIONS["yarn"](theirs, device="cpu")
    got, our_magnitude = rotary_frequencies(ours)
    # Powers of the base in float32, written in two ways.
    torch.testing.assert_close(got, want, rtol=1e-6, atol=0)
    assert our_magnitude == pytest.approx(magnitude)

    # Their NTK scaling grows with the sequence: at this length it is by 8, ours for all lengths.
    theirs.rope_parameters = {"rope_theta": 5000.0, "rope_type": "dynamic", "factor": 1.0}
    want, _ = ROPE_INIT_FUNCTIONS["dynamic"](theirs, device="cpu", seq_len=8 * length)
    ntk = OmniNetConfig(
        hidden_size=256,
        num_heads=4,
        positions="rotary",
        rotary_base=5000.0,
        rotary_scaling="ntk",
        rotary_factor=factor,
    )
    torch.testing.assert_close(rotary_frequencies(ntk)[0], want, rtol=1e-6, atol=0)


# -- BLOOM: decoder, pre-norm, ALiBi ------------------------------------------------------------


@pytest.mark.parametrize("heads", [4, 6])
@torch.no_grad()
def test_bloom_alibi(heads, randomize, tokens, padding):
    hidden = 16 * heads
    config = transformers.BloomConfig(
        vocab_size=256, hidden_size=hidden, n_layer=2, n_head=heads, attn_implementation="eager"
    )
    theirs = transformers.BloomForCausalLM(config)
    randomize(theirs)
    ours = OmniNet(
        OmniNetConfig(
            kind="decoder",
            positions="alibi",
            activation="gelu_tanh",
            embedding_norm=True,
            **{**SIZES, "hidden_size": hidden, "num_heads": heads},
        )
    ).eval()
    copy(
        ours,
        theirs,
        {
            "token_embedding": "transformer.word_embeddings",
            "decoder.embedding_norm": "transformer.word_embeddings_layernorm",
            "decoder.final_norm": "transformer.ln_f",
        },
    )
    copy_layers(
        ours.decoder.blocks,
        theirs.transformer.h,
        {
            "self_attention.output": "self_attention.dense",
            "self_attention_norm": "input_layernorm",
            "feed_forward.up": "mlp.dense_h_to_4h",
            "feed_forward.down": "mlp.dense_4h_to_h",
            "feed_forward_norm": "post_attention_layernorm",
        },
    )
    for block, other in zip(ours.decoder.blocks, theirs.transformer.h, strict=True):
        copy_fused(block.self_attention, other.self_attention.query_key_value, heads)
    ids, mask = tokens(3, 13), padding(3, 13)
    want = theirs(input_ids=ids, attention_mask=mask).logits
    assert_real_tokens_close(ours(ids, mask), want, mask)


def copy_fused(attention: Attention, fused: nn.Linear, heads: int) -> None:
    """BLOOM's one projection holds query, key and value head by head."""
    weights = fused.weight.unflatten(0, (heads, 3, 16))
    biases = fused.bias.unflatten(0, (heads, 3, 16))
    for index, linear in enumerate((attention.query, attention.key, attention.value)):
        linear.weight.copy_(weights[:, index].flatten(0, 1))
        linear.bias.copy_(biases[:, index].flatten())


@pytest.mark.parametrize("heads", [1, 2, 3, 5, 8, 12, 16, 20, 71])
def test_alibi_slopes(heads):
    from transformers.models.bloom.modeling_bloom import _get_alibi_slopes

    want = _get_alibi_slopes(heads, "cpu")
    # They raise a float32 base to powers, we compute in float64.
    torch.testing.assert_close(torch.tensor(alibi_slopes(heads)), want, rtol=2e-5, atol=0)
