"""What each target makes of the ONNX project's node tests: passed, refused, or wrong.

``python -m benchmarks.conformance`` prints the table; ``test_onnx_cases.py`` asserts it.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx_cases import NodeCase

from omnigraph.artifact import ProgramEntry, seal
from omnigraph.contract.graph_check import (
    GraphRunner,
    check_graph,
    longest_contraction,
    rounding_depth,
)
from omnigraph.contract.reference import Reference
from omnigraph.contract.tolerance import Tolerance, deviation
from omnigraph.errors import OmniGraphError
from omnigraph.graph import Graph
from omnigraph.lowering import Emission, Lowered, Target, find_target
from omnigraph.lowering.onnx.files import write_onnx
from omnigraph.passes.base import run_passes
from omnigraph.passes.emulate_bfloat16 import EmulateBfloat16
from omnigraph.passes.expand_attention_mask import ExpandAttentionMask
from omnigraph.program import Case, TensorSpec
from omnigraph.runtimes import load

#: Each target that is asked, and the precision.
TARGETS = {"onnx": "fp32", "openvino": "fp32", "tensorrt": "fp16"}

#: Roundings in a row inside one op: a position, a cubic polynomial of it, and a sum of 16 products.
_LEAST_DEPTH = {"Resize": 8}
#: Quantizes by a scale that it computes: the quotient of -2.5 by 5/255 is a tie but for a rounding.
_STEPPED = frozenset({"DynamicQuantizeLinear"})


@dataclass(frozen=True)
class Outcome:
    """What became of one case on one target: "passed", "refused" or "wrong", and why."""

    target: str
    case: str
    op: str
    kind: str
    reason: str = ""


# Through a target ---------------------------------------------------------------------------------


def outcome(target_name: str, case: NodeCase) -> Outcome:
    """What a target makes of a case, all the way to its runtime and the contract.

    The engines of TensorRT run on no CPU: there, the lowered Graph is run, as the contract does.
    """
    try:
        _through(find_target(target_name), TARGETS[target_name], case)
    except OmniGraphError as error:
        return Outcome(target_name, case.name, case.op, "refused", str(error))
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        return Outcome(target_name, case.name, case.op, "wrong", text)
    return Outcome(target_name, case.name, case.op, "passed")


def outcomes(target: str, cases: Iterable[NodeCase]) -> list[Outcome]:
    """What a target makes of each case."""
    return [outcome(target, case) for case in cases]


def engine(case: NodeCase) -> Outcome:
    """Whether TensorRT's compiler builds an engine of a case, on a machine without its GPU."""
    target = find_target("tensorrt")
    try:
        lowered = _lowered(target, TARGETS["tensorrt"], case.graph())
        with tempfile.TemporaryDirectory() as scratch:
            target.emit(
                [lowered],
                Path(scratch),
                precision=TARGETS["tensorrt"],
                options={"compute": "sm89"},
            )
    except OmniGraphError as error:
        return Outcome("tensorrt", case.name, case.op, "refused", str(error))
    return Outcome("tensorrt", case.name, case.op, "passed")


def _through(target: Target, precision: str, case: NodeCase) -> None:
    graph = case.graph()
    depth, contraction = rounding_depth(graph), longest_contraction(graph)
    lowered = _lowered(target, precision, graph)
    inputs, outputs = lowered.inputs, lowered.outputs
    feeds = {s.name: np.asarray(case.feeds[s.name], s.dtype) for s in inputs}
    expected = {s.name: np.asarray(case.outputs[s.name], s.dtype) for s in outputs}
    sample = Reference(Case("case", {}), feeds, expected)
    tolerance = _tolerance(target.rounding(precision), case, depth, contraction)
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        emission = _emit(target, lowered, directory, precision)
        files = emission.files["forward"]
        entry = ProgramEntry(inputs, outputs, files, (), None, tolerance.to_dict(), {})
        manifest = {
            "name": case.name,
            "target": target.name,
            "device": emission.device,
            "precision": precision,
            "requires": dict(emission.requires),
            "programs": {"forward": entry.to_dict()},
            "default_program": "forward",
            "dimensions": {},
        }
        seal(directory, manifest)
        _compare(_run(directory, emission, sample), sample.outputs, tolerance, case.op in _STEPPED)


def _lowered(target: Target, precision: str, graph: Graph) -> Lowered:
    """A Graph after a target's passes, which takes all of its nodes."""
    check_graph(graph, "case")
    inputs = tuple(_spec(value) for value in graph.graph.inputs)
    outputs = tuple(_spec(value) for value in graph.graph.outputs)
    # A mask with one row is written out as trace does it: so that a Graph runs as it stands.
    pipeline = (ExpandAttentionMask(), *target.pipeline(precision))
    run_passes(graph, pipeline, [lambda _, pass_, g: check_graph(g, pass_.name)])
    target.check_nodes("forward", graph, precision)
    return Lowered("forward", graph, inputs, outputs, {})


def _run(directory: Path, emission: Emission, sample: Reference) -> Mapping[str, np.ndarray]:
    """What the artifact gives in its runtime, or its lowered Graph where that runs on no CPU."""
    if emission.executes_here:
        with load(directory, threads=1, check_hashes=False) as session:
            return session.run(sample.feeds)
    graph = ir.load(directory / emission.files["forward"]["lowered"])
    run_passes(graph, (EmulateBfloat16(),))
    return GraphRunner(graph).run(sample.feeds)


def _compare(
    found: Mapping[str, np.ndarray],
    expected: Mapping[str, np.ndarray],
    tolerance: Tolerance,
    stepped: bool,
) -> None:
    """Refuse numbers beyond the tolerance; what the standard says is no number must be none.

    Args:
        stepped: whether integers may be off by one.
    """
    for name, right in expected.items():
        given = found[name]
        if given.shape != right.shape or given.dtype != right.dtype:
            raise _Wrong(f"{name} is {given.dtype}{given.shape}, not {right.dtype}{right.shape}")
        if right.dtype.kind == "f":
            undefined = np.isnan(right)
            if (np.isnan(given) != undefined).any():
                raise _Wrong(f"{name} is no number where it should be one, or the reverse")
            given, right = given[~undefined], right[~undefined]
        if stepped and right.dtype.kind in "iu":  # a quotient next to a tie rounds either way
            right = np.where(abs(given.astype(int) - right) <= 1, given, right)
        error = deviation(given, right)
        if not error.within(tolerance):
            raise _Wrong(
                f"{name} is off by {error.rms:.1e} rms, {error.peak:.1e} peak; "
                f"{tolerance.rms:.1e} and {tolerance.peak:.1e} are allowed"
            )


class _Wrong(Exception):
    """Numbers that are not the standard's."""


def _spec(value: ir.Value) -> TensorSpec:
    assert value.name is not None and value.dtype is not None and value.shape is not None
    assert all(isinstance(d, int) for d in value.shape), f"{value.name}: {value.shape}"
    return TensorSpec(value.name, value.dtype.numpy().name, tuple(value.shape.numpy()))


def _emit(target: Target, lowered: Lowered, directory: Path, precision: str) -> Emission:
    if target.name != "tensorrt":
        return target.emit([lowered], directory, precision=precision, options={})
    written = write_onnx([lowered], directory)["forward"]
    files = {"forward": {**written, "lowered": written["model"]}}
    return Emission(files, "cuda", {}, executes_here=False)


def _tolerance(rounding: str, case: NodeCase, depth: int, contraction: int) -> Tolerance:
    """The contract's tolerance, in the coarsest type that anything is rounded to."""
    depth = max(depth, _LEAST_DEPTH.get(case.op, 1))
    arrays = (*case.feeds.values(), *case.outputs.values())
    names = {array.dtype.name for array in arrays}
    if "bfloat16" in names:
        rounding = "bf16"
    elif "float16" in names and rounding == "fp32":
        rounding = "fp16"
    return Tolerance.for_precision(rounding, depth=depth, contraction=contraction)


# The table ----------------------------------------------------------------------------------------


def table(found: Sequence[Outcome]) -> str:
    """Counts by op and target as a Markdown table, the sums first."""
    counts = Counter((o.op, o.target, o.kind) for o in found)
    targets = [name for name in TARGETS if any(o.target == name for o in found)]
    heads = [f"{target}: passed" + " | refused | wrong" for target in targets]
    lines = ["| op | " + " | ".join(heads) + " |", "|---" * (1 + 3 * len(targets)) + "|"]
    ops = sorted({o.op for o in found})
    kinds = ("passed", "refused", "wrong")
    total = [sum(counts[op, t, k] for op in ops) for t in targets for k in kinds]
    lines.append("| **all** | " + " | ".join(f"**{n}**" for n in total) + " |")
    for op in ops:
        row = [counts[op, t, k] for t in targets for k in kinds]
        lines.append(f"| {op} | " + " | ".join(str(n) for n in row) + " |")
    return "\n".join(lines)
