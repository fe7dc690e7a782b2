"""The fastest kernels of onnxruntime for each part of a transformer, measured or from a source.

``python -m benchmarks.kernels`` measures it, at 16 heads of 64, one thread, fp32, onnxruntime 1.32
on an AMD EPYC with AVX-512; a ratio is the time of the form over that of the form that the passes
leave. The ``onnx`` target takes the rows that are ``taken``, with the passes named there. It takes
no form that is faster by less than 3% of a layer, or only sometimes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

#: The only ops of onnxruntime's own domain that the target's last passes may leave.
CONTRIB_OPS = frozenset({"GroupQueryAttention"})

#: An Attention of three axes is slower with a fixed number of queries above this.
MOST_QUERIES_JOINED = 512
#: Causal attention over at least as many tokens is faster in GroupQueryAttention.
LEAST_TOKENS_GROUPED = 1024


@dataclass(frozen=True)
class Form:
    """One form of a part of a transformer, beside the form that the passes leave.

    Args:
        device: "cpu" or "cuda".
        part: what is computed.
        form: how.
        beside: the form that it is compared with.
        ratios: tokens to the ratio of times, where it was measured here.
        taken: how the target takes it; None where it does not.
        note: further facts; the source, where it was not measured here.
    """

    device: str
    part: str
    form: str
    beside: str
    ratios: Mapping[int, float] = field(default_factory=dict)
    taken: str | None = None
    note: str = ""


_FOUR = "Attention of 4 axes, transposes around it"
_DISABLED = "its own fusion is switched off in the Session"

FORMS: tuple[Form, ...] = (
    Form(
        "cpu",
        "attention, any mask",
        "Attention of 3 axes",
        _FOUR,
        {128: 0.87, 512: 0.97, 1024: 1.02, 2048: 1.07},
        "join-attention-heads",
    ),
    Form(
        "cpu",
        "attention with a past of 512",
        "Attention of 3 axes with past_key and past_value",
        "Concat, then Attention of 4 axes",
        {1: 0.92, 8: 0.9},
        "join-attention-heads, where fuse-attention has taken in the past",
    ),
    Form(
        "cpu",
        "causal attention, with or without a mask or bias",
        "GroupQueryAttention",
        _FOUR,
        {128: 1.05, 512: 1.04, 1024: 0.79, 2048: 0.63},
        "use-group-query-attention",
    ),
    Form(
        "cpu",
        "attention without a mask",
        "MultiHeadAttention",
        _FOUR,
        {128: 0.95, 512: 0.9, 2048: 0.9},
        note="2% of a layer at 2048 tokens; below, Attention of 3 axes is as fast",
    ),
    Form(
        "cpu",
        "attention with a mask or bias",
        "MultiHeadAttention",
        _FOUR,
        {128: 1.02, 512: 0.97, 2048: 0.93},
    ),
    Form("cpu", "attention", "MatMul, Softmax", _FOUR, {128: 1.08, 512: 1.1, 2048: 1.04}),
    Form(
        "cpu",
        "mask [B, H, T, S]",
        "bool",
        "bool [B, 1, T, S]",
        {128: 1.14, 512: 1.19},
        note="float [B, 1, T, S] and [B, H, T, S] cost as much as bool [B, 1, T, S], within 3%",
    ),
    Form(
        "cpu",
        "queries, keys and values of one input",
        "one MatMul, Split",
        "three MatMul",
        {1: 0.96, 8: 1.02, 128: 1.02, 512: 1.02},
        note="the same holds for gate and up; fuse-projections does it on request",
    ),
    Form(
        "cpu",
        "linear layer with bias",
        "Gemm between Reshapes",
        "MatMul, Add",
        {1: 1.0, 8: 0.96, 128: 1.01, 512: 1.01},
    ),
    Form(
        "cpu",
        "residual and LayerNorm",
        "SkipLayerNormalization",
        "Add, Add, LayerNormalization",
        {1: 1.4, 8: 3.2, 128: 5.8, 512: 5.0},
        note=f"slower; {_DISABLED}",
    ),
    Form(
        "cpu",
        "residual and RMSNorm",
        "SkipSimplifiedLayerNormalization",
        "Add, RMSNormalization",
        {1: 1.1, 8: 1.5, 128: 2.6, 512: 2.6},
        note=f"slower; {_DISABLED}",
    ),
    Form(
        "cpu",
        "bias and Gelu",
        "BiasGelu, FastGelu",
        "Add, Gelu",
        {1: 0.99, 8: 1.0, 128: 1.01, 512: 1.02},
        note="onnxruntime makes BiasGelu of them at load",
    ),
    Form(
        "cpu",
        "rotary positions",
        "com.microsoft RotaryEmbedding",
        "RotaryEmbedding",
        {1: 0.97, 128: 0.98, 512: 0.98},
        note="decomposed into Split, Mul and Add, it takes 2.3 times as long",
    ),
    Form(
        "cpu",
        "logits of a tied embedding",
        "Gemm or FusedMatMul with transB",
        "Transpose, MatMul",
        {1: 0.99, 8: 1.0, 128: 1.01},
        note="the Transpose is computed at load, into the packed copy that every form has",
    ),
    Form(
        "cuda",
        "attention",
        "GroupQueryAttention",
        "Attention",
        note="not measured here, no GPU: faster, says onnxruntime issue 28352",
    ),
    Form(
        "cuda",
        "attention with a bias",
        "any",
        "without the bias",
        note="not measured here, no GPU: a bias, even of zeros, excludes the Flash kernel",
    ),
)
