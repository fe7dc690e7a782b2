"""The ONNX project's own node tests as Graphs of OmniGraph, at its opset."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from omnigraph.graph import MODULE_KEY, OPSET, Graph

#: What a Graph can hold: what torch's exporter writes for transformers, text and image alike, what
#: our passes write, and the elementwise functions, reductions and movements beside those.
OPS = frozenset(
    "Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh Attention AveragePool "
    "BatchNormalization BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast CastLike Ceil "
    "Celu Clip Compress Concat Constant ConstantOfShape Conv ConvTranspose Cos Cosh CumSum "
    "DepthToSpace DequantizeLinear Div Dropout DynamicQuantizeLinear Einsum Elu Equal Erf Exp "
    "Expand EyeLike Flatten Floor Gather GatherElements GatherND Gelu Gemm GlobalAveragePool "
    "GlobalMaxPool Greater GreaterOrEqual GroupNormalization HardSigmoid HardSwish Hardmax "
    "Identity InstanceNormalization IsInf IsNaN LayerNormalization LeakyRelu Less LessOrEqual Log "
    "LogSoftmax LpNormalization MatMul MatMulInteger Max MaxPool Mean Min Mish Mod Mul Neg NonZero "
    "Not OneHot Or PRelu Pad Pow QLinearMatMul QuantizeLinear RMSNormalization Range Reciprocal "
    "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd "
    "ReduceSum ReduceSumSquare Relu Reshape Resize RotaryEmbedding Round ScatterElements ScatterND "
    "Selu Shape Shrink Sigmoid Sign Sin Sinh Size Slice Softmax Softplus Softsign SpaceToDepth "
    "Split Sqrt Squeeze Sub Sum Swish Tan Tanh TensorScatter ThresholdedRelu Tile TopK Transpose "
    "Trilu Unsqueeze Where Xor".split()
)
#: What a Program's inputs and outputs may be.
_TYPES = frozenset("BOOL UINT8 INT8 INT16 INT32 INT64 FLOAT16 FLOAT DOUBLE".split())
#: Types that only stand inside a Graph: what is an input of one becomes a constant, and an output
#: is cast to float32, which has all their numbers.
_INSIDE = frozenset(
    "BFLOAT16 FLOAT8E4M3FN FLOAT8E4M3FNUZ FLOAT8E5M2 FLOAT8E5M2FNUZ INT4 UINT4 FLOAT4E2M1".split()
)
#: Inputs that are numbers of the model and not of the call: shapes, axes, bounds, tables, weights.
_PARAMETERS: Mapping[str, tuple[int, ...]] = {
    "BatchNormalization": (1, 2, 3, 4),
    "Clip": (1, 2),
    "ConstantOfShape": (0,),
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "CumSum": (1,),
    "DequantizeLinear": (1, 2),
    "Dropout": (1, 2),
    "Expand": (1,),
    "Gemm": (1, 2),
    "GroupNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "LayerNormalization": (1, 2),
    "OneHot": (1, 2),
    "PRelu": (1,),
    "Pad": (1, 2, 3),
    "QLinearMatMul": (1, 2, 3, 4, 5, 6, 7),
    "QuantizeLinear": (1, 2),
    "RMSNormalization": (1,),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Resize": (1, 2, 3),
    "RotaryEmbedding": (1, 2),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Squeeze": (1,),
    "Tile": (1,),
    "TopK": (1,),
    "Trilu": (1,),
    "Unsqueeze": (1,),
    **{op: (1,) for op in OPS if op.startswith("Reduce")},
}


@dataclass(frozen=True)
class NodeCase:
    """One node test: a model with inputs and the outputs that it should give.

    Args:
        name: the standard's own; " (constants)" is added where parameters are no inputs.
        op: the op that it tests, in the op's own form or written out.
        constants: the inputs that become constants of the Graph.
    """

    name: str
    op: str
    model: onnx.ModelProto
    feeds: Mapping[str, np.ndarray]
    outputs: Mapping[str, np.ndarray]
    constants: frozenset[str] = frozenset()

    def graph(self) -> Graph:
        """The model as a Graph."""
        graph = ir.from_proto(onnx.shape_inference.infer_shapes(self.model))
        graph.graph.name = "forward"
        for position, node in enumerate(graph.graph):
            node.name = node.name or f"{node.op_type}_{position}"
            node.metadata_props[MODULE_KEY] = self.name
        for value in list(graph.graph.inputs):
            assert value.name is not None
            if value.name in self.constants:
                graph.graph.inputs.remove(value)
                array = self.feeds[value.name]
                value.const_value = ir.tensor(array, dtype=value.dtype, name=value.name)
                graph.graph.register_initializer(value)
        _widen_outputs(graph)
        return graph


@functools.cache
def node_cases() -> tuple[NodeCase, ...]:
    """Every node test that a Graph can hold, at our opset; those with parameters, in two forms."""
    return tuple(_collect())


@functools.cache
def node_tests() -> tuple[Any, ...]:
    """Every node test of the standard; onnx gives them once in a process."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # their own generators divide by zero
        return tuple(collect_testcases(None))  # type: ignore[arg-type]


def _collect() -> Iterator[NodeCase]:
    for test in node_tests():
        if test.model is None or not test.data_sets or not _holds(test.model):
            continue
        if test.name.startswith("test_training_dropout") and "zero_ratio" not in test.name:
            continue  # it draws numbers, which a trace refuses
        model = _at_our_opset(test.model)
        if model is None:
            continue
        given, expected = test.data_sets[0]
        feeds = {v.name: _array(a) for v, a in zip(model.graph.input, given, strict=False)}
        outputs = {v.name: _array(a) for v, a in zip(model.graph.output, expected, strict=True)}
        op = _tested(test.name, test.model)
        narrow = frozenset(
            v.name
            for v in model.graph.input
            if ir.DataType(v.type.tensor_type.elem_type).name in _INSIDE
        )
        yield NodeCase(test.name, op, model, feeds, outputs, narrow)
        parameters = {
            node.input[i]
            for node in model.graph.node
            for i in _PARAMETERS.get(node.op_type, ())
            if i < len(node.input) and node.input[i] in feeds
        }
        if parameters - narrow:
            name = f"{test.name} (constants)"
            yield NodeCase(name, op, model, feeds, outputs, narrow | parameters)


def _array(given: object) -> np.ndarray:
    """An array of what the standard gives as one, or as a tensor of a type that numpy has not."""
    if isinstance(given, onnx.TensorProto):
        return onnx.numpy_helper.to_array(given)
    return np.asarray(given)


def _holds(model: onnx.ModelProto) -> bool:
    """Whether a Graph can hold a model: tensors of our types between ops of the standard."""
    for node in model.graph.node:
        if node.domain != "" or node.op_type not in OPS:
            return False
    for value in (*model.graph.input, *model.graph.output):
        if not value.type.HasField("tensor_type"):
            return False
        if ir.DataType(value.type.tensor_type.elem_type).name not in _TYPES | _INSIDE:
            return False
    return bool(model.graph.output)


def _at_our_opset(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """A model at our opset: as it is where it means the same there, else converted; or None."""
    opset = next(entry.version for entry in model.opset_import if entry.domain == "")
    same = onnx.ModelProto.FromString(model.SerializeToString())
    del same.opset_import[:]
    same.opset_import.append(onnx.helper.make_opsetid("", OPSET))
    same.ir_version = 11
    unchanged = all(
        onnx.defs.get_schema(node.op_type, opset).since_version
        == onnx.defs.get_schema(node.op_type, OPSET).since_version
        for node in model.graph.node
    )
    if not unchanged and opset < OPSET:
        try:
            return onnx.version_converter.convert_version(model, OPSET)
        except RuntimeError:  # it has no rule for this op; the checker says whether it needs one
            pass
    try:
        onnx.checker.check_model(same, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
        return None
    return same


def _tested(name: str, model: onnx.ModelProto) -> str:
    """The op that a test is of; a test of an op written out is named after that op."""
    if "_expanded" not in name:
        return model.graph.node[0].op_type
    words = name.removeprefix("test_").split("_expanded")[0]
    squeezed = words.replace("_", "")
    known = [op for op in OPS if squeezed.startswith(op.lower())]
    known += ["LayerNormalization"] * squeezed.startswith("layernorm")
    return max(known, key=len, default=words.split("_")[0])


def _widen_outputs(graph: Graph) -> None:
    """Let outputs of types that a Program has not be float32, by a cast."""
    nodes = graph.graph
    for position, value in enumerate(nodes.outputs):
        if value.dtype is not None and value.dtype.name in _INSIDE:
            cast = ir.node("Cast", [value], {"to": ir.DataType.FLOAT}, name=f"{value.name}_wide")
            _typed(cast.outputs[0], ir.DataType.FLOAT, value.shape)
            cast.metadata_props[MODULE_KEY] = "ends"
            name, value.name = value.name, f"{value.name}_narrow"
            cast.outputs[0].name = name
            nodes.append(cast)
            nodes.outputs[position] = cast.outputs[0]


def _typed(value: ir.Value, dtype: ir.DataType, shape: ir.Shape | None) -> None:
    value.type, value.shape = ir.TensorType(dtype), shape
