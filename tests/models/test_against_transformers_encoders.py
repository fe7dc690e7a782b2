"""BERT, BART and T5 of Hugging Face against OmniNet with the same weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers_weights import SIZES, TOLERANCE, assert_real_tokens_close, copy, copy_layers

from omnigraph.models import OmniNet, OmniNetConfig
from omnigraph.models.attention import Attention
from omnigraph.models.positions import relative_buckets

transformers = pytest.importorskip("transformers")


# -- BERT: encoder, post-norm, absolute positions ----------------------------------------------


@torch.no_grad()
def test_bert_encoder(randomize, tokens, padding):
    config = transformers.BertConfig(
        vocab_size=256,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=256,
        max_position_embeddings=32,
        attn_implementation="eager",
    )
    theirs = transformers.BertModel(config, add_pooling_layer=False)
    randomize(theirs)
    ours = OmniNet(
        OmniNetConfig(
            kind="encoder",
            norm_order="post",
            norm_eps=config.layer_norm_eps,
            embedding_norm=True,
            max_positions=32,
            **SIZES,
        )
    ).eval()
    embeddings = theirs.embeddings
    ours.token_embedding.load_state_dict(embeddings.word_embeddings.state_dict())
    # Every token is of type 0: the vector of that type goes into the positions.
    ours.encoder.positions.table.weight.copy_(
        embeddings.position_embeddings.weight + embeddings.token_type_embeddings.weight[0]
    )
    ours.encoder.embedding_norm.load_state_dict(embeddings.LayerNorm.state_dict())
    copy_layers(
        ours.encoder.blocks,
        theirs.encoder.layer,
        {
            "self_attention.query": "attention.self.query",
            "self_attention.key": "attention.self.key",
            "self_attention.value": "attention.self.value",
            "self_attention.output": "attention.output.dense",
            "self_attention_norm": "attention.output.LayerNorm",
            "feed_forward.up": "intermediate.dense",
            "feed_forward.down": "output.dense",
            "feed_forward_norm": "output.LayerNorm",
        },
    )
    ids, mask = tokens(3, 11), padding(3, 11, left=False)  # BERT counts positions from the left
    want = theirs(input_ids=ids, attention_mask=mask).last_hidden_state
    assert_real_tokens_close(ours.encode(ids, mask)[0], want, mask)


# -- BART: encoder-decoder, post-norm, absolute positions, cross-attention ----------------------

BART_ATTENTION = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "out_proj"}


@pytest.fixture(params=[False, True], ids=["", "scaled embeddings"])
def bart(request, randomize):
    config = transformers.BartConfig(
        vocab_size=256,
        d_model=64,
        encoder_layers=2,
        decoder_layers=3,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=256,
        decoder_ffn_dim=256,
        max_position_embeddings=32,
        scale_embedding=request.param,
        attn_implementation="eager",
    )
    theirs = transformers.BartForConditionalGeneration(config)
    randomize(theirs)
    ours = OmniNet(
        OmniNetConfig(
            norm_order="post",
            embedding_norm=True,
            scale_embeddings=request.param,
            max_positions=32,
            num_decoder_layers=3,
            pad_token_id=1,
            **SIZES,
        )
    ).eval()
    with torch.no_grad():
        ours.token_embedding.weight.copy_(theirs.model.shared.weight)
        for side, stack in (("encoder", ours.encoder), ("decoder", ours.decoder)):
            other = theirs.model.get_submodule(side)
            stack.positions.table.weight.copy_(other.embed_positions.weight[2:])
            stack.embedding_norm.load_state_dict(other.layernorm_embedding.state_dict())
            names = {
                **{f"self_attention.{a}": f"self_attn.{b}" for a, b in BART_ATTENTION.items()},
                "self_attention_norm": "self_attn_layer_norm",
                "feed_forward.up": "fc1",
                "feed_forward.down": "fc2",
                "feed_forward_norm": "final_layer_norm",
            }
            if side == "decoder":
                names |= {
                    f"cross_attention.{a}": f"encoder_attn.{b}" for a, b in BART_ATTENTION.items()
                }
                names["cross_attention_norm"] = "encoder_attn_layer_norm"
            copy_layers(stack.blocks, other.layers, names)
    return ours, theirs


@torch.no_grad()
def test_bart_whole_model(bart, tokens, padding):
    ours, theirs = bart
    ids, mask, decoder_ids = tokens(3, 11), padding(3, 11, left=False), tokens(3, 6)
    want = theirs(input_ids=ids, attention_mask=mask, decoder_input_ids=decoder_ids).logits
    got = ours(ids, mask, decoder_input_ids=decoder_ids)
    torch.testing.assert_close(got, want, **TOLERANCE)


@torch.no_grad()
def test_bart_decoder_with_its_cache(bart, tokens, padding):
    ours, theirs = bart
    ids, mask, decoder_ids = tokens(3, 11), padding(3, 11, left=False), tokens(3, 6)
    _, cross = ours.encode(ids, mask)
    _, past = ours.decode(decoder_ids[:, :4], cross_key_values=cross, attention_mask=mask)
    got, _ = ours.decode(
        decoder_ids[:, 4:], past_key_values=past, cross_key_values=cross, attention_mask=mask
    )
    first = theirs(
        input_ids=ids, attention_mask=mask, decoder_input_ids=decoder_ids[:, :4], use_cache=True
    )
    want = theirs(
        encoder_outputs=(first.encoder_last_hidden_state,),
        attention_mask=mask,
        decoder_input_ids=decoder_ids[:, 4:],
        past_key_values=first.past_key_values,
    ).logits
    torch.testing.assert_close(got, want, **TOLERANCE)


# -- T5: encoder-decoder, pre-norm, RMSNorm, relative positions ---------------------------------

T5_PAIRS = (("query", "q"), ("key", "k"), ("value", "v"), ("output", "o"))


@pytest.fixture
def t5(randomize):
    config = transformers.T5Config(
        vocab_size=256,
        d_model=64,
        d_kv=16,
        d_ff=256,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="relu",
        tie_word_embeddings=False,
        relative_attention_max_distance=24,
        attn_implementation="eager",
    )
    theirs = transformers.T5ForConditionalGeneration(config)
    randomize(theirs)
    ours = OmniNet(
        OmniNetConfig(
            positions="relative",
            relative_max_distance=24,
            norm="rmsnorm",
            norm_eps=config.layer_norm_epsilon,
            activation="relu",
            attention_bias=False,
            ffn_bias=False,
            tie_embeddings=False,
            **SIZES,
        )
    ).eval()
    with torch.no_grad():
        copy_t5(ours, theirs)
    return ours, theirs


def copy_t5(ours: OmniNet, theirs: nn.Module) -> None:
    copy(ours, theirs, {"token_embedding": "shared", "output": "lm_head"})
    for side in ("encoder", "decoder"):
        stack, other = ours.get_submodule(side), theirs.get_submodule(side)
        first = other.block[0].layer[0].SelfAttention
        stack.bias.table.load_state_dict(first.relative_attention_bias.state_dict())
        stack.final_norm.load_state_dict(other.final_layer_norm.state_dict())
        last = 2 if side == "decoder" else 1
        names = {f"self_attention.{a}": f"layer.0.SelfAttention.{b}" for a, b in T5_PAIRS}
        names |= {
            "self_attention_norm": "layer.0.layer_norm",
            "feed_forward.up": f"layer.{last}.DenseReluDense.wi",
            "feed_forward.down": f"layer.{last}.DenseReluDense.wo",
            "feed_forward_norm": f"layer.{last}.layer_norm",
        }
        if side == "decoder":
            names |= {f"cross_attention.{a}": f"layer.1.EncDecAttention.{b}" for a, b in T5_PAIRS}
            names["cross_attention_norm"] = "layer.1.layer_norm"
        copy_layers(stack.blocks, other.block, names)
    for module in ours.modules():
        if isinstance(module, Attention):
            module.query.weight *= 16**0.5  # T5 does not divide the scores by sqrt(D)


@torch.no_grad()
def test_t5_whole_model(t5, tokens, padding):
    ours, theirs = t5
    ids, mask, decoder_ids = tokens(3, 40), padding(3, 40), tokens(3, 37)
    want = theirs(input_ids=ids, attention_mask=mask, decoder_input_ids=decoder_ids).logits
    got = ours(ids, mask, decoder_input_ids=decoder_ids)
    torch.testing.assert_close(got, want, **TOLERANCE)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("buckets", "farthest"), [(32, 128), (16, 50), (8, 20), (64, 1000)])
def test_t5_buckets(causal, buckets, farthest):
    from transformers.models.t5.modeling_t5 import T5Attention

    distance = torch.arange(-2 * farthest, 2 * farthest)
    want = T5Attention._relative_position_bucket(distance, not causal, buckets, farthest)
    assert torch.equal(relative_buckets(distance, buckets, farthest, causal), want)
