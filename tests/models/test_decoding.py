"""Decoding with a cache against decoding without one, padding, and lengths beyond training."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from omnigraph.models import AttentionPattern, OmniNet
from omnigraph.models.masks import SelfAttentionMasks, cross_attention_mask

# The same float32 sums, in matrices of other heights.
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}
POSITIONS = ["absolute", "sinusoidal", "relative", "rotary", "alibi"]
KINDS = ["decoder", "encoder-decoder"]
MIXED = (
    AttentionPattern("sliding_window", window=3),
    AttentionPattern("block_sparse", block_size=2, random_blocks=2),
    AttentionPattern(),
    AttentionPattern("flash"),
)


def cross_of(model: OmniNet, batch: int, padded: bool) -> dict[str, object]:
    """What an encoder-decoder is given of its encoder."""
    if model.encoder is None:
        return {}
    ids = torch.randint(256, (batch, 7))
    mask = torch.ones_like(ids)
    if padded:
        mask[0, 4:] = 0
    return {"cross_key_values": model.encode(ids, mask)[1], "attention_mask": mask}


def decode_in_steps(model, ids, mask, cross, steps) -> Tensor:
    past, logits, start = None, [], 0
    for step in steps:
        end = start + step
        step_mask = None if mask is None else mask[:, :end]
        out, past = model.decode(ids[:, start:end], step_mask, past, **cross)
        assert past[0][0].shape[2] == end
        logits.append(out)
        start = end
    return torch.cat(logits, dim=1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("padded", [False, True])
@torch.no_grad()
def test_cached_equals_uncached(kind, positions, padded, make_model, tokens):
    model = make_model(kind=kind, positions=positions)
    ids = tokens(3, 12)
    mask = None
    if padded:
        mask = torch.ones_like(ids)
        mask[1, :5] = 0  # left padding, as a batch of prompts has it
    cross = cross_of(model, 3, padded)
    want, _ = model.decode(ids, mask, **cross)
    real = slice(None) if mask is None else mask.bool()
    for steps in ([12], [1] * 12, [6, 1, 1, 4], [2, 10]):
        got = decode_in_steps(model, ids, mask, cross, steps)
        torch.testing.assert_close(got[real], want[real], **TOLERANCE)


@pytest.mark.parametrize(
    "overrides",
    [
        {"attention": (MIXED, MIXED[0])},
        {"attention": (MIXED, MIXED[1]), "positions": "alibi", "sparse_threshold": 4},
        {"head_pruning": True, "head_pruning_threshold": 0.88, "positions": "rotary"},
        {"norm_order": "post", "embedding_norm": True, "norm": "rmsnorm"},
        {"positions": "rotary", "rotary_fraction": 0.5, "activation": "swiglu"},
        {"pruned_heads": {"decoder.0.self": (1, 2)}, "positions": "relative"},
    ],
    ids=["mixed", "blockwise", "gated", "post", "partial rotary", "pruned"],
)
@torch.no_grad()
def test_cached_equals_uncached_with_options(overrides, make_model, tokens):
    model = make_model(kind="decoder", **overrides)
    ids = tokens(2, 12)
    want, _ = model.decode(ids)
    for steps in ([1] * 12, [5, 7]):
        got = decode_in_steps(model, ids, None, {}, steps)
        torch.testing.assert_close(got, want, **TOLERANCE)


@pytest.mark.parametrize("kind", ["encoder", "decoder", "encoder-decoder"])
@pytest.mark.parametrize("positions", POSITIONS)
@torch.no_grad()
def test_padding_changes_no_number(kind, positions, make_model, tokens):
    model = make_model(kind=kind, positions=positions)
    ids = tokens(2, 6)

    def run(before: int, after: int) -> Tensor:
        padded = torch.cat((tokens(2, before), ids, tokens(2, after)), dim=1)
        mask = torch.zeros_like(padded)
        mask[:, before : before + 6] = 1
        if kind == "encoder-decoder":
            return model(padded, mask, decoder_input_ids=ids, decoder_attention_mask=ids * 0 + 1)
        return model(padded, mask)[:, before : before + 6]

    want = run(0, 0)
    for before, after in ((3, 0), (0, 4), (5, 2)):
        torch.testing.assert_close(run(before, after), want, **TOLERANCE)


@pytest.mark.parametrize("positions", POSITIONS)
@torch.no_grad()
def test_a_causal_model_sees_nothing_of_the_future(positions, make_model, tokens):
    model = make_model(kind="decoder", positions=positions, head_pruning=True)
    ids = tokens(1, 9)
    changed = ids.clone()
    changed[0, 6:] = (changed[0, 6:] + 1) % 256
    torch.testing.assert_close(model(ids)[:, :6], model(changed)[:, :6], **TOLERANCE)
    assert not torch.allclose(model(ids)[:, 6:], model(changed)[:, 6:])


@pytest.mark.parametrize("kind", ["encoder", "decoder", "encoder-decoder"])
@pytest.mark.parametrize("positions", ["absolute", "alibi"])
def test_a_row_without_any_token_gives_finite_numbers_and_gradients(
    kind, positions, make_model, tokens
):
    model = make_model(kind=kind, positions=positions)
    ids = tokens(2, 5)
    mask = torch.ones_like(ids)
    mask[0] = 0
    logits = model(ids, mask, ids) if kind == "encoder-decoder" else model(ids, mask)
    assert logits.isfinite().all()
    logits.mean().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("positions", ["absolute", "alibi"])
def test_every_query_sees_itself(positions, make_model):
    model = make_model(kind="decoder", positions=positions)
    token_mask = torch.tensor([[0, 0, 1, 1, 0]])
    stack = model.decoder
    masks = SelfAttentionMasks(torch.zeros(1, 5, 64), 0, token_mask, True, stack.bias, 4096)
    attention = stack.layers()[0].self_attention
    mask = masks.of(attention.patterns, attention.heads).tensor
    visible = mask[0, 0] if mask.dtype == torch.bool else mask[0, 0] > -1e30
    assert visible.diagonal().all()
    assert visible.tolist()[3] == [False, False, True, True, False]


@torch.no_grad()
def test_cross_attention_to_no_token_gives_nothing(make_model):
    attention = make_model().decoder.layers()[0].cross_attention
    hidden, memory = torch.randn(2, 3, 64), torch.randn(2, 5, 64)
    token_mask = torch.tensor([[0] * 5, [1] * 5])
    mask = cross_attention_mask(token_mask, 3)
    out, _ = attention(hidden, mask, memory=attention.project(memory))
    torch.testing.assert_close(out[0], attention.output.bias.expand(3, 64))
    assert not torch.allclose(out[1], attention.output.bias.expand(3, 64))


@pytest.mark.parametrize("positions", ["sinusoidal", "relative", "rotary", "alibi"])
@torch.no_grad()
def test_lengths_beyond_training(positions, make_model, tokens):
    model = make_model(kind="decoder", positions=positions, max_positions=16)
    ids = tokens(1, 50)
    want, _ = model.decode(ids)
    assert want.isfinite().all()
    got = decode_in_steps(model, ids, None, {}, [20, 1, 29])
    torch.testing.assert_close(got, want, **TOLERANCE)


def test_absolute_positions_say_where_they_end(make_model, tokens):
    model = make_model(kind="decoder", positions="absolute", max_positions=16)
    _, past = model.decode(tokens(1, 16))
    for call in (lambda: model(tokens(1, 17)), lambda: model.decode(tokens(1, 1), None, past)):
        with pytest.raises(ValueError, match=r"max_positions 16 tokens, found 17\nhint: "):
            call()


def test_encode_and_decode_have_the_shapes_they_document(make_model, tokens):
    model = make_model(num_decoder_layers=3)
    hidden, cross = model.encode(tokens(2, 7))
    assert hidden.shape == (2, 7, 64)
    assert [tuple(t.shape) for pair in cross for t in pair] == [(2, 4, 7, 16)] * 6
    logits, present = model.decode(tokens(2, 5), cross_key_values=cross)
    assert logits.shape == (2, 5, 256)
    assert [tuple(t.shape) for pair in present for t in pair] == [(2, 4, 5, 16)] * 6
    encoder = make_model(kind="encoder")
    assert encoder.encode(tokens(2, 7))[1] == []
    assert encoder(tokens(2, 7)).shape == (2, 7, 256)


def test_wrong_calls_say_what_is_missing(make_model, tokens):
    with pytest.raises(ValueError, match="hint: pass the second result of encode"):
        make_model().decode(tokens(1, 2))
    with pytest.raises(ValueError, match="expected decoder_input_ids"):
        make_model()(tokens(1, 2))
    with pytest.raises(ValueError, match="expected no decoder_input_ids"):
        make_model(kind="decoder")(tokens(1, 2), decoder_input_ids=tokens(1, 2))
    with pytest.raises(ValueError, match=r"encoder: .*kind=decoder"):
        make_model(kind="decoder").encode(tokens(1, 2))
    with pytest.raises(ValueError, match=r"decoder: .*kind=encoder"):
        make_model(kind="encoder").decode(tokens(1, 2))


def test_a_mask_that_forgets_the_past_is_explained(make_model, tokens):
    model = make_model(kind="decoder")
    _, past = model.decode(tokens(1, 3))
    words = (
        r"mask of the decoder: expected shape \[1, 5\], found \[1, 2\]\nhint: .* the 3 of the past"
    )
    with pytest.raises(ValueError, match=words):
        model.decode(tokens(1, 2), torch.ones(1, 2, dtype=torch.int64), past)
