"""Saving and loading: exact, tied weights once, and errors that say what is wrong."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open

from omnigraph.models import AttentionPattern, ConfigError, OmniNet, OmniNetConfig
from omnigraph.models.checkpoint import CheckpointError


@pytest.mark.parametrize("kind", ["encoder", "decoder", "encoder-decoder"])
@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_round_trip_is_exact(kind, tied, make_model, tokens, tmp_path):
    model = make_model(
        kind=kind,
        tie_embeddings=tied,
        output_bias=True,
        positions="relative",
        attention=AttentionPattern("sliding_window", window=3),
    )
    model.save(tmp_path / "net")
    loaded = OmniNet.load(tmp_path / "net").eval()
    assert loaded.config == model.config
    ids = tokens(2, 7)
    extra = (None, ids) if kind == "encoder-decoder" else ()
    assert torch.equal(loaded(ids, *extra), model(ids, *extra))
    assert (loaded.output.weight is loaded.token_embedding.weight) == tied
    with safe_open(tmp_path / "net" / "model.safetensors", "pt") as file:
        assert ("output.weight" in file.keys()) != tied  # noqa: SIM118 (it is not a dict)
    assert all(parameter.requires_grad for parameter in loaded.parameters())


@torch.no_grad()
def test_a_loaded_model_can_be_saved_over_itself(make_model, tokens, tmp_path):
    make_model(kind="encoder").save(tmp_path)
    loaded = OmniNet.load(tmp_path).eval()
    loaded.token_embedding.weight.mul_(2)
    ids = tokens(1, 5)
    want = loaded(ids)
    loaded.save(tmp_path)
    assert torch.equal(loaded(ids), want)
    assert torch.equal(OmniNet.load(tmp_path).eval()(ids), want)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_same_seed_same_weights(tokens):
    config = OmniNetConfig.named("tiny", head_pruning=True)
    one, same, other = (OmniNet.from_seed(config, seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["token_embedding.weight"], other["token_embedding.weight"])


def test_initial_weights_have_the_deviation_they_should():
    config = OmniNetConfig.named("small", pad_token_id=0)
    model = OmniNet.from_seed(config)
    block = model.encoder.layers()[0]
    assert block.feed_forward.up.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert block.feed_forward.down.weight.std().item() == pytest.approx(0.02 / 8**0.5, rel=0.05)
    assert block.self_attention.output.weight.std().item() == pytest.approx(0.02 / 8**0.5, rel=0.05)
    assert model.token_embedding.weight[0].eq(0).all()
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_broken_folders_are_explained(make_model, tmp_path):
    with pytest.raises(CheckpointError, match=r"expected a file config\.json.*\nhint: "):
        OmniNet.load(tmp_path)
    make_model().save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())

    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="expected JSON"):
        OmniNet.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_heads": 5}))
    with pytest.raises(ConfigError, match="num_heads"):
        OmniNet.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_layers": 3}))
    with pytest.raises(CheckpointError, match="not of one model"):
        OmniNet.load(tmp_path)

    (tmp_path / "config.json").write_text(json.dumps(config))
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[:1000])
    with pytest.raises(CheckpointError, match="cut short"):
        OmniNet.load(tmp_path)
