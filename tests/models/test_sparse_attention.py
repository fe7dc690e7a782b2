"""Sparse attention by blocks against dense attention with the equivalent mask."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from omnigraph.models import AttentionPattern, OmniNet, OmniNetConfig
from omnigraph.models.masks import SelfAttentionMasks, allowed
from omnigraph.models.sparse_attention import block_layout

# The same scores in float32, summed over the visible keys alone, or over all with zeros.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}

windows = st.builds(
    AttentionPattern, type=st.just("sliding_window"), window=st.integers(1, 40) | st.just(64)
)
blocks = st.builds(
    AttentionPattern,
    type=st.just("block_sparse"),
    block_size=st.integers(1, 9) | st.just(16),
    global_blocks=st.integers(0, 2),
    random_blocks=st.integers(0, 3),
    seed=st.integers(0, 9),
)
patterns = windows | blocks


def dense_and_blockwise(config: OmniNetConfig) -> tuple[OmniNet, OmniNet]:
    dense = OmniNet.from_seed(replace(config, sparse_threshold=10**6)).eval()
    sparse = OmniNet(replace(config, sparse_threshold=1), initialize=False).eval()
    sparse.load_state_dict(dense.state_dict())
    return dense, sparse


@given(
    kind=st.sampled_from(["encoder", "decoder"]),
    positions=st.sampled_from(["absolute", "relative", "alibi", "rotary"]),
    heads=st.tuples(patterns, patterns | st.just(AttentionPattern()), patterns, patterns),
    same=st.booleans(),
    batch=st.integers(1, 3),
    length=st.integers(1, 90),
    padding=st.tuples(st.integers(0, 9), st.integers(0, 9)) | st.none(),
)
@settings(max_examples=60, deadline=None)
def test_blockwise_equals_dense(kind, positions, heads, same, batch, length, padding):
    config = OmniNetConfig.named(
        "tiny",
        kind=kind,
        positions=positions,
        num_layers=1,
        attention=heads[0] if same else (heads,),
    )
    dense, sparse = dense_and_blockwise(config)
    ids = torch.randint(256, (batch, length))
    mask = None
    if padding is not None:
        mask = torch.ones(batch, length, dtype=torch.int64)
        mask[0, : padding[0]] = 0
        mask[-1, length - padding[1] :] = 0
    with torch.no_grad():
        torch.testing.assert_close(sparse(ids, mask), dense(ids, mask), **TOLERANCE)


@pytest.mark.parametrize("causal", [False, True])
def test_a_dense_head_beside_sparse_ones_sees_every_key(causal):
    queries, keys = torch.arange(300).unsqueeze(1), torch.arange(300).unsqueeze(0)
    seen = allowed(AttentionPattern(), queries, keys, causal)
    everything = torch.ones(300, 300, dtype=torch.bool)
    assert torch.equal(seen, everything.tril() if causal else everything)


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_blockwise_gives_the_gradients_of_dense(kind, tokens, padding):
    heads = (
        AttentionPattern("sliding_window", window=5),
        AttentionPattern("block_sparse", block_size=4),
        AttentionPattern(),
        AttentionPattern("sliding_window", window=5),
    )
    config = OmniNetConfig.named(
        "tiny", kind=kind, positions="relative", num_layers=1, attention=(heads,)
    )
    ids, mask = tokens(2, 50), padding(2, 50)
    gradients = []
    for model in dense_and_blockwise(config):
        (model(ids, mask)[mask.bool()] ** 2).mean().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for ours, reference in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-6)


class LargestTensor(TorchDispatchMode):
    """Watches how many elements the largest tensor has."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
@pytest.mark.parametrize("positions", ["rotary", "alibi"])
@pytest.mark.parametrize(
    "pattern",
    [
        AttentionPattern("sliding_window", window=32),
        AttentionPattern("block_sparse", block_size=16),
    ],
    ids=["window", "blocks"],
)
def test_cost_grows_with_the_length_and_not_its_square(kind, positions, pattern):
    config = OmniNetConfig.named(
        "tiny", kind=kind, positions=positions, num_layers=1, attention=pattern, sparse_threshold=1
    )
    model = OmniNet(config).eval()
    largest = []
    for length in (1024, 4096):
        with torch.no_grad(), LargestTensor() as watch:
            model.encode(torch.zeros(1, length, dtype=torch.int64)) if model.encoder else (
                model.decode(torch.zeros(1, length, dtype=torch.int64))
            )
        largest.append(watch.elements)
    assert largest[1] <= 4 * largest[0]


@pytest.mark.parametrize("causal", [False, True])
def test_pattern_does_not_depend_on_the_length_or_the_past(causal):
    pattern = AttentionPattern("block_sparse", block_size=2, random_blocks=3, seed=4)
    position = torch.arange(60)
    whole = allowed(pattern, position[:, None], position[None], causal)
    part = allowed(pattern, position[20:30, None], position[None, :30], causal)
    assert torch.equal(part, whole[20:30, :30])
    again = allowed(pattern, position[:, None], position[None], causal)
    assert torch.equal(again, whole)
    other = AttentionPattern("block_sparse", block_size=2, random_blocks=3, seed=5)
    assert not torch.equal(allowed(other, position[:, None], position[None], causal), whole)


def test_pattern_of_bigbird_is_what_it_says():
    pattern = AttentionPattern("block_sparse", block_size=4, global_blocks=1, random_blocks=0)
    block = torch.arange(6)
    seen = allowed(pattern, block[:, None] * 4, block[None] * 4, causal=False)
    expected = [[abs(i - j) <= 1 or i == 0 or j == 0 for j in range(6)] for i in range(6)]
    assert seen.tolist() == expected


def test_each_block_is_gathered_once():
    pattern = AttentionPattern("block_sparse", block_size=2, global_blocks=2, random_blocks=4)
    layout = block_layout(pattern, 41, False, torch.device("cpu"))
    for row, valid in zip(layout.gathered.tolist(), layout.valid.tolist(), strict=True):
        kept = [block for block, is_valid in zip(row, valid, strict=True) if is_valid]
        assert len(kept) == len(set(kept))


def test_threshold_chooses_the_form():
    pattern = AttentionPattern("sliding_window", window=3)
    for length, blockwise in ((15, False), (16, True)):
        masks = SelfAttentionMasks(torch.zeros(1, length, 8), 0, None, True, None, 16)
        assert (masks.of((pattern,), (0,)).by_pattern is masks) is blockwise
    cached = SelfAttentionMasks(torch.zeros(1, 16, 8), 4, None, True, None, 16)
    assert cached.of((pattern,), (0,)).tensor is not None


def test_layers_of_the_same_pattern_share_one_mask():
    window = AttentionPattern("sliding_window", window=3)
    masks = SelfAttentionMasks(torch.zeros(1, 9, 8), 0, None, True, None, 16)
    assert masks.of((window,) * 4, (0, 1, 2, 3)) is masks.of((window,) * 4, (0, 1, 2, 3))
    assert masks.of((window,) * 4, (0, 1, 2, 3)).tensor.shape == (1, 1, 9, 9)
    assert masks.of((AttentionPattern("flash"),), (0,)) is masks.of((AttentionPattern(),), (0,))


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_flash_gives_the_numbers_of_dense(kind, tokens, padding):
    config = OmniNetConfig.named("tiny", kind=kind)
    dense = OmniNet.from_seed(config).eval()
    flash = OmniNet.from_seed(replace(config, attention=AttentionPattern("flash"))).eval()
    ids, mask = tokens(2, 33), padding(2, 33)
    for token_mask in (None, mask):
        got, want = flash(ids, token_mask), dense(ids, token_mask)
        torch.testing.assert_close(got, want, **TOLERANCE)
