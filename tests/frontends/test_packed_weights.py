"""Packed weights of GPTQ and AWQ become the integers that were packed, whatever their form."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from packed_folders import Packed, awq, draw, gptq

from omnigraph.errors import UsageError
from omnigraph.frontends.grouped_linear import GroupedLinear
from omnigraph.frontends.packed_weights import Packing, unpack

K, N = 96, 40
RNG = np.random.default_rng(0)
X = torch.randn(3, K, generator=torch.Generator().manual_seed(0))


def tensors(packed: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array.copy()) for name, array in packed.items()}


def check(layer: Packed, packed: Mapping[str, np.ndarray], packing: Packing) -> None:
    weight = unpack("a.b", tensors(packed), packing, len(layer.codes))
    order = slice(None) if weight.order is None else weight.order.numpy()
    np.testing.assert_array_equal(weight.quantized.numpy(), layer.codes[order])
    np.testing.assert_array_equal(weight.zero_points.numpy(), layer.zeros)
    np.testing.assert_array_equal(weight.scales.numpy(), layer.scales.astype(np.float32))
    assert (weight.order is None) == bool((np.diff(layer.groups) >= 0).all())
    linear = GroupedLinear(weight, torch.ones(layer.codes.shape[1]))
    assert torch.equal(linear.weight, torch.from_numpy(layer.dense.T.copy()))
    x = X[:, : len(layer.codes)]
    np.testing.assert_allclose(linear(x), x.numpy() @ layer.dense + 1, rtol=0, atol=1e-5)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("block", [32, 64, -1])
@pytest.mark.parametrize("act_order", [False, True])
def test_gptq(bits: int, version: int, block: int, act_order: bool):
    layer = draw(RNG, (K, N), bits, block, act_order=act_order)
    assert {0, 2**bits - 1} <= set(layer.zeros.ravel()) or bits == 8 or block == -1
    check(layer, gptq(layer, version), Packing("gptq", bits, version == 1, act_order))


@pytest.mark.parametrize("block", [16, 32, -1])
def test_awq(block: int):
    layer = draw(RNG, (K, N), 4, block)
    check(layer, awq(layer), Packing("awq", 4))


def test_words_by_hand():
    """Eight channels of one term: GPTQ packs terms of a channel, AWQ packs channels."""
    word = np.array([[0x76543210]], np.uint32).view(np.int32)
    zeros, scales = np.zeros((1, 1), np.int32), np.ones((1, 8), np.float16)
    packed = {"qweight": word, "qzeros": zeros, "scales": scales}
    found = unpack("a", tensors(packed), Packing("awq", 4), 1)
    assert found.quantized.tolist() == [[0, 4, 1, 5, 2, 6, 3, 7]]
    packed |= {"qweight": np.repeat(word, 8, 1), "g_idx": np.zeros(8, np.int32)}
    found = unpack("a", tensors(packed), Packing("gptq", 4, less_one=True), 8)
    assert found.quantized[:, 0].tolist() == list(range(8))
    assert found.zero_points.unique().tolist() == [1]


def test_a_layer_may_have_bits_of_its_own():
    layer = draw(RNG, (K, N), 8, 32)
    check(layer, gptq(layer), Packing("gptq", 4, less_one=True))


def test_terms_that_fill_no_word():
    layer = draw(RNG, (60, 12), 4, 20)
    check(layer, gptq(layer), Packing("gptq", 4, less_one=True))


def test_groups_follow_each_other_without_g_idx_where_nothing_says_otherwise():
    layer = draw(RNG, (K, N), 4, 32)
    packed = gptq(layer, 2)
    del packed["g_idx"]
    check(layer, packed, Packing("gptq", 4))
    with pytest.raises(UsageError, match=r"(?s)'a\.b'.*its g_idx: expected act-order needs g_idx"):
        unpack("a.b", tensors(packed), Packing("gptq", 4, act_order=True), K)


DAMAGE = {
    "qweight": (lambda array: array[:-1], r"int32 \[12, 40\], 96 terms of 4 bits"),
    "qzeros": (lambda array: array[:, :-1], r"int32 \[3, 5\], found \[3, 4\]"),
    "scales": (lambda array: array[0], r"two axes, \[groups, channels\], found \[40\]"),
    "g_idx": (lambda array: array[:-3], r"\[96\], a group for each term, found \[93\]"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_what_is_damaged_is_named(name: str):
    cut, message = DAMAGE[name]
    packed = tensors(gptq(draw(RNG, (K, N), 4, 32)))
    packing = Packing("gptq", 4, less_one=True, act_order=True)
    with pytest.raises(UsageError, match=f"(?s)'a.b'.*its {name}: expected {message}.*hint: copy"):
        unpack("a.b", packed | {name: cut(packed[name])}, packing, K)
    del packed[name]
    with pytest.raises(UsageError, match=f"its {name}: .*found no such tensor"):
        unpack("a.b", packed, packing, K)


def test_groups_must_be_there_and_of_one_size():
    packing = Packing("gptq", 4, less_one=True)
    packed = tensors(gptq(draw(RNG, (K, N), 4, 32)))
    with pytest.raises(UsageError, match="groups from 0 to 2, as scales has, found 0 to 3"):
        unpack("a", packed | {"g_idx": packed["g_idx"] + (torch.arange(K) == 95)}, packing, K)
    moved = packed["g_idx"].clone()
    moved[0] = 1
    with pytest.raises(UsageError, match=r"31 terms in each of its 3 groups.*found 31 to 33 terms"):
        unpack("a", packed | {"g_idx": moved}, packing, K)
    with pytest.raises(UsageError, match="int32 of two axes, found float32"):
        unpack("a", packed | {"qweight": packed["qweight"].float()}, packing, K)
