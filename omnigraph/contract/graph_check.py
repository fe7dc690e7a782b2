"""Legality of a Graph at each stage, and its numbers as onnxruntime computes them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from omnigraph.contract.time_limit import limited
from omnigraph.contract.tolerance import Tolerance, deviations, output_scales
from omnigraph.errors import ContractError, GraphError, OmniGraphError
from omnigraph.external_weights import external_weights, tensor_bytes, with_small_tensors
from omnigraph.graph import MODULE_KEY, OPSET, Graph, describe

#: onnxruntime reads initializers of at least this size in place, without a copy.
_LARGE_BYTES = 1024
#: onnxruntime's option for where a model that is given as bytes has its external weights.
_WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"

#: Vendors' domains that onnxruntime has kernels for, so that their ops need no function body. Which
#: of these ops a target takes, its ``supports`` says.
_VENDOR_DOMAINS = frozenset({"com.microsoft"})

#: Ops that move or select values, or compute on integers and booleans: they round nothing.
_EXACT_OPS = frozenset(
    "Cast CastLike Concat Constant ConstantOfShape Dropout Equal Expand Flatten Gather "
    "GatherElements GatherND Greater GreaterOrEqual Identity Less LessOrEqual Max Min Not And Or "
    "Xor Pad Range Reshape ScatterElements ScatterND Shape Size Slice Split Squeeze TensorScatter "
    "Tile Transpose Trilu Unsqueeze Where Neg Abs Relu Clip".split()
)
#: Roundings within one op: Attention has two MatMuls, a scale and a softmax, for example.
_ROUNDINGS = {"Attention": 5, "LayerNormalization": 3, "RMSNormalization": 3, "Gelu": 2, "Gemm": 2}
#: Roundings within each step of a recurrent op: products, gates, and the state that they make.
_RECURRENT = {"RNN": 3, "GRU": 6, "LSTM": 6}
#: The length assumed for an axis of no fixed size: the input sets of the contract have it.
_USUAL_LENGTH = 64


def check_graph(graph: Graph, stage: str) -> None:
    """Refuse a Graph that is not legal.

    A legal Graph passes the ONNX checker at our one opset. Every node has the module that it came
    from, every op is in the standard or has a function in the Graph, every output has a dtype.

    Raises:
        GraphError: naming the stage and the first fault.
    """
    opset = graph.opset_imports.get("")
    if opset != OPSET:
        raise GraphError(
            f"Graph after {stage} has the wrong opset",
            expected=OPSET,
            found=opset or "none",
            hint="convert it with onnx.version_converter first",
        )
    for node in ir.traversal.RecursiveGraphIterator(graph.graph):
        if MODULE_KEY not in node.metadata_props:
            raise GraphError(
                f"{describe(node)} after {stage} has lost the module that it came from",
                hint="a pass must connect each node that it makes to a node that has a module",
            )
        # A target's last passes may leave its vendor's ops, whose domain they import.
        vendor = node.domain in _VENDOR_DOMAINS and node.domain in graph.opset_imports
        bodyless = node.domain != "" and node.op_identifier() not in graph.functions
        if bodyless and not vendor:
            raise GraphError(
                f"{describe(node)} after {stage} is of domain {node.domain!r} and has no body",
                expected="an op of the ONNX standard, or one with a function in the Graph",
                found=node.op_type,
                hint="register the op's function in the Graph, so that onnxruntime can run it",
            )
    for output in graph.graph.outputs:
        if output.dtype is None:
            raise GraphError(
                f"Output {output.name!r} after {stage} has no dtype",
                hint="a pass that replaces a value gives the new one its type and shape",
            )
    proto = proto_without_weights(graph)
    try:
        onnx.checker.check_model(proto)
    except (onnx.checker.ValidationError, ValueError) as error:
        raise GraphError(
            f"Graph {graph.graph.name!r} after {stage} is not valid ONNX",
            found=str(error).splitlines()[0],
            hint="OMNIGRAPH_DUMP=DIR writes the graph after each pass",
        ) from error


def proto_without_weights(graph: Graph) -> onnx.ModelProto:
    """The Graph as protobuf; large weights, and those in a file, become inputs of the same name."""
    with external_weights(graph, lambda *_: ("weights", 0), least_bytes=_LARGE_BYTES):
        proto = ir.to_proto(graph)
    initializers = list(proto.graph.initializer)
    del proto.graph.initializer[:]
    for tensor in initializers:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            info = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            proto.graph.input.append(info)
        else:
            proto.graph.initializer.append(tensor)
    return proto


class GraphRunner:
    """A Graph ready to run in onnxruntime, with that runtime's own optimizations off.

    onnxruntime reads the weights in place. Numbers are checked with this between passes.

    Raises:
        GraphError: onnxruntime does not load the Graph.
    """

    def __init__(self, graph: Graph) -> None:
        import onnxruntime

        self.graph = graph
        options = _plain_options()
        proto = proto_without_weights(graph)
        own = {value.name for value in graph.graph.inputs}
        # Large weights, and small ones that are in a file.
        left_out = {info.name for info in proto.graph.input if info.name not in own}
        self._weights = {
            name: _ort_value(value.const_value)
            for name, value in graph.graph.initializers.items()
            if value.const_value is not None and name in left_out
        }
        try:
            self._session = onnxruntime.InferenceSession(
                proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise GraphError(
                f"onnxruntime does not load graph {graph.graph.name!r}",
                found=_node_of(graph, error),
                hint="the node named here is valid ONNX, but onnxruntime has no kernel for it",
            ) from error

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs by name.

        Raises:
            GraphError: onnxruntime failed; the message names the node and its module.
        """
        from onnxruntime import OrtValue, RunOptions

        values = dict(self._weights)
        for value in self.graph.graph.inputs:
            assert value.name is not None
            values[value.name] = OrtValue.ortvalue_from_numpy(feeds[value.name])
        names = [value.name or "" for value in self.graph.graph.outputs]
        try:
            with limited(f"Graph {self.graph.graph.name!r}", options := RunOptions()):
                results = self._session.run_with_ort_values(names, values, options)
        except OmniGraphError:
            raise
        except Exception as error:
            raise GraphError(
                f"Graph {self.graph.graph.name!r} does not run in onnxruntime",
                found=_node_of(self.graph, error),
                hint="check the shapes that reach the node named here",
            ) from error
        return {name: result.numpy() for name, result in zip(names, results, strict=True)}


class FileRunner:
    """An ONNX file, ready to run in onnxruntime with that runtime's optimizations off.

    Raises:
        GraphError: onnxruntime does not load the file.
    """

    def __init__(self, path: Path) -> None:
        import onnxruntime

        self._path = path
        how = {"providers": ["CPUExecutionProvider"]}
        try:
            try:
                self._session = onnxruntime.InferenceSession(str(path), _plain_options(), **how)
            except Exception:
                if (model := with_small_tensors(path)) is None:
                    raise
                options = _plain_options()
                options.add_session_config_entry(_WEIGHTS_FOLDER, str(path.resolve().parent))
                content = model.SerializeToString()
                self._session = onnxruntime.InferenceSession(content, options, **how)
        except Exception as error:
            raise GraphError(
                f"onnxruntime does not load {path}, the reference of the numerical contract",
                found=_first_line(error),
                hint="the file must run in onnxruntime on a CPU before it can be compiled",
            ) from error
        self.outputs = tuple(output.name for output in self._session.get_outputs())

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs by name. Errors of onnxruntime are raised as they are.

        Raises:
            GraphError: the run did not end within its time.
        """
        from onnxruntime import RunOptions

        with limited(f"The file {self._path}", options := RunOptions()):
            results = self._session.run(None, dict(feeds), options)
        return dict(zip(self.outputs, results, strict=True))


def _plain_options():  # type: ignore[no-untyped-def]
    """Options of a session that runs each node of the file as it is, and logs nothing."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False
    return options


def _ort_value(tensor: ir.TensorProtocol):  # type: ignore[no-untyped-def]
    from onnxruntime import OrtValue

    if tensor.dtype.bitwidth < 8:
        # onnxruntime takes the shape of an array whose first bytes are the packed elements.
        room = np.empty(tensor.shape.numpy(), np.uint8)
        packed = np.frombuffer(tensor_bytes(tensor), np.uint8)
        room.reshape(-1)[: packed.size] = packed
        return OrtValue.ortvalue_from_numpy_with_onnx_type(room, int(tensor.dtype))
    array = np.ascontiguousarray(tensor.numpy())
    if array.dtype.type.__module__ == "numpy":
        return OrtValue.ortvalue_from_numpy(array.view(array.dtype.newbyteorder("=")))
    raw = array.view(np.uint16 if array.dtype.itemsize == 2 else np.uint8)
    return OrtValue.ortvalue_from_numpy_with_onnx_type(raw, int(tensor.dtype))


def _node_of(graph: Graph, error: Exception) -> str:
    """The first line of onnxruntime's error, with the module of the node that it names."""
    line = _first_line(error)
    names = re.findall(r"Name:\s*'([^']+)'|[Nn]ode \(([^)]+)\)", line)
    for name in (a or b for a, b in names):
        for node in ir.traversal.RecursiveGraphIterator(graph.graph):
            if node.name == name:
                return f"{line[:300]} at {describe(node)}"
    return line[:300]


def _first_line(error: Exception) -> str:
    return next((part for part in str(error).splitlines() if part.strip()), type(error).__name__)


def compare_graph(
    graph: Graph,
    feeds: Sequence[Mapping[str, np.ndarray]],
    references: Sequence[Mapping[str, np.ndarray]],
    tolerance: Tolerance,
    stage: str,
) -> None:
    """Refuse a Graph that is further from the references than the tolerance, on any input set.

    Raises:
        ContractError: naming the stage, the output, the error and the tolerance.
    """
    runner, scales = GraphRunner(graph), output_scales(references)
    for given, reference in zip(feeds, references, strict=True):
        for output, found in deviations(runner.run(given), reference, scales).items():
            if not found.within(tolerance):
                raise ContractError(
                    f"Output {output!r} of program {graph.graph.name!r} differs from the reference "
                    f"after {stage}",
                    expected=f"an error within {tolerance.rms:.2e} rms and "
                    f"{tolerance.peak:.2e} peak",
                    found=f"{found.rms:.2e} rms and {found.peak:.2e} peak",
                    hint="OMNIGRAPH_DUMP=DIR writes the graph after each pass",
                )


def rounding_depth(graph: Graph) -> int:
    """Roundings of floating-point values on the longest path from an input to an output."""
    depth: dict[ir.Value, int] = {}
    _add_depths(graph.graph, depth)
    return max(depth.values(), default=0)


def _add_depths(nodes: Iterable[ir.Node], depth: dict[ir.Value, int]) -> None:
    """Add the roundings before each output of nodes in order, of inner graphs too."""
    for node in nodes:
        longest = max((depth.get(v, 0) for v in node.inputs if v is not None), default=0)
        total = longest + _roundings(node)
        for body in _bodies(node):
            depth.update(dict.fromkeys(body.inputs, longest))
            _add_depths(body, depth)
            inside = max((depth.get(value, 0) for value in body.outputs), default=0)
            turns = _USUAL_LENGTH if node.op_type in ("Loop", "Scan") else 1
            total = max(total, longest + turns * (inside - longest))
        depth.update(dict.fromkeys(node.outputs, total))


def _roundings(node: ir.Node) -> int:
    """Roundings in one node, beside those of its inner graphs."""
    floats = any(_is_float(value) for value in node.outputs)
    if node.op_type in _EXACT_OPS or not floats or any(_bodies(node)):
        return 0
    if node.op_type in _RECURRENT:
        sequence = node.inputs[0]
        steps = sequence.shape[0] if sequence is not None and sequence.shape is not None else None
        return _RECURRENT[node.op_type] * (steps if isinstance(steps, int) else _USUAL_LENGTH)
    return _ROUNDINGS.get(node.op_type, 1)


def _bodies(node: ir.Node) -> Iterator[ir.Graph]:
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()


def rounded_activations(graph: Graph) -> int:
    """The number of activations that a Graph quantizes: those that a QuantizeLinear reads."""
    nodes = ir.traversal.RecursiveGraphIterator(graph.graph)
    return sum(
        node.op_type in ("QuantizeLinear", "DynamicQuantizeLinear")
        and node.inputs[0] is not None
        and node.inputs[0].const_value is None
        for node in nodes
    )


def longest_contraction(graph: Graph) -> int:
    """Terms of the longest sum in the Graph: in a MatMul, Gemm, Conv, reduction or recurrence."""
    nodes = ir.traversal.RecursiveGraphIterator(graph.graph)
    return max((_terms(node) for node in nodes), default=1)


def _terms(node: ir.Node) -> int:
    """Terms of each sum in a node; an axis of no fixed size has the usual length."""
    if node.op_type in ("MatMul", "Gemm"):
        return max(_summed(node, 0), _summed(node, 1))
    if node.op_type in _RECURRENT:
        sides = [value.shape for value in node.inputs[1:3] if value is not None and value.shape]
        return max((_length(shape[-1]) for shape in sides), default=1)
    if node.op_type == "Conv" and (kernel := node.inputs[1]) is not None and kernel.shape:
        return math.prod(_length(size) for size in list(kernel.shape)[1:])
    if node.op_type in ("ReduceSum", "ReduceMean", "ReduceL2", "ReduceSumSquare"):
        return math.prod(_length(size) for size in _reduced(node))
    return 1


def _summed(node: ir.Node, side: int) -> int:
    """The length of the axis that a MatMul or Gemm sums over, from one factor; 1 if unknown."""
    factor = node.inputs[side]
    assert factor is not None
    flag = "transB" if side else "transA"
    transposed = node.op_type == "Gemm" and bool(node.attributes.get_int(flag, 0))
    producer = factor.producer()
    if factor.shape is None and producer is not None and producer.op_type == "Transpose":
        factor, transposed = producer.inputs[0], not transposed
    if factor is None or factor.shape is None or len(factor.shape) < 2:
        return 1
    return _length(factor.shape[-2 if bool(side) != transposed else -1])


def _reduced(node: ir.Node) -> list[int | ir.SymbolicDim]:
    """The sizes of the axes that a reduction sums over: those that its result lacks."""
    whole, result = node.inputs[0], node.outputs[0]
    if whole is None or whole.shape is None or result.shape is None:
        return []
    if len(whole.shape) == len(result.shape):
        return [a for a, b in zip(whole.shape, result.shape, strict=True) if a != b]
    left, gone = list(result.shape), []
    for size in whole.shape:
        if left and left[0] == size:
            left.pop(0)
        else:
            gone.append(size)
    return gone


def _length(size: int | ir.SymbolicDim) -> int:
    return size if isinstance(size, int) else _USUAL_LENGTH


def _is_float(value: ir.Value) -> bool:
    return value.dtype is None or value.dtype.is_floating_point()
