"""What tests of passes are written with: graphs from ONNX text, and one check for any pass.

It needs no torch: ``pip install 'omnigraph[testing]'``.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

import numpy as np
import onnx.parser
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from omnigraph.contract.graph_check import (
    GraphRunner,
    check_graph,
    longest_contraction,
    rounding_depth,
)
from omnigraph.contract.reference import Reference
from omnigraph.contract.tolerance import Tolerance, deviations
from omnigraph.graph import MODULE_KEY, OPSET, Graph
from omnigraph.passes.base import Pass, run_passes
from omnigraph.passes.site_pass import SitePass

#: A pass that does not round may only reorder sums: a few fp32 roundings of each output.
EXACT = Tolerance(rms=8 * 2.0**-24, peak=64 * 2.0**-24)


def graph_from_text(body: str) -> Graph:
    """A Graph from ONNX text, ``g (float[N] x) => (float[N] y) { y = Relu(x) }`` for example.

    Raises:
        onnx.parser.ParseError: the text is none.
    """
    model = onnx.parser.parse_model(f'<ir_version: 11, opset_import: ["": {OPSET}]> {body}')
    graph = ir.from_proto(onnx.shape_inference.infer_shapes(model))
    for position, node in enumerate(graph.graph):
        node.name = node.name or f"node_{position}"
        node.metadata_props[MODULE_KEY] = "model"
    return graph


def graph_with_weights(body: str, **arrays: np.ndarray) -> Graph:
    """A Graph from ONNX text whose inputs of these names are initializers instead."""
    graph = graph_from_text(body)
    store_weights(graph, arrays)
    return graph


def graph_from_signature(text: str, weights: Mapping[str, np.ndarray], *, name: str = "g") -> Graph:
    """A Graph of ONNX text, "inputs => outputs { nodes }", and named weights; all values typed."""
    types = {"float32": "float", "int64": "int64", "bool": "bool"}
    signature, body = text.strip().split("{", 1)
    inputs, outputs = signature.split("=>")
    typed = [
        f"{types[a.dtype.name]}[{','.join(map(str, a.shape))}] {n}" for n, a in weights.items()
    ]
    parts = ", ".join(part for part in (inputs.strip(), *typed) if part)
    graph = ir.from_onnx_text(
        f'<ir_version: 10, opset_import: ["" : {OPSET}]> {name} ({parts}) => ({outputs}) {{{body}'
    )
    store_weights(graph, weights)
    ShapeInferencePass()(graph)
    for node in graph.graph.all_nodes():
        node.metadata_props[MODULE_KEY] = "block"
    return graph


def store_weights(graph: Graph, weights: Mapping[str, np.ndarray]) -> None:
    """Make inputs of a Graph its initializers, each of the type of its array."""
    for name, array in weights.items():
        value = next(v for v in graph.graph.inputs if v.name == name)
        graph.graph.inputs.remove(value)
        value.const_value = ir.tensor(array, name=name)
        value.dtype = value.const_value.dtype
        graph.graph.register_initializer(value)


def graph_text(graph: Graph) -> str:
    """The computation as canonical text: values numbered by first use, initializers by content."""
    names: dict[ir.Value, str] = {v: v.name or "" for v in graph.graph.inputs}
    for output in graph.graph.outputs:
        names.setdefault(output, output.name or "")

    def name(value: ir.Value | None) -> str:
        if value is None:
            return "-"
        if value.is_initializer() and value.const_value is not None:
            array = value.const_value.numpy()
            return f"{array.dtype}{array.tolist() if array.size <= 8 else list(array.shape)}"
        return names.setdefault(value, f"%{len(names)}")

    lines = []
    for node in graph.graph:
        attributes = {k: str(v.value) for k, v in sorted(node.attributes.items())}
        if node.op_type == "Constant":
            attributes = {
                k: str(v.as_tensor().numpy().tolist())
                for k, v in node.attributes.items()
                if v.type == ir.AttributeType.TENSOR
            } or attributes
        inputs = ", ".join(name(v) for v in node.inputs)
        outputs = ", ".join(name(v) for v in node.outputs)
        lines.append(f"{outputs} = {node.op_type}({inputs}){attributes or ''}")
    return "\n".join(lines)


def tolerance_of(graph: Graph, precision: str = "fp32") -> Tolerance:
    """What the contract allows a Graph, by its longest path of roundings and its longest sum."""
    depth, contraction = rounding_depth(graph), longest_contraction(graph)
    return Tolerance.for_precision(precision, depth=depth, contraction=contraction)


def assert_outputs(graph: Graph, references: Sequence[Reference]) -> None:
    """Check that a Graph gives the outputs of torch within the contract's tolerance.

    Raises:
        AssertionError: naming the output and the input set.
    """
    runner, tolerance = GraphRunner(graph), tolerance_of(graph)
    for reference in references:
        outputs = runner.run(reference.feeds)
        for name, found in deviations(outputs, reference.outputs).items():
            _check(
                found.within(tolerance),
                f"output {name!r} in {reference.case}: {found} from torch, more than {tolerance}",
            )


def assert_pass(
    pass_: Pass,
    before: Graph,
    after: Graph | None,
    feeds: Mapping[str, np.ndarray],
    *,
    tolerance: Tolerance = EXACT,
) -> None:
    """Check what a pass makes of a Graph: the Graph, the flag, a second run, legality, numbers.

    Args:
        before: the Graph to run the pass on, in place.
        after: the Graph it should become; None where the pass should leave it alone.
        feeds: an array for each input, by name.
        tolerance: of the outputs, before against after.

    Raises:
        AssertionError: saying what differs; a wrong Graph as a diff.
        GraphError: the Graph is not legal afterwards, or the pass failed.
    """
    untouched = graph_text(before)
    expected = GraphRunner(before.clone()).run(feeds)
    (record,) = run_passes(before, (pass_,))
    wanted = untouched if after is None else graph_text(after)
    _check_text(before, wanted, f"{pass_.name} made another Graph")
    _check(
        record.modified == (after is not None),
        f"{pass_.name} says modified={record.modified} of a Graph that it "
        + ("left alone" if after is None else "changed"),
    )
    check_graph(before, pass_.name)
    (again,) = run_passes(before, (pass_,))
    _check(not again.modified, f"a second run of {pass_.name} says that it changed something")
    _check_text(before, wanted, f"a second run of {pass_.name} made another Graph")
    for name, found in deviations(GraphRunner(before).run(feeds), expected).items():
        _check(
            found.within(tolerance),
            f"{pass_.name} changed output {name!r} by {found}: more than {tolerance}",
        )


def assert_miss(pass_: SitePass, graph: Graph, reason: str) -> None:
    """Check that a pass leaves a Graph alone, and that the reason it gives holds these words.

    Raises:
        AssertionError: the pass changed the Graph, or gave other reasons; with these.
    """
    untouched = graph_text(graph)
    (record,) = run_passes(graph, (pass_,))
    _check_text(graph, untouched, f"{pass_.name} changed a Graph that it should leave alone")
    _check(not record.modified, f"{pass_.name} says that it changed a Graph that it left alone")
    found = [finding.reason or f"became {finding.became}" for finding in record.findings]
    _check(
        any(reason in given for given in found),
        f"no site has the reason {reason!r}: " + ("; ".join(found) or "no site was looked at"),
    )


def _check_text(graph: Graph, wanted: str, message: str) -> None:
    found = graph_text(graph)
    names = ("expected", "found")
    lines = difflib.unified_diff(wanted.splitlines(), found.splitlines(), *names, lineterm="")
    _check(found == wanted, "\n".join((message, *lines)))


def _check(good: bool, message: str) -> None:
    # No assert statement: pytest rewrites those of test files only.
    if not good:
        raise AssertionError(message)
