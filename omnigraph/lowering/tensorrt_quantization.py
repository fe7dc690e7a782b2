"""What TensorRT takes of integers and float8: which ops, which scales, which blocks.

Found with TensorRT-RTX 1.7 by building small networks of every form. Some of what is refused here
the compiler takes, and computes as something else: zero points of float8, a QuantizeLinear that
does not saturate, uint8 (as int8), a last block that is not full (as one of blocks of another
length: the engines are the same, byte for byte), and products whose scales are fp16, whose sums of
integers it rounds to fp16 before it scales them.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from omnigraph.passes.analysis.precision import is_weight
from omnigraph.passes.legalize_ragged_blocks import blocks_of, ragged
from omnigraph.passes.matching import input_at, made_by, standard

#: By type, the ops that take it besides those that make it of floats and the reverse.
NARROW_TYPES: dict[str, frozenset[str]] = {
    "INT8": frozenset(
        "Cast Concat Expand Flatten Gather Identity Pad Reshape Slice Squeeze Tile Transpose "
        "Unsqueeze Where".split()
    ),
    "UINT8": frozenset({"Cast"}),
    "FLOAT8E4M3FN": frozenset("Flatten Identity Pad Reshape Transpose".split()),
    "INT4": frozenset(),
}
#: The first compute capability whose kernels have a type.
FIRST_CAPABILITY = {"BFLOAT16": 80, "INT4": 80, "FLOAT8E4M3FN": 89}
#: The types that a GPU has products of.
_FACTORS = (ir.DataType.INT8, ir.DataType.FLOAT8E4M3FN)
_QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")


def narrow_refusal(node: ir.Node, value: ir.Value) -> str | None:
    """Why a node cannot read or give a value of a type that is not computed with, or None."""
    assert value.dtype is not None
    taking = NARROW_TYPES.get(value.dtype.name)
    name = value.dtype.name.lower()
    if taking is None:
        return f"TensorRT does not compute in {name}"
    if node.op_type == "Constant":
        return None
    if node.op_type in _QUANTIZERS:
        return f"TensorRT does not quantize to {name}" if name == "uint8" else None
    if node.op_type not in taking:
        return f"TensorRT does not compute in {name}"
    constant = is_weight(value) or made_by(value, "Constant") is not None
    if constant and name != "uint8" and value in node.inputs:
        return f"TensorRT takes a constant of {name} in a DequantizeLinear only"
    return None


def quantizer_refusal(node: ir.Node) -> str | None:
    """Why TensorRT cannot take a QuantizeLinear or DequantizeLinear, or None."""
    return _zero_point_refusal(node) or _scale_refusal(node) or _block_refusal(node)


def product_refusal(node: ir.Node) -> str | None:
    """Why TensorRT cannot take a MatMul or Gemm of what was quantized, or None."""
    factors = [_widened(input_at(node, index)) for index in (0, 1)]
    if any(f is None or f.inputs[0] is None for f in factors):
        return None
    scales = [f.inputs[1] for f in factors if f is not None]
    narrow = any(s is not None and s.dtype == ir.DataType.FLOAT16 for s in scales)
    if narrow and any(s is None or not _is_one(s) for s in scales):
        return "TensorRT sums quantized products in the type of their scales, and fp16 overflows"
    return None


def _widened(value: ir.Value | None) -> ir.Node | None:
    """The DequantizeLinear, without blocks, that makes a factor, be it transposed."""
    if (transpose := made_by(value, "Transpose")) is not None:
        value = transpose.inputs[0]
    node = made_by(value, "DequantizeLinear")
    if node is None or node.attributes.get_int("block_size", 0):
        return None
    source = node.inputs[0]
    return node if source is not None and source.dtype in _FACTORS else None


def _is_one(value: ir.Value) -> bool:
    shape = value.shape
    return shape is not None and math.prod(d if isinstance(d, int) else 2 for d in shape) == 1


def _zero_point_refusal(node: ir.Node) -> str | None:
    zero = input_at(node, 2)
    if zero is not None:
        tensor = ir.convenience.get_const_tensor(zero)
        if tensor is None or tensor.numpy().astype("float32").any():
            return "TensorRT quantizes symmetrically: zero points are 0"
    if standard(node, "QuantizeLinear") and not node.attributes.get_int("saturate", 1):
        return "TensorRT saturates what it quantizes"
    return None


def _scale_refusal(node: ir.Node) -> str | None:
    scale = input_at(node, 1)
    tensor = ir.convenience.get_const_tensor(scale) if scale is not None else None
    if tensor is not None and not (tensor.numpy().astype("float32") > 0).all():
        return "TensorRT takes scales above 0 only"
    return None


def _block_refusal(node: ir.Node) -> str | None:
    _, size, block = blocks_of(node)
    data, scale = node.inputs[0], input_at(node, 1)
    if data is None:
        return None
    if data.dtype == ir.DataType.INT4 and data.shape is not None and _is_odd(data.shape):
        return "TensorRT takes an even number of int4 only"
    if not block:
        return None
    if block == 1:
        return "TensorRT takes blocks of 2 or more"
    if not size:
        return "TensorRT takes blocks of an axis of a known size only"
    if ragged(node):
        return f"TensorRT takes blocks that fill their axis, and {block} does not divide {size}"
    if scale is not None and standard(node, "DequantizeLinear"):
        given = node.outputs[0].dtype
        if None not in (given, scale.dtype) and given != scale.dtype:
            return "TensorRT widens blocks to the type of their scales only"
    return None


def _is_odd(shape: ir.Shape) -> bool:
    return all(isinstance(size, int) and size % 2 == 1 for size in shape)
