"""What OpenVINO computes of what the target gives it, at sizes beyond one vector."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator
from openvino_programs import compiled, emit, program, read, run

from omnigraph.contract.tolerance import Tolerance, deviation
from omnigraph.lowering.base import Lowered

# Attention ----------------------------------------------------------------------------------------

HEADS, HEAD = 4, 16
_TENSORS = "float[b,4,t,16] q, float[b,{kv},s,16] k, float[b,{kv},s,16] v"
#: What each case adds to the inputs, and to the node.
ATTENTION = {
    "none": ("", "", ""),
    "none, grouped": ("", "", ""),
    "none, scaled": ("", "<scale = 0.3>", ""),
    "bool": (", bool[b,1,t,s] mask", "", ", mask"),
    "bool, one row": (", bool[b,1,1,s] mask", "", ", mask"),
    "bool, no batch": (", bool[t,s] mask", "", ", mask"),
    "float": (", float[b,4,t,s] mask", "", ", mask"),
    "causal": ("", "<is_causal = 1>", ""),
    "causal, bool": (", bool[b,1,t,s] mask", "<is_causal = 1>", ", mask"),
    "causal, float": (", float[b,4,t,s] mask", "<is_causal = 1>", ", mask"),
    "softcap": (", float[b,4,t,s] mask", "<softcap = 5.0>", ", mask"),
}
#: Batch, queries, keys: one query, one key, more keys than queries, past a vector of 16, and back.
LENGTHS = [(1, 1, 1), (3, 1, 7), (1, 5, 5), (3, 3, 16), (2, 7, 29), (1, 1, 64), (2, 65, 130)]


def attention(case: str) -> Lowered:
    extra, attributes, argument = ATTENTION[case]
    tensors = _TENSORS.format(kv=2 if "grouped" in case else HEADS)
    return program(
        f"{tensors}{extra} => float[b,4,t,16] y {{ y = Attention{attributes}(q, k, v{argument}) }}"
    )


def attention_feeds(lowered: Lowered, batch: int, queries: int, keys: int) -> dict[str, Any]:
    """Random tensors, and a mask that hides one whole row (all of it, where it has one row)."""
    rng = np.random.default_rng(queries * keys)
    sizes = {"b": batch, "t": queries, "s": keys}
    feeds: dict[str, Any] = {}
    for spec in lowered.inputs:
        shape = [d if isinstance(d, int) else sizes[d] for d in spec.shape]
        feeds[spec.name] = rng.normal(size=shape).astype(np.float32)
    if "mask" in feeds:
        hidden = feeds["mask"] > 0.5
        hidden.reshape(-1, *hidden.shape[-2:])[0, -1] = True
        is_bool = lowered.inputs[-1].dtype == "bool"
        feeds["mask"] = ~hidden if is_bool else np.where(hidden, -np.inf, feeds["mask"])
    return feeds


def attention_reference(
    feeds: Mapping[str, np.ndarray], case: str
) -> tuple[np.ndarray, np.ndarray]:
    """Attention-24 in float64, [B, H, T, D], and the rows that see no key, [B, H, T]."""
    query, key, value = (np.float64(feeds[name]) for name in "qkv")
    key, value = (a.repeat(HEADS // a.shape[1], axis=1) for a in (key, value))
    scores = query @ key.swapaxes(-1, -2) * (0.3 if "scaled" in case else HEAD**-0.5)
    if "softcap" in case:
        scores = np.tanh(scores / 5.0) * 5.0
    mask = feeds.get("mask")
    if mask is not None:
        scores = np.where(mask, scores, -np.inf) if mask.dtype == bool else scores + mask
    if "causal" in case:
        later = np.triu(np.ones(scores.shape[-2:], bool), 1)
        scores = np.where(later, -np.inf, scores)
    empty = np.isneginf(scores).all(-1)
    weight = np.exp(scores - np.where(empty, 0, scores.max(-1))[..., None])
    total = weight.sum(-1, keepdims=True)
    return np.divide(weight, total, out=np.zeros_like(weight), where=total > 0) @ value, empty


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("case", ATTENTION)
def test_attention(tmp_path: Path, case: str, precision: str) -> None:
    lowered = attention(case)
    emit([lowered], tmp_path, precision)
    ops = Counter(op.get_type_name() for op in read(tmp_path).get_ops())
    assert ops["ScaledDotProductAttention"] == (0 if case == "softcap" else 1)
    model = compiled(tmp_path, hint="f32" if precision == "fp32" else "bf16")
    # Five roundings (two products, scale, softmax, mask), of inputs that bf16 rounds as well; a
    # sum of 130 products. Scores of a few units double their own error when exp is taken of them.
    tolerance = Tolerance.for_precision(precision, depth=20, contraction=130)
    for lengths in LENGTHS:
        feeds = attention_feeds(lowered, *lengths)
        reference, empty = attention_reference(feeds, case)
        found = run(model, feeds)["y"]
        assert deviation(found, reference).within(tolerance), (lengths, deviation(found, reference))
        assert not found[empty].any()


def test_attention_of_fixed_lengths_without_a_mask(tmp_path: Path) -> None:
    text = "float[2,4,64,16] q, float[2,4,64,16] k, float[2,4,64,16] v => float[2,4,64,16] y"
    lowered = program(text + "{ y = Attention(q, k, v) }")
    emit([lowered], tmp_path)
    feeds = attention_feeds(lowered, 2, 64, 64)
    reference, _ = attention_reference(feeds, "none")
    np.testing.assert_allclose(run(compiled(tmp_path), feeds)["y"], reference, atol=2e-6)


@pytest.mark.parametrize("causal", [0, 1])
def test_attention_with_its_own_past(tmp_path: Path, causal: int) -> None:
    lowered = program(
        "float[b,4,t,16] q, float[b,4,t,16] k, float[b,4,t,16] v, float[b,4,p,16] past_key, "
        "float[b,4,p,16] past_value => float[b,4,t,16] y, float[b,4,s,16] key, float[b,4,s,16] "
        f"value {{ y, key, value = Attention<is_causal = {causal}>(q, k, v, , past_key, "
        "past_value) }"
    )
    expected = ReferenceEvaluator(ir.to_proto(lowered.graph))
    emit([lowered], tmp_path)
    model = compiled(tmp_path)
    rng = np.random.default_rng(0)
    for past, length in ((0, 20), (40, 1), (19, 3)):
        shapes = {s.name: (2, 4, past if "past" in s.name else length, 16) for s in lowered.inputs}
        feeds = {name: rng.normal(size=s).astype(np.float32) for name, s in shapes.items()}
        found = run(model, feeds)
        for name, reference in zip(("y", "key", "value"), expected.run(None, feeds), strict=True):
            np.testing.assert_allclose(found[name], reference, atol=2e-6)


# Other ops, at sizes beyond one vector ------------------------------------------------------------

_ROTARY = {
    "cos": np.cos(np.arange(200)[:, None] * 0.1 ** np.arange(8)).astype(np.float32),
    "sin": np.sin(np.arange(200)[:, None] * 0.1 ** np.arange(8)).astype(np.float32),
}
_SCALE = {"scale": np.linspace(0.5, 2, 48).astype(np.float32)}
OPS: dict[str, tuple[str, dict[str, np.ndarray]]] = {
    "RotaryEmbedding": (
        "float[b,4,t,16] x, int64[b,t] n => float[b,4,t,16] y "
        "{ y = RotaryEmbedding(x, cos, sin, n) }",
        _ROTARY,
    ),
    "RotaryEmbedding, interleaved, in part": (
        "float[b,4,t,24] x, int64[b,t] n => float[b,4,t,24] y "
        "{ y = RotaryEmbedding<interleaved = 1, rotary_embedding_dim = 16>(x, cos, sin, n) }",
        _ROTARY,
    ),
    "RMSNormalization": (
        "float[b,t,48] x => float[b,t,48] y { y = RMSNormalization<epsilon = 1e-6>(x, scale) }",
        _SCALE,
    ),
    "LayerNormalization": (
        "float[b,t,48] x => float[b,t,48] y { y = LayerNormalization(x, scale) }",
        _SCALE,
    ),
    "Gelu": ("float[b,t] x => float[b,t] y { y = Gelu(x) }", {}),
    "Gelu, tanh": ('float[b,t] x => float[b,t] y { y = Gelu<approximate = "tanh">(x) }', {}),
    "CumSum": ("int64[b,t] n => int64[b,t] y { y = CumSum(n, axis) }", {"axis": np.array(1)}),
    "Range": (
        "float[b,t] x => int64[n] y { sizes = Shape<start = 1, end = 2>(x) size = Squeeze(sizes) "
        "y = Range(zero, size, one) }",
        {"zero": np.array(0), "one": np.array(1)},
    ),
    "TensorScatter": (
        "float[b,2,50,8] cache, float[b,2,t,8] update, int64[b] row => float[b,2,50,8] y "
        "{ y = TensorScatter(cache, update, row) }",
        {},
    ),
    "TensorScatter, circular": (
        "float[b,2,50,8] cache, float[b,2,t,8] update, int64[b] row => float[b,2,50,8] y "
        '{ y = TensorScatter<mode = "circular">(cache, update, row) }',
        {},
    ),
    "TensorScatter of three axes from 0": (
        "float[b,50,8] cache, float[b,t,8] update => float[b,50,8] y "
        "{ y = TensorScatter(cache, update) }",
        {},
    ),
}


@pytest.mark.parametrize("case", OPS)
def test_op(tmp_path: Path, case: str) -> None:
    text, constants = OPS[case]
    lowered = program(text, constants)
    reference = ReferenceEvaluator(ir.to_proto(lowered.graph))
    emit([lowered], tmp_path)
    model = compiled(tmp_path)
    # One op of at most three roundings in a row; a norm sums 48 terms.
    tolerance = Tolerance.for_precision("fp32", depth=3, contraction=48)
    rng = np.random.default_rng(0)
    for sizes in ({"b": 1, "t": 1}, {"b": 3, "t": 37}):
        feeds = {}
        for spec in lowered.inputs:
            shape = [d if isinstance(d, int) else sizes[d] for d in spec.shape]
            feeds[spec.name] = (
                rng.normal(size=shape).astype(np.float32)
                if spec.dtype == "float32"
                else rng.integers(0, 12, shape)
            )
        found, expected = run(model, feeds)["y"], reference.run(["y"], feeds)[0]
        assert found.dtype == expected.dtype
        assert deviation(found, expected).within(tolerance)
