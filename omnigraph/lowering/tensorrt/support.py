"""Which nodes TensorRT takes, as data, found by building each op of the standard.

The list is of TensorRT-RTX 1.7: its parser and compiler got the standard's own test case of every
op. The conditions are those that they refused, or crashed on.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from omnigraph.lowering.nonconforming import nonconforming
from omnigraph.lowering.tensorrt.quantization import (
    narrow_refusal,
    product_refusal,
    quantizer_refusal,
)
from omnigraph.passes.decompose_attention import DecomposeAttention, head_size

#: Ops that exist in fp32 and fp16, and not in bf16.
NO_BFLOAT16 = ("HardSwish", "Mish")

_TAKEN = frozenset(
    "Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh Attention AveragePool "
    "BatchNormalization Cast Ceil Celu Clip Concat Constant ConstantOfShape Conv "
    "ConvTranspose Cos Cosh CumSum DepthToSpace DequantizeLinear Div Dropout Einsum Elu Equal "
    "Erf Exp Expand EyeLike Flatten Floor GRU Gather GatherElements GatherND Gelu Gemm "
    "GlobalAveragePool GlobalMaxPool Greater GreaterOrEqual GridSample GroupNormalization "
    "HardSigmoid HardSwish Identity If InstanceNormalization IsInf IsNaN LSTM "
    "LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax LpNormalization MatMul Max "
    "MaxPool Mean Min Mish Mod Mul Neg Not OneHot Or PRelu Pad Pow QuantizeLinear "
    "RMSNormalization Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp "
    "ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize "
    "ReverseSequence RotaryEmbedding Round ScatterElements ScatterND Selu Shape Sign Sigmoid "
    "Sin Sinh Size Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum "
    "Swish Tan Tanh TensorScatter ThresholdedRelu Tile TopK Transpose Trilu Unsqueeze Where "
    "Xor".split()
)
_TYPES = frozenset("FLOAT FLOAT16 BFLOAT16 INT32 INT64 BOOL".split())
_ONE_OUTPUT = frozenset("LayerNormalization BatchNormalization Dropout MaxPool".split())
_MASK, _PAST_KEY = 3, 4
_MOST_TOP = 3840

#: Decomposes each Attention that no kernel takes. The compiler has no kernel for heads outside
#: these sizes, on any GPU, in either half type. It crashes where queries are also keys, and where
#: it does not know whether queries and keys have equally many heads.
ATTENTION = DecomposeAttention(smallest_head=9, largest_head=256, separate=True, fixed_heads=True)


def refusal(node: ir.Node) -> str | None:
    """Why TensorRT cannot take a node, or None."""
    if node.domain != "":
        return f"domain {node.domain!r} is not standard ONNX"
    if node.op_type not in _TAKEN:
        return "TensorRT has no such op"
    if (reason := nonconforming(node)) is not None:
        return reason
    condition = _CONDITIONS.get(node.op_type)
    return _wrong_type(node) or _wrong_outputs(node) or (condition(node) if condition else None)


def _wrong_type(node: ir.Node) -> str | None:
    for value in (*node.inputs, *node.outputs):
        if value is None or value.dtype is None or value.dtype.name in _TYPES:
            continue
        if (reason := narrow_refusal(node, value)) is not None:
            return reason
    if node.op_type in NO_BFLOAT16 and node.outputs[0].dtype == ir.DataType.BFLOAT16:
        return f"TensorRT has no {node.op_type} in bfloat16"
    return None


def _wrong_outputs(node: ir.Node) -> str | None:
    if node.op_type not in _ONE_OUTPUT:
        return None
    used = [v.name for v in node.outputs[1:] if v.uses() or v.is_graph_output()]
    return f"TensorRT gives the first output only, and {used[0]!r} is used" if used else None


def _attention(node: ir.Node) -> str | None:
    query = node.inputs[0]
    mask = node.inputs[_MASK] if len(node.inputs) > _MASK else None
    if query is not None and query.dtype == ir.DataType.FLOAT:
        return "TensorRT has attention kernels for fp16 and bf16 only"
    if node.attributes.get_int("is_causal", 0) and mask is not None:
        return "TensorRT takes a mask or is_causal, not both"
    if any(value is not None for value in node.inputs[_PAST_KEY:]):
        return "TensorRT takes no past and no nonpad_kv_seqlen in an Attention"
    if "q_num_heads" in node.attributes:
        return None
    reason = ATTENTION.why_no_kernel(node) if head_size(node, 0) is not None else None
    return f"TensorRT has no attention kernel for {reason}" if reason else None


def _constant_axes(node: ir.Node) -> str | None:
    axes = node.inputs[1] if len(node.inputs) > 1 else None
    if axes is not None and ir.convenience.get_const_tensor(axes) is None:
        return "TensorRT takes constant axes only"
    return None


def _reduction(node: ir.Node) -> str | None:
    value = node.inputs[0]
    if value is not None and value.dtype == ir.DataType.BOOL:
        return "TensorRT does not reduce booleans"
    return _constant_axes(node)


def _scatter(node: ir.Node) -> str | None:
    mode = node.attributes.get_string("reduction", "none")
    return None if mode == "none" else f"TensorRT scatters without a reduction, not by {mode!r}"


def _cache(node: ir.Node) -> str | None:
    cache = node.inputs[0]
    if node.attributes.get_string("mode", "linear") != "linear":
        return "TensorRT updates a cache in linear mode only"
    if cache is not None and cache.shape is not None and len(cache.shape) != 4:
        return "TensorRT updates a cache of four axes only"
    return None


def _modulo(node: ir.Node) -> str | None:
    value = node.inputs[0]
    floating = value is not None and value.dtype is not None and value.dtype.is_floating_point()
    if floating and not node.attributes.get_int("fmod", 0):
        return "TensorRT takes Mod of floats with fmod=1 only"
    return None


def _range(node: ir.Node) -> str | None:
    kinds = (ir.DataType.INT32, ir.DataType.INT64, ir.DataType.FLOAT)
    return (
        None if node.outputs[0].dtype in kinds else "TensorRT has Range for int32, int64 and fp32"
    )


def _top(node: ir.Node) -> str | None:
    count = node.inputs[1]
    tensor = ir.convenience.get_const_tensor(count) if count is not None else None
    most = int(tensor.numpy().max()) if tensor is not None else 0
    return f"TensorRT finds the top {_MOST_TOP} at most" if most > _MOST_TOP else None


def _pool(node: ir.Node) -> str | None:
    dilated = any(step != 1 for step in node.attributes.get_ints("dilations", []))
    return "TensorRT does not pool with dilations" if dilated else None


def _training(node: ir.Node) -> str | None:
    return "TensorRT does not train" if node.attributes.get_int("training_mode", 0) else None


_CONDITIONS: dict[str, Callable[[ir.Node], str | None]] = {
    "Attention": _attention,
    "AveragePool": _pool,
    "BatchNormalization": _training,
    "DequantizeLinear": quantizer_refusal,
    "Gemm": product_refusal,
    "MatMul": product_refusal,
    "MaxPool": _pool,
    "Mod": _modulo,
    "QuantizeLinear": quantizer_refusal,
    "Range": _range,
    "ScatterElements": _scatter,
    "ScatterND": _scatter,
    "Squeeze": _constant_axes,
    "TensorScatter": _cache,
    "TopK": _top,
    "Unsqueeze": _constant_axes,
    **{op: _reduction for op in _TAKEN if op.startswith("Reduce")},
}
