"""The configuration: what it accepts, what it refuses and in which words, and its JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import FrozenInstanceError

import pytest

from omnigraph.models import CONFIGS, AttentionPattern, ConfigError, OmniNetConfig


@pytest.mark.parametrize(
    ("fields", "field", "expected"),
    [
        ({"kind": "both"}, "kind", "one of encoder, decoder, encoder-decoder"),
        ({"positions": "learned"}, "positions", "one of absolute, sinusoidal"),
        ({"activation": "mish"}, "activation", "one of gelu"),
        ({"norm": "batchnorm"}, "norm", "one of layernorm, rmsnorm"),
        ({"norm_order": "mid"}, "norm_order", "one of pre, post"),
        ({"num_heads": 7}, "num_heads", "a divisor of hidden_size 1024"),
        ({"num_layers": 0}, "num_layers", "a positive integer"),
        ({"num_layers": 2.0}, "num_layers", "a positive integer"),
        ({"vocab_size": True}, "vocab_size", "a positive integer"),
        ({"ffn_ratio": -1}, "ffn_ratio", "a positive number"),
        ({"ffn_ratio": 1.0001}, "ffn_ratio", "a ratio that makes hidden_size 1024 an integer"),
        ({"attention_dropout": 1.0}, "attention_dropout", "a rate in [0, 1)"),
        ({"residual_dropout": float("nan")}, "residual_dropout", "a rate in [0, 1)"),
        ({"tie_embeddings": 1}, "tie_embeddings", "true or false"),
        ({"kind": "decoder", "num_decoder_layers": 3}, "num_decoder_layers", "None for kind"),
        ({"positions": "rotary", "rotary_fraction": 0.3}, "rotary_fraction", "an even integer"),
        (
            {"positions": "rotary", "rotary_scaling": "yarn", "rotary_factor": 0.5},
            "rotary_factor",
            "at least 1",
        ),
        ({"positions": "relative", "relative_buckets": 6}, "relative_buckets", "multiple of 4"),
        ({"positions": "sinusoidal", "hidden_size": 15, "num_heads": 3}, "hidden_size", "even"),
        ({"pad_token_id": 50257}, "pad_token_id", "a token below vocab_size 50257"),
        ({"attention": "dense"}, "attention", "an AttentionPattern"),
        ({"attention": (AttentionPattern(),) * 3}, "attention", "each of 24 layers"),
        ({"attention": ((AttentionPattern(),) * 3,) * 24}, "attention[0]", "each of 16 heads"),
        ({"head_pruning_threshold": 2}, "head_pruning_threshold", "a number from 0 to 1"),
        ({"pruned_heads": {"encoder.99.self": (0,)}}, "pruned_heads", "one of encoder.0.self"),
        ({"pruned_heads": {"encoder.0.self": (16,)}}, "pruned_heads[encoder.0.self]", "from 0"),
        (
            {"pruned_heads": {"encoder.0.self": tuple(range(16))}},
            "pruned_heads[encoder.0.self]",
            "at least one head left",
        ),
        ({"autocast": "int8"}, "autocast", "one of none, bfloat16, float16"),
    ],
)
def test_wrong_field_is_named_with_what_was_expected_found_and_a_hint(fields, field, expected):
    with pytest.raises(ConfigError) as caught:
        OmniNetConfig(**fields)
    assert caught.value.field == field
    assert expected in caught.value.expected
    message = str(caught.value)
    assert message.startswith(f"{field}: expected ")
    assert "\nhint: " in message


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"type": "strided"}, "attention.type"),
        ({"type": "sliding_window", "window": 0}, "attention.window"),
        ({"type": "block_sparse", "block_size": 0}, "attention.block_size"),
        ({"type": "block_sparse", "random_blocks": -1}, "attention.random_blocks"),
    ],
)
def test_wrong_pattern_is_named(fields, field):
    with pytest.raises(ConfigError) as caught:
        AttentionPattern(**fields)
    assert caught.value.field == field


def test_config_is_frozen_and_hashes():
    config = OmniNetConfig(pruned_heads={"encoder.0.self": [1, 1, 0]})
    assert config.removed_heads() == {"encoder.0.self": (0, 1)}
    assert hash(config) == hash(OmniNetConfig(pruned_heads={"encoder.0.self": (0, 1)}))
    with pytest.raises(FrozenInstanceError):
        config.num_layers = 3  # type: ignore[misc]


def test_named_sizes():
    seed = CONFIGS["seed"]
    assert (seed.hidden_size, seed.num_heads, seed.ffn_size) == (1024, 16, 4096)
    assert (seed.encoder_layers, seed.decoder_layers, seed.vocab_size) == (12, 12, 50257)
    assert set(CONFIGS) == {"tiny", "small", "seed"}
    with pytest.raises(ConfigError, match="one of tiny, small, seed"):
        OmniNetConfig.named("large")
    with pytest.raises(ConfigError, match="num_layers"):
        OmniNetConfig.named("tiny", layers=3)


def test_json_round_trip():
    window = AttentionPattern("sliding_window", window=3)
    blocks = AttentionPattern("block_sparse", block_size=8, seed=5)
    config = OmniNetConfig.named(
        "tiny",
        positions="rotary",
        rotary_scaling="yarn",
        rotary_factor=4.0,
        attention=(window, (window, blocks, AttentionPattern(), window), blocks, blocks),
        pruned_heads={"decoder.1.cross": (2,)},
    )
    assert OmniNetConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(ConfigError, match="heads_count"):
        OmniNetConfig.from_dict({**config.to_dict(), "heads_count": 2})


def test_overrides_are_read_by_the_type_of_the_field():
    config = OmniNetConfig.from_overrides(
        {
            "kind": "decoder",
            "positions": "alibi",
            "num_layers": "3",
            "num_decoder_layers": "none",
            "ffn_ratio": "2.5",
            "tie_embeddings": "off",
            "attention": "sliding_window:window=64",
            "pruned_heads": '{"decoder.1.self": [0, 2]}',
        }
    )
    assert config.decoder_layers == 3
    assert config.ffn_ratio == 2.5
    assert config.tie_embeddings is False
    assert config.attention == AttentionPattern("sliding_window", window=64)
    assert config.kept_heads("decoder.1.self") == (1, 3)


def test_overrides_may_be_values():
    given = {
        "kind": "decoder",
        "num_layers": 3,
        "num_decoder_layers": None,
        "ffn_ratio": 2,
        "tie_embeddings": False,
        "attention": AttentionPattern("sliding_window", window=64),
        "pruned_heads": {"decoder.1.self": [0, 2]},
    }
    texts = {
        **dict.fromkeys(given, "none"),
        "kind": "decoder",
        "num_layers": "3",
        "ffn_ratio": "2",
        "tie_embeddings": "false",
        "attention": "sliding_window:window=64",
        "pruned_heads": '{"decoder.1.self": [0, 2]}',
    }
    assert OmniNetConfig.from_overrides(given) == OmniNetConfig.from_overrides(texts)


def test_override_of_attention_by_layer_and_by_head():
    text = "dense/dense+sliding_window:window=4+block_sparse:block_size=8,seed=2+flash"
    config = OmniNetConfig.from_overrides({"kind": "encoder", "attention": text})
    assert config.head_patterns("encoder.0.self") == (AttentionPattern(),) * 4
    assert config.head_patterns("encoder.1.self") == (
        AttentionPattern(),
        AttentionPattern("sliding_window", window=4),
        AttentionPattern("block_sparse", block_size=8, seed=2),
        AttentionPattern("flash"),
    )


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"layers": "3"}, "one of the fields kind, vocab_size"),
        ({"num_layers": "three"}, "num_layers: expected an integer, found 'three'"),
        ({"tie_embeddings": "maybe"}, "tie_embeddings: expected true or false"),
        ({"attention": "sliding_window:window=x"}, "attention.window: expected name=integer"),
        ({"attention": "sliding_window:width=3"}, "attention: expected fields out of type, window"),
        ({"attention": "local"}, "attention.type: expected one of dense, flash"),
        ({"pruned_heads": "3"}, "pruned_heads: expected JSON"),
        ({"pruned_heads": '{"encoder.0.self": 3}'}, "pruned_heads: expected JSON"),
        ({"pruned_heads": {"encoder.0.self": 3}}, "pruned_heads: expected JSON"),
        ({"pruned_heads": [1]}, "pruned_heads: expected JSON such as"),
        ({"num_layers": True}, "num_layers: expected an integer, found True"),
        ({"num_layers": None}, "num_layers: expected an integer, found None"),
        ({"num_layers": 2.5}, "num_layers: expected an integer, found 2.5"),
        ({"rotary_fraction": None}, "rotary_fraction: expected a number, found None"),
        ({"tie_embeddings": 1}, "tie_embeddings: expected true or false, found 1"),
        ({"positions": 3}, "positions: expected text, found 3"),
        ({"attention": 3}, "attention: expected patterns, found 3"),
        ({"position": "alibi"}, "hint: did you mean 'positions'? check the spelling"),
    ],
)
def test_wrong_override_says_what_is_legal(overrides, words):
    with pytest.raises(ConfigError) as caught:
        OmniNetConfig.from_overrides(overrides)
    assert words in str(caught.value)


def test_importing_the_package_loads_no_torch():
    code = "import sys, omnigraph.models; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
