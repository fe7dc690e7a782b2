"""Which quantization TensorRT takes: ops, scales and blocks of integers and float8.

Found with TensorRT-RTX 1.7 by building small networks of every form. The compiler takes some of
what is refused here, but computes something else:

- zero points of float8, and a QuantizeLinear that does not saturate;
- uint8, which it takes for int8;
- a last block that is not full: it assumes another block size (the engines are equal, byte for
  byte);
- int8 activations with weights in blocks, whose scales it applies to whole sums;
- MatMuls whose scales are fp16: it rounds sums of integers to fp16 before it scales them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import onnx_ir as ir

from omnigraph.passes.analysis.quantization.float_precision import is_weight
from omnigraph.passes.analysis.quantization.scheme import (
    PER_CHANNEL,
    SIGNED,
    ActivationGrid,
    Scheme,
)
from omnigraph.passes.analysis.quantization.weight_rounding import WeightGrid
from omnigraph.passes.legalize_ragged_blocks import blocks_of, ragged
from omnigraph.passes.matching import input_at, made_by, standard, through

#: By type, the ops that take it besides QuantizeLinear and DequantizeLinear.
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
_QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")

#: By precision, the default first; None is floats only.
SCHEMES: Mapping[str, Scheme | None] = {
    "fp16": None,
    "bf16": None,
    "int8": Scheme(PER_CHANNEL, SIGNED, finer=Scheme(PER_CHANNEL)),
    "int8-weights": Scheme(PER_CHANNEL),
    "int4-weights": Scheme(WeightGrid(ir.DataType.INT4, 64)),
    "fp8": Scheme(
        WeightGrid(ir.DataType.FLOAT8E4M3FN),
        ActivationGrid(ir.DataType.FLOAT8E4M3FN, symmetric=True),
        # Logits may share the table, and TensorRT cannot multiply integers with float8.
        tables=None,
    ),
}


def narrow_refusal(node: ir.Node, value: ir.Value) -> str | None:
    """Why a node cannot read or give a value of a type that only some ops take, or None."""
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
    return (
        _integer_refusal(node)
        or _zero_point_refusal(node)
        or _scale_refusal(node)
        or _block_refusal(node)
    )


def product_refusal(node: ir.Node) -> str | None:
    """Why TensorRT cannot take a MatMul or Gemm of quantized factors, or None."""
    one, other = (_dequantizer(input_at(node, index)) for index in (0, 1))
    if one is None or other is None:
        return None
    names = sorted({f.inputs[0].dtype.name.lower() for f in (one, other)})  # type: ignore[union-attr]
    if len(names) > 1:
        return f"TensorRT multiplies factors of one type, and these are {' and '.join(names)}"
    if any(factor.attributes.get_int("block_size", 0) for factor in (one, other)):
        return "TensorRT does not multiply two quantized factors with blocks"
    scales = [factor.inputs[1] for factor in (one, other)]
    narrow = any(s is not None and s.dtype == ir.DataType.FLOAT16 for s in scales)
    if narrow and any(s is None or not _is_one(s) for s in scales):
        return "TensorRT sums quantized products in the type of their scales, and fp16 overflows"
    return None


def _dequantizer(value: ir.Value | None) -> ir.Node | None:
    """The DequantizeLinear that makes a factor, before any Transpose or Reshape."""
    node = made_by(through(value, "Transpose", "Reshape"), "DequantizeLinear")
    known = node is not None and node.inputs[0] is not None and node.inputs[0].dtype is not None
    return node if known else None


def _is_one(value: ir.Value) -> bool:
    shape = value.shape
    return shape is not None and math.prod(d if isinstance(d, int) else 2 for d in shape) == 1


def _integer_refusal(node: ir.Node) -> str | None:
    given = node.inputs[0].dtype if node.inputs[0] is not None else None
    if standard(node, "DequantizeLinear") and given is not None and given.name == "INT32":
        return "TensorRT does not dequantize int32"
    return None


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
    data, scale, given = node.inputs[0], node.inputs[1], node.outputs[0].dtype
    assert data is not None and scale is not None
    four_bits = data.dtype == ir.DataType.INT4
    if four_bits and data.shape is not None and _is_odd(data.shape):
        return "TensorRT takes an even number of int4 only"
    to_scale_type = standard(node, "DequantizeLinear") and (four_bits or block)
    if to_scale_type and None not in (given, scale.dtype) and given != scale.dtype:
        return "TensorRT dequantizes blocks and int4 to the type of their scales only"
    if not block:
        return None
    if block == 1:
        return "TensorRT takes blocks of 2 or more"
    if not size:
        return "TensorRT takes blocks of an axis of a known size only"
    if ragged(node):
        return f"TensorRT takes blocks that fill their axis, and {block} does not divide {size}"
    return None


def _is_odd(shape: ir.Shape) -> bool:
    return all(isinstance(size, int) and size % 2 == 1 for size in shape)
