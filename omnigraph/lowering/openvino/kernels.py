"""The forms that OpenVINO's CPU plugin runs fastest, as data.

Measured like those of onnxruntime, with OpenVINO 2026.4 in f32. Nothing here saves 3% of a layer
everywhere, so the ``openvino`` target takes none of it; the record saves measuring it again.
"""

from __future__ import annotations

from omnigraph.lowering.onnx.kernels import Form

_NODE = "Attention of 4 axes, which becomes ScaledDotProductAttention"

FORMS: tuple[Form, ...] = (
    Form(
        "cpu",
        "attention with a mask",
        "MatMul, Add, Softmax, MatMul",
        _NODE,
        {128: 0.89, 512: 0.97, 2048: 0.93},
        note="not taken: gives NaN in a row without keys, and a state needs the one node",
    ),
    Form(
        "cpu",
        "attention with a bias [H, T, S]",
        "MatMul, Add, Softmax, MatMul",
        _NODE,
        {128: 0.88, 512: 0.8, 2048: 0.87},
        note="not taken, for the same reasons; 2.6% of a layer at 512 tokens",
    ),
    Form("cpu", "attention", "Attention of 3 axes", _NODE, {128: 0.99, 512: 1.01, 2048: 1.0}),
    Form(
        "cpu",
        "mask [B, H, T, S]",
        "bool",
        "bool [B, 1, T, S]",
        {128: 1.18, 512: 1.39},
        note="float [B, H, T, S] takes 1.06 and 1.12 times as long, float [B, 1, T, S] 0.98",
    ),
    Form(
        "cpu",
        "queries, keys and values of one input",
        "one MatMul, Split",
        "three MatMul",
        {1: 0.97, 8: 0.96, 128: 1.01, 512: 1.02},
    ),
    Form(
        "cpu",
        "rotary positions",
        "Split, Mul, Add",
        "RotaryEmbedding",
        {1: 0.87, 128: 1.67, 512: 2.02},
        note="fuse-rotary gives the one node",
    ),
    Form(
        "cpu",
        "logits of a tied embedding",
        "Gemm with transB",
        "Transpose, MatMul",
        {1: 0.99, 8: 0.94, 128: 1.0},
        note="both become a MatMul with transpose_b, packed once at load",
    ),
)
