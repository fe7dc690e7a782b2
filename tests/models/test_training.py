"""What training needs: a loss that falls, checkpointing, autocast, dropout, fake quantization."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from omnigraph.models import OmniNet, OmniNetConfig
from omnigraph.models.activations import ACTIVATIONS, register_activation

KINDS = ["encoder", "decoder", "encoder-decoder"]


def logits_of(model: OmniNet, ids: Tensor) -> Tensor:
    if model.config.kind == "encoder-decoder":
        return model(ids, decoder_input_ids=ids.roll(1, dims=1))
    return model(ids)


def loss_of(model: OmniNet, ids: Tensor) -> Tensor:
    target = ids.roll(-1, dims=1) if model.config.kind == "decoder" else ids
    return F.cross_entropy(logits_of(model, ids).flatten(0, 1).float(), target.flatten())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("positions", ["absolute", "relative", "rotary", "alibi", "sinusoidal"])
def test_a_few_steps_reduce_the_loss(kind, positions, tokens):
    config = OmniNetConfig.named("tiny", kind=kind, positions=positions, num_layers=1)
    model = OmniNet.from_seed(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    ids, losses = tokens(4, 12), []
    for _ in range(12):
        loss = loss_of(model, ids)
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None for p in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("kind", KINDS)
def test_checkpointing_gives_the_same_gradients(kind, tokens):
    config = OmniNetConfig.named("tiny", kind=kind, positions="relative", residual_dropout=0.1)
    ids, gradients = tokens(2, 9), []
    for checkpointing in (False, True):
        model = OmniNet.from_seed(replace(config, gradient_checkpointing=checkpointing)).train()
        torch.manual_seed(5)  # the same dropout
        loss_of(model, ids).backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for ours, reference in zip(*gradients, strict=True):
        # The same operations in the same order, run twice.
        torch.testing.assert_close(ours, reference, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("positions", ["rotary", "alibi"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_autocast_is_finite_and_close(kind, positions, dtype, tokens):
    config = OmniNetConfig.named("tiny", kind=kind, positions=positions)
    ids = tokens(2, 9)
    want = logits_of(OmniNet.from_seed(config).eval(), ids)
    model = OmniNet.from_seed(replace(config, autocast=dtype)).train()
    got = logits_of(model, ids)
    assert got.dtype == getattr(torch, dtype)
    # Logits of about 1, through some thirty roundings to 8 or 11 bits.
    torch.testing.assert_close(got.float(), want, rtol=0.05, atol=0.03)
    loss_of(model, ids).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("positions", ["absolute", "sinusoidal", "relative", "rotary", "alibi"])
@torch.no_grad()
def test_weights_of_half_precision_run(dtype, positions, tokens, padding):
    model = OmniNet.from_seed(OmniNetConfig.named("tiny", positions=positions)).eval()
    ids, mask = tokens(2, 9), padding(2, 9)
    want = model(ids, mask, ids)
    got = model.to(dtype)(ids, mask, ids)
    assert got.dtype == dtype
    torch.testing.assert_close(got.float(), want, rtol=0.05, atol=0.05)


def test_dropout_acts_in_training_only(tokens):
    for field in ("attention_dropout", "residual_dropout", "ffn_dropout"):
        config = OmniNetConfig.named("tiny", **{field: 0.3})
        model, ids = OmniNet.from_seed(config), tokens(2, 9)
        model.eval()
        assert torch.equal(logits_of(model, ids), logits_of(model, ids))
        model.train()
        assert not torch.equal(logits_of(model, ids), logits_of(model, ids))


def test_quantizer_sees_each_linear_layer_and_goes_away(tokens):
    model = OmniNet.from_seed(OmniNetConfig.named("tiny")).eval()
    ids, seen = tokens(2, 9), set()

    def watch(name: str, tensor: Tensor) -> Tensor:
        seen.add(name)
        return tensor

    want = logits_of(model, ids)
    model.set_quantizer(watch)
    assert torch.equal(logits_of(model, ids), want)
    linears = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)]
    assert seen == {f"{name}.{part}" for name in linears for part in ("input", "weight")}
    model.set_quantizer(None)
    seen.clear()
    logits_of(model, ids)
    assert not seen


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_each_activation_runs(name, tokens):
    model = OmniNet.from_seed(OmniNetConfig.named("tiny", kind="decoder", activation=name)).eval()
    assert (model.decoder.layers()[0].feed_forward.gate is not None) == (name == "swiglu")
    assert logits_of(model, tokens(2, 5)).isfinite().all()


def test_an_activation_can_be_added(monkeypatch, tokens):
    monkeypatch.delitem(ACTIVATIONS, "mish", raising=False)
    register_activation("mish", F.mish)
    try:
        config = OmniNetConfig.named("tiny", kind="decoder", activation="mish")
        assert logits_of(OmniNet.from_seed(config), tokens(1, 5)).isfinite().all()
        with pytest.raises(ValueError, match="already registered"):
            register_activation("mish", F.mish)
    finally:
        del ACTIVATIONS["mish"]
