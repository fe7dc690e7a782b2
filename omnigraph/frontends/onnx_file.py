"""Reading anyone's ONNX file: what cannot be compiled is refused, the rest becomes a Graph."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import onnx
import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript import version_converter

from omnigraph.contract.graph_check import proto_without_weights
from omnigraph.errors import UsageError
from omnigraph.frontends.onnx_names import keep_provenance, rename_dimensions, values_of
from omnigraph.graph import OPSET, Graph
from omnigraph.passes.base import run_passes
from omnigraph.passes.expand_attention_mask import ExpandAttentionMask
from omnigraph.passes.legalize_lowest_mask import LegalizeLowestMask
from omnigraph.program import TensorSpec

#: The oldest opset that onnxscript's converter reads; onnx's own converts older ones.
_LEAST_NATIVE = 18
_HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def read_onnx(path: Path) -> Graph:
    """A file with its functions inlined and its types inferred, at its own opset.

    Weights stay where they are: external ones are mapped from their file when they are needed.

    Raises:
        UsageError: it is no ONNX model, or not one that can be compiled; the message says why.
    """
    try:
        graph = ir.load(path)
    except Exception as error:
        raise UsageError(
            f"{path} is no ONNX model that can be read",
            found=_first_line(error),
            hint="onnx.checker.check_model(path) says what is wrong with it",
        ) from error
    _check_external_data(graph, path)
    common.InlinePass()(graph)
    common.RemoveInitializersFromInputsPass()(graph)
    _open_negative_sizes(graph)
    _check_ops(graph, path)
    _check_opset(graph, path)
    _check_types(graph, path)
    _infer_types(graph)
    return graph


def graph_of_file(
    path: Path,
    specs: Sequence[TensorSpec],
    renamed: Mapping[str, str],
    fixed: Mapping[str, int],
    found: Mapping[str, Sequence[int]],
) -> Graph:
    """A file as a Graph: at our opset, its dimensions named, each node with its module.

    Args:
        specs: the inputs, with the shapes that they are to have.
        renamed: the file's own names of dimensions to those in ``specs``.
        fixed: dimensions that have one size.
        found: the shape of each output in some run; a shape that the file declares and that
            contradicts it is wrong, and left out.

    Raises:
        UsageError: the file cannot be read, or not be converted to our opset.
    """
    graph = read_onnx(path)
    keep_provenance(graph)
    graph = _at_our_opset(graph, path)
    rename_dimensions(graph, specs, renamed, fixed)
    for value in graph.graph.outputs:
        if _contradicts(value.shape, found[value.name or ""]):
            value.shape = None
    _infer_types(graph)
    for value in graph.graph.outputs:
        if value.shape is None:
            value.shape = ir.Shape([None] * len(found[value.name or ""]))
    common.NameFixPass()(graph)
    keep_provenance(graph)
    run_passes(graph, (ExpandAttentionMask(), LegalizeLowestMask()))
    return graph


def _contradicts(declared: ir.Shape | None, found: Sequence[int]) -> bool:
    if declared is None or len(declared) != len(found):
        return True
    pairs = zip(declared, found, strict=True)
    return any(isinstance(dim, int) and dim != size for dim, size in pairs)


def _open_negative_sizes(graph: Graph) -> None:
    """Leave sizes below zero open: some exporters write -1 for a dimension of any size."""
    for value in values_of(graph):
        if any(isinstance(dim, int) and dim < 0 for dim in value.shape or ()):
            dims = [None if isinstance(dim, int) and dim < 0 else dim for dim in value.shape or ()]
            value.shape = ir.Shape(dims)


def _check_external_data(graph: Graph, path: Path) -> None:
    """Refuse weights that are missing, incomplete, or outside the file's own folder."""
    folder = path.resolve().parent
    for value in _initializers(graph):
        tensor = value.const_value
        if not isinstance(tensor, ir.ExternalTensor):
            continue
        place = (folder / tensor.location).resolve()
        if not place.is_relative_to(folder):
            raise UsageError(
                f"Weight {value.name!r} of {path} lies outside the folder of the file",
                expected=f"a file in {folder}",
                found=str(tensor.location),
                hint="onnx.save_model(..., save_as_external_data=True) writes both side by side",
            )
        needed = (tensor.offset or 0) + (tensor.length or tensor.nbytes)
        size = place.stat().st_size if place.is_file() else None
        if size is None or size < needed:
            raise UsageError(
                f"Weight {value.name!r} of {path} is not in {place.name}",
                expected=f"a file of at least {needed} bytes beside {path.name}",
                found="no such file" if size is None else f"{size} bytes",
                hint="copy the weights along with the .onnx file: it only refers to them",
            )


def _check_ops(graph: Graph, path: Path) -> None:
    for node in ir.traversal.RecursiveGraphIterator(graph.graph):
        if node.domain != "":
            raise UsageError(
                f"Node {node.op_type} {node.name!r} of {path} is of domain {node.domain!r}, and "
                "the file has no function that says what it computes",
                expected="ops of the ONNX standard, or with a function body in the file",
                found=f"{node.domain}::{node.op_type}",
                hint="export the model without a runtime's optimizer or quantizer, which write "
                "such ops: OmniGraph's own passes and --precision do their work",
            )


def _check_types(graph: Graph, path: Path) -> None:
    ends = (("Input", graph.graph.inputs), ("Output", graph.graph.outputs))
    for kind, values in (*ends, ("Weight", tuple(_initializers(graph)))):
        for value in values:
            known = value.const_value if value.const_value is not None else value
            if known.dtype in _HALVES:
                raise UsageError(
                    f"{kind} {value.name!r} of {path} is of half precision",
                    expected="float32, which outputs are compared with",
                    found=str(known.dtype).lower(),
                    hint="export the model in float32: --precision chooses that of the artifact",
                )
    for value in graph.graph.inputs:
        if not isinstance(value.type, ir.TensorType) or value.shape is None:
            raise UsageError(
                f"Input {value.name!r} of {path} is no tensor of a known number of axes",
                expected="a tensor with a shape, of numbers or names",
                found=str(value.type),
                hint="export the model with tensors as inputs, one for each",
            )


def _initializers(graph: Graph) -> Iterator[ir.Value]:
    for part in graph.graphs():
        yield from part.initializers.values()


def _check_opset(graph: Graph, path: Path) -> None:
    """Refuse a file of no opset, or of a later one that changed one of its ops."""
    if (opset := _opset(graph)) == 0:
        raise UsageError(
            f"{path} does not say which opset it is written in",
            expected=f"an opset of the ONNX standard, up to {OPSET}",
            hint=f"export the model again, with opset_version={OPSET}",
        )
    if opset <= OPSET:
        return
    for node in ir.traversal.RecursiveGraphIterator(graph.graph):
        if _since(node, OPSET) != _since(node, opset):
            raise UsageError(
                f"Node {node.op_type} {node.name!r} of {path} is of an opset that is too new",
                expected=f"at most {OPSET}",
                found=f"opset {opset}, which changed this op",
                hint=f"export the model with opset_version={OPSET}",
            )


def _opset(graph: Graph) -> int:
    return graph.opset_imports.get("") or graph.opset_imports.get("ai.onnx") or 0


def _since(node: ir.Node, opset: int) -> int:
    """The opset that an op's meaning at ``opset`` comes from, or 0 for an op that is not there."""
    try:
        return onnx.defs.get_schema(node.op_type, opset).since_version
    except onnx.defs.SchemaError:
        return 0


def _at_our_opset(graph: Graph, path: Path) -> Graph:
    opset = _opset(graph)
    try:
        if opset > OPSET:  # none of its ops changed
            graph.opset_imports[""] = OPSET
        elif opset >= _LEAST_NATIVE:
            version_converter.convert_version(graph, OPSET)
        else:
            graph = _converted(graph)
    except Exception as error:
        raise UsageError(
            f"{path} cannot be converted from opset {opset} to {OPSET}",
            found=_first_line(error),
            hint="export the model again at a later opset: opset_version=18 or above",
        ) from error
    for node in ir.traversal.RecursiveGraphIterator(graph.graph):
        node.version = None  # a node's own version would contradict the Graph's
    # As the version of the format may be older than the opset needs.
    graph.ir_version = max(graph.ir_version or 0, 10)
    return graph


def _converted(graph: Graph) -> Graph:
    """The Graph as onnx's own converter makes it; that has a limit of 2 GB, so without weights."""
    inputs = [value.name for value in graph.graph.inputs]
    proto = onnx.version_converter.convert_version(proto_without_weights(graph), OPSET)
    converted = ir.from_proto(proto)
    weights = graph.graph.initializers
    for value in list(converted.graph.inputs):
        if value.name not in inputs:
            converted.graph.inputs.remove(value)
            value.const_value = weights[value.name or ""].const_value
            converted.graph.register_initializer(value)
    return converted


def _infer_types(graph: Graph) -> None:
    # Not strict: a shape that cannot be inferred stays open.
    common.ShapeInferencePass(check_type=False, strict_mode=False)(graph)


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300].rstrip(".")
