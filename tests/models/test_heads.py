"""Heads that a gate closes, and heads that are taken out for good."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import pytest
import torch

from omnigraph.models import ConfigError, OmniNet, OmniNetConfig
from omnigraph.models.attention import Attention
from omnigraph.models.head_gate import HeadGate

# The zeroed heads add exact zeros; the sums are of other lengths.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


@torch.no_grad()
def silence(attention: Attention, heads: Iterable[int]) -> None:
    """Let these heads contribute nothing, by their columns of the output projection."""
    for head in heads:
        attention.output.weight[:, head * 16 : (head + 1) * 16] = 0


def attentions(model: OmniNet) -> dict[str, Attention]:
    return {m.name: m for m in model.modules() if isinstance(m, Attention)}


@pytest.mark.parametrize("positions", ["absolute", "relative", "rotary", "alibi"])
@pytest.mark.parametrize("gated", [False, True])
@torch.no_grad()
def test_removed_heads_are_zeroed_heads(positions, gated, make_model, tokens, padding, tmp_path):
    model = make_model(positions=positions, head_pruning=gated, head_pruning_threshold=0.3)
    heads = {"encoder.1.self": [0, 3], "decoder.0.self": [2], "decoder.1.cross": [0, 1, 2]}
    silenced, count = copy.deepcopy(model), sum(p.numel() for p in model.parameters())
    for name, gone in heads.items():
        silence(attentions(silenced)[name], gone)
    model.prune_heads({1: [0, 3], 2: [2], "decoder.1.cross": [0, 1, 2]})

    ids, mask, decoder_ids = tokens(2, 9), padding(2, 9), tokens(2, 6)
    want = silenced(ids, mask, decoder_ids)
    torch.testing.assert_close(model(ids, mask, decoder_ids), want, **TOLERANCE)
    assert attentions(model)["encoder.1.self"].query.weight.shape == (32, 64)
    assert attentions(model)["decoder.1.cross"].output.weight.shape == (64, 16)
    per_head = 4 * 64 * 16 + 3 * 16 + (65 if gated else 0)
    assert sum(p.numel() for p in model.parameters()) == count - 6 * per_head

    model.save(tmp_path)
    loaded = OmniNet.load(tmp_path).eval()
    assert loaded.config == model.config
    assert torch.equal(loaded(ids, mask, decoder_ids), model(ids, mask, decoder_ids))


@torch.no_grad()
def test_heads_keep_their_numbers_when_removed_in_turns(make_model, tokens):
    model = make_model(kind="decoder", positions="alibi")
    at_once = copy.deepcopy(model)
    at_once.prune_heads({0: [0, 2]})
    model.prune_heads({0: [0]})
    model.prune_heads({0: [2]})
    assert model.config.kept_heads("decoder.0.self") == (1, 3)
    assert attentions(model)["decoder.0.self"].heads == (1, 3)
    ids = tokens(2, 7)
    assert torch.equal(model(ids), at_once(ids))
    _, past = model.decode(ids)
    assert past[0][0].shape == (2, 2, 7, 16)


def test_removal_that_makes_no_model_changes_nothing(make_model):
    model = make_model(kind="decoder")
    before = model.config
    for heads in ({0: range(4)}, {5: [0]}, {0: [4]}, {"encoder.0.self": [0]}):
        with pytest.raises(ConfigError):
            model.prune_heads(heads)
    assert model.config is before
    assert attentions(model)["decoder.0.self"].heads == (0, 1, 2, 3)


def set_gates(model: OmniNet, heads: Iterable[int]) -> None:
    """Close these heads, and open the others, whatever the input."""
    for module in model.modules():
        if isinstance(module, HeadGate):
            torch.nn.init.zeros_(module.score.weight)
            torch.nn.init.constant_(module.score.bias, 3.0)
            with torch.no_grad():
                module.score.bias[list(heads)] = -3.0


@pytest.mark.parametrize("kind", ["encoder", "decoder", "encoder-decoder"])
@torch.no_grad()
def test_closed_heads_contribute_nothing(kind, make_model, tokens):
    gated = make_model(kind=kind, head_pruning=True)
    plain = make_model(kind=kind)
    plain.load_state_dict(gated.state_dict(), strict=False)
    set_gates(gated, [1, 2])
    for attention in attentions(plain).values():
        silence(attention, [1, 2])
    ids = tokens(2, 8)
    extra = (None, ids) if kind == "encoder-decoder" else ()
    torch.testing.assert_close(gated(ids, *extra), plain(ids, *extra), **TOLERANCE)


def test_untrained_gates_are_open(tokens):
    for threshold in (0.0, 0.5, 0.9, 1.0):
        config = OmniNetConfig.named(
            "tiny", kind="encoder", head_pruning=True, head_pruning_threshold=threshold
        )
        gate = next(m for m in OmniNet.from_seed(config).eval().modules() if type(m) is HeadGate)
        if threshold < 1:
            assert gate(torch.randn(2, 5, 64), None).eq(1).all()


def test_pooling_leaves_padding_out():
    config = OmniNetConfig.named("tiny", head_pruning=True)
    gate = HeadGate(config, 4, pooled=True).train()
    torch.nn.init.normal_(gate.score.weight)
    torch.nn.init.zeros_(gate.score.bias)
    hidden, mask = torch.randn(1, 6, 64), torch.tensor([[1, 1, 1, 0, 0, 0]])
    gate(hidden, mask)
    padded = gate.mean_score
    gate(hidden[:, :3], None)
    torch.testing.assert_close(padded, gate.mean_score)


def test_gradient_goes_straight_through_the_threshold(tokens):
    model = OmniNet.from_seed(OmniNetConfig.named("tiny", kind="decoder", head_pruning=True))
    set_gates(model, [0])
    model.train()
    model(tokens(2, 6)).square().mean().backward()
    for name, parameter in model.named_parameters():
        if "gate.score" in name:
            assert parameter.grad.abs().sum() > 0


@pytest.mark.parametrize("checkpointing", [False, True])
def test_penalty_closes_heads(checkpointing, tokens):
    config = OmniNetConfig.named(
        "tiny",
        kind="encoder",
        head_pruning=True,
        head_pruning_penalty=1.0,
        gradient_checkpointing=checkpointing,
    )
    model = OmniNet.from_seed(config).train()
    assert model.sparsity_penalty() == 0
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    ids, penalties = tokens(2, 6), []
    for _ in range(15):
        loss = model(ids).square().mean()
        penalty = model.sparsity_penalty()
        (loss + penalty).backward()
        optimizer.step()
        optimizer.zero_grad()
        penalties.append(penalty.item())
    assert penalties[-1] < 0.5 < penalties[0]
    copy.deepcopy(model)  # which no score of a past forward may prevent
