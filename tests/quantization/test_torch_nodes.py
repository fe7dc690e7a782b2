"""Each op that torch computes gives what onnxruntime gives, and gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from omnigraph.contract.graph_check import GraphRunner
from omnigraph.quantization.torch_nodes import can_compute, compute
from omnigraph.testing import graph_with_weights

RNG = np.random.default_rng(0)


def floats(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


#: The node, the types of its inputs, and its inputs.
CASES = {
    "gemm": (
        "y = Gemm<alpha = 0.5, beta = 2.0, transB = 1>(a, b, c)",
        [floats(3, 4), floats(5, 4), floats(5)],
    ),
    "gelu": ("y = Gelu(a)", [floats(3, 4)]),
    "tanh gelu": ('y = Gelu<approximate = "tanh">(a)', [floats(3, 4)]),
    "swish": ("y = Swish<alpha = 1.5>(a)", [floats(3, 4)]),
    "layer norm": (
        "y = LayerNormalization<axis = -1, epsilon = 0.01>(a, b, c)",
        [floats(2, 3, 4), floats(4), floats(4)],
    ),
    "norm of two axes": (
        "y = LayerNormalization<axis = 1>(a, b)",
        [floats(2, 3, 4), floats(3, 4)],
    ),
    "rms norm": ("y = RMSNormalization<epsilon = 0.01>(a, b)", [floats(2, 3, 4), floats(4)]),
    "reshape": ("y = Reshape(a, b)", [floats(2, 3, 4), np.array([0, -1])]),
    "transpose": ("y = Transpose<perm = [2, 0, 1]>(a)", [floats(2, 3, 4)]),
    "unsqueeze": ("y = Unsqueeze(a, b)", [floats(2, 3), np.array([0, -1])]),
    "squeeze": ("y = Squeeze(a, b)", [floats(2, 1, 3), np.array([1])]),
    "concat": ("y = Concat<axis = 1>(a, b)", [floats(2, 1), floats(2, 3)]),
    "slice": (
        "y = Slice(a, b, c, d, e)",
        [floats(4, 6), np.array([-1, 1]), np.array([0, 99]), np.array([0, 1]), np.array([-2, 2])],
    ),
    "slice of the first axes": (
        "y = Slice(a, b, c)",
        [floats(4, 6), np.array([1]), np.array([-1])],
    ),
    "gather": ("y = Gather<axis = 1>(a, b)", [floats(2, 4), np.array([[0, -1], [2, 2]])]),
    "expand": ("y = Expand(a, b)", [floats(3, 1), np.array([2, 1, 4])]),
    "softmax": ("y = Softmax<axis = 1>(a)", [floats(2, 3, 4)]),
    "clip": ("y = Clip(a, b)", [floats(3, 4), np.array(-0.1, np.float32)]),
    "where": ("y = Where(a, b, c)", [floats(3, 4) > 0, floats(3, 4), floats(4)]),
    "attention": ("y = Attention(a, b, c)", [floats(2, 3, 4, 8)] * 3),
    "causal attention": (
        "y = Attention<is_causal = 1, scale = 0.3>(a, b, c)",
        [floats(2, 4, 5, 8), floats(2, 2, 5, 8), floats(2, 2, 5, 8)],
    ),
    "attention of three axes": (
        "y = Attention<q_num_heads = 4, kv_num_heads = 2>(a, b, c)",
        [floats(2, 5, 32), floats(2, 3, 16), floats(2, 3, 16)],
    ),
    "mask of booleans": (
        "y = Attention(a, b, c, d)",
        [*[floats(2, 2, 3, 8)] * 3, np.array([[1, 1, 0], [0, 1, 0], [0, 0, 0]], bool)],
    ),
    "mask of floats": (
        "y = Attention(a, b, c, d)",
        [*[floats(1, 2, 3, 8)] * 3, np.where(floats(3, 3) > 0, floats(3, 3), -np.inf)],
    ),
    "past": (
        "y, y2, y3 = Attention<is_causal = 1>(a, b, c, , d, e)",
        [*[floats(1, 2, 3, 8)] * 3, *[floats(1, 2, 4, 8)] * 2],
    ),
    "rotary": ("y = RotaryEmbedding(a, b, c)", [floats(2, 3, 4, 8), *[floats(2, 4, 4)] * 2]),
    "rotary by positions": (
        "y = RotaryEmbedding<interleaved = 1, num_heads = 2>(a, b, c, d)",
        [floats(2, 3, 16), *[floats(9, 4)] * 2, np.array([[0, 5, 2], [1, 1, 8]])],
    ),
    "partial rotary": (
        "y = RotaryEmbedding<rotary_embedding_dim = 4>(a, b, c)",
        [floats(2, 3, 4, 8), *[floats(2, 4, 2)] * 2],
    ),
}
TYPES = {np.dtype(np.float32): "float", np.dtype(np.int64): "int64", np.dtype(bool): "bool"}


@pytest.mark.parametrize("name", CASES)
def test_torch_computes_what_onnxruntime_computes(name: str):
    text, given = CASES[name]
    feeds = {
        n: a.astype(np.float32) if a.dtype == float else a
        for n, a in zip("abcde", given, strict=False)
    }
    declared = ", ".join(f"{TYPES[a.dtype]}{list(a.shape)} {n}" for n, a in feeds.items())
    gives = ", ".join(
        f"float {n}" for n in ("y", "y2", "y3") if f"{n}," in text or f"{n} =" in text
    )
    graph = graph_with_weights(f"net ({declared.replace('[]', '')}) => ({gives}) {{ {text} }}")
    (node,) = graph.graph
    assert can_compute(node)
    tensors = {n: torch.from_numpy(np.array(a)) for n, a in feeds.items()}
    tensors["a"].requires_grad_(tensors["a"].is_floating_point())
    inputs = [None if v is None else tensors[v.name] for v in node.inputs]
    found = compute(node, inputs)
    for value, expected in zip(found, GraphRunner(graph).run(feeds).values(), strict=False):
        np.testing.assert_allclose(value.detach().numpy(), expected, rtol=1e-5, atol=1e-6)
    if tensors["a"].requires_grad:
        found[0].square().sum().backward()
        assert torch.isfinite(tensors["a"].grad).all()


def test_forms_without_a_gradient_here_are_known():
    graph = graph_with_weights(
        "net (float[1, 2, 3, 8] a) => (float y) { y = Attention<softcap = 5.0>(a, a, a) }"
    )
    assert not can_compute(next(iter(graph.graph)))
    graph = graph_with_weights("net (float[3] a) => (float y) { y = Mish(a) }")
    assert not can_compute(next(iter(graph.graph)))
