"""Bisect: a pass, or a runtime, that computes something else is named, and the node by it."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from omnigraph.cli.main import main
from omnigraph.contract.graph_check import GraphRunner
from omnigraph.contract.reference import Reference
from omnigraph.contract.tolerance import Tolerance
from omnigraph.export_job import TracedProgram, traced_program
from omnigraph.exporting.options import ExportOptions
from omnigraph.exporting.plan import TargetJob
from omnigraph.exporting.stage_check import StageCheck
from omnigraph.graph import Graph
from omnigraph.inspection.bisect import bisect_artifact, bisect_passes
from omnigraph.lowering import Emission, Lowered, find_target
from omnigraph.passes.base import Pass
from omnigraph.passes.eliminate_dead_code import EliminateDeadCode
from omnigraph.passes.eliminate_identities import EliminateIdentities
from omnigraph.passes.pipeline import Pipeline
from omnigraph.program import Case, Dim, Program, TensorSpec
from omnigraph.testing import graph_from_text

CHAIN = """g (float[N,3] x) => (float[N,3] y)
    { a = Relu(x)  i = Identity(a)  b = Neg(i)  c = Exp(b)  y = Tanh(c) }"""
FEEDS = {"x": np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)}
TOLERANCE = Tolerance(1e-3, 1e-2)


@dataclass(frozen=True)
class ReplaceOp(Pass):
    """Turn the first node of one op into another op."""

    one: str
    other: str

    def apply(self, graph: Graph) -> bool:
        for node in graph.graph:
            if node.op_type == self.one:
                node.op_type = self.other
                return True
        return False


def item_of(graph: Graph) -> TracedProgram:
    """The program of a Graph, whose reference is the Graph as it is now."""
    spec, result = (TensorSpec(name, "float32", ("N", 3)) for name in "xy")
    program = Program("g", None, (spec,), ("y",), {"N": Dim(1)}, lambda _: {})
    reference = Reference(Case("only", {"N": 4}), FEEDS, GraphRunner(graph).run(FEEDS))
    return traced_program(program, graph, (result,), (), [reference, reference])


def test_a_wrong_pass_is_named_with_the_first_node_it_changed():
    graph = graph_from_text(CHAIN)
    pipeline = (EliminateIdentities(), ReplaceOp("Neg", "Abs"), EliminateDeadCode())
    found = bisect_passes(graph, pipeline, item_of(graph), TOLERANCE)
    assert found is not None
    assert found.stage == "pass 'replace-op'"
    assert found.node is not None and found.node.startswith("Abs 'node_2' of module 'model'")
    assert found.output == "y"
    assert found.deviation is not None and found.deviation.rms > 0.1
    assert "the numbers part at pass 'replace-op', first at Abs 'node_2'" in str(found)


def test_of_two_wrong_passes_the_first_is_named():
    graph = graph_from_text(CHAIN)
    pipeline = (ReplaceOp("Exp", "Sin"), ReplaceOp("Relu", "Abs"))
    found = bisect_passes(graph, pipeline, item_of(graph), TOLERANCE)
    assert found is not None and found.node is not None and found.node.startswith("Sin ")


def test_honest_passes_part_nowhere():
    graph = graph_from_text(CHAIN)
    pipeline = (EliminateIdentities(), EliminateDeadCode())
    assert bisect_passes(graph, pipeline, item_of(graph), TOLERANCE) is None


def test_a_trace_that_is_wrong_is_a_stage_of_its_own():
    graph = graph_from_text(CHAIN)
    item = item_of(graph)
    ReplaceOp("Exp", "Sin")(graph)
    found = bisect_passes(graph, (), item, TOLERANCE)
    assert found is not None and found.stage == "the trace"


def test_a_pass_that_leaves_no_legal_graph_is_named():
    graph = graph_from_text(CHAIN)
    found = bisect_passes(graph, (ReplaceOp("Exp", "Nonsense"),), item_of(graph), TOLERANCE)
    assert found is not None
    assert found.stage == "pass 'replace-op'"
    assert "No Op registered for Nonsense" in (found.error or "")


def test_an_artifact_that_computes_something_else_is_named_with_its_node():
    graph = graph_from_text(CHAIN)
    item = item_of(graph)

    class Broken(type(find_target("onnx"))):  # type: ignore[misc]
        def emit(self, programs: list[Lowered], *given: Path, **options: str) -> Emission:
            others = [replace(program, graph=program.graph.clone()) for program in programs]
            for other in others:
                ReplaceOp("Exp", "Sin")(other.graph)
            return super().emit(others, *given, **options)

    job = TargetJob(Broken(), "fp32", "fp32", Pipeline(), {})
    check = StageCheck(item, TOLERANCE, graph)
    found = bisect_artifact(graph, item, job, ExportOptions(), check)
    assert found is not None
    assert found.stage == "the artifact of 'onnx'"
    assert found.node is not None and found.node.startswith("Exp 'node_3'")
    honest = replace(job, target=find_target("onnx"))
    assert bisect_artifact(graph, item, honest, ExportOptions(), check) is None


WRONG = '''
from dataclasses import dataclass, replace
import onnx_ir as ir
from omnigraph.passes.base import Graph, Pass

@dataclass(frozen=True)
class WrongScale(Pass):
    """Give one attention another scale."""
    place: int = 0

    def apply(self, graph: Graph) -> bool:
        node = [node for node in graph.graph if node.op_type == "Attention"][self.place]
        changed = node.attributes.get_float("scale", 0.0) == 0.0
        node.attributes["scale"] = ir.AttrFloat32("scale", 0.7)
        return changed
'''


@pytest.fixture
def wrong(tmp_path: Path) -> Path:
    path = tmp_path / "wrong.py"
    path.write_text(WRONG)
    return path


@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_the_command_names_anyone_s_wrong_pass(capsys, wrong: Path, target: str):
    arguments = [
        "bisect", "omninet", "--config", "tiny", "--set", "kind=encoder", "--programs", "encode",
        "--target", target, "--passes", f"{wrong}:WrongScale:place=1", "--json",
    ]  # fmt: skip
    assert main(arguments) == 1
    (found,) = json.loads(capsys.readouterr().out)["parted"]
    assert found["program"] == "encode"
    assert found["stage"] == "pass 'wrong-scale'"
    assert "of module 'encoder.blocks.1.self_attention'" in found["node"]
    assert found["rms"] > found["tolerance"]["rms"]


@pytest.mark.parametrize(("until", "parted"), [("fused", []), ("folded", ["pass 'wrong-scale'"])])
def test_it_stops_after_a_stage(capsys, wrong: Path, until: str, parted: list[str]):
    # An added pass stands at the end of the stage ``folded``.
    arguments = [
        "bisect", "omninet", "--config", "tiny", "--set", "kind=encoder", "--programs", "encode",
        "--target", "onnx", "--passes", f"{wrong}:WrongScale", "--until", until, "--json",
    ]  # fmt: skip
    assert main(arguments) == bool(parted)
    found = json.loads(capsys.readouterr().out)["parted"]
    assert [parting["stage"] for parting in found] == parted


def test_the_command_finds_nothing_in_an_honest_export_on_its_own_runtime(capsys):
    arguments = [
        "bisect", "omninet", "--config", "tiny", "--set", "kind=decoder", "--target", "openvino",
        "--precision", "bf16", "--programs", "forward",
    ]  # fmt: skip
    assert main(arguments) == 0
    captured = capsys.readouterr()
    assert "within the contract at every stage" in captured.out
    assert "forward: artifact of openvino" in captured.err
