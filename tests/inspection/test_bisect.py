"""Bisect: a pass, or a runtime, that computes something else is named, and the node by it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from omnigraph.cli.main import main
from omnigraph.contract.graph_check import GraphRunner
from omnigraph.contract.tolerance import Tolerance
from omnigraph.graph import Graph
from omnigraph.inspection.bisect import InputSet, bisect_passes, bisect_runtime
from omnigraph.lowering import Lowered, find_target
from omnigraph.passes.base import Pass
from omnigraph.passes.eliminate_dead_code import EliminateDeadCode
from omnigraph.passes.eliminate_identities import EliminateIdentities
from omnigraph.program import TensorSpec
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


def sets_of(graph: Graph) -> list[InputSet]:
    return [InputSet("only", FEEDS, GraphRunner(graph).run(FEEDS))]


def test_a_wrong_pass_is_named_with_the_first_node_it_changed():
    graph = graph_from_text(CHAIN)
    pipeline = (EliminateIdentities(), ReplaceOp("Neg", "Abs"), EliminateDeadCode())
    found = bisect_passes(graph, pipeline, sets_of(graph), TOLERANCE)
    assert found is not None
    assert found.stage == "pass 'replace-op'"
    assert found.node is not None and found.node.startswith("Abs 'node_2' of module 'model'")
    assert found.output == "y"
    assert found.deviation is not None and found.deviation.rms > 0.1
    assert "the numbers part at pass 'replace-op', first at Abs 'node_2'" in str(found)


def test_of_two_wrong_passes_the_first_is_named():
    graph = graph_from_text(CHAIN)
    pipeline = (ReplaceOp("Exp", "Sin"), ReplaceOp("Relu", "Abs"))
    found = bisect_passes(graph, pipeline, sets_of(graph), TOLERANCE)
    assert found is not None and found.node is not None and found.node.startswith("Sin ")


def test_honest_passes_part_nowhere():
    graph = graph_from_text(CHAIN)
    pipeline = (EliminateIdentities(), EliminateDeadCode())
    assert bisect_passes(graph, pipeline, sets_of(graph), TOLERANCE) is None


def test_a_trace_that_is_wrong_is_a_stage_of_its_own():
    graph = graph_from_text(CHAIN)
    sets = sets_of(graph)
    ReplaceOp("Exp", "Sin")(graph)
    found = bisect_passes(graph, (), sets, TOLERANCE)
    assert found is not None and found.stage == "the trace"


def test_a_pass_that_leaves_no_legal_graph_is_named():
    graph = graph_from_text(CHAIN)
    found = bisect_passes(graph, (ReplaceOp("Exp", "Nonsense"),), sets_of(graph), TOLERANCE)
    assert found is not None
    assert found.stage == "pass 'replace-op'"
    assert "No Op registered for Nonsense" in (found.error or "")


def test_a_runtime_that_computes_something_else_is_named_with_its_node():
    graph = graph_from_text(CHAIN)
    spec = TensorSpec("x", "float32", ("N", 3))
    lowered = Lowered("g", graph, (spec,), (TensorSpec("y", "float32", ("N", 3)),), {})

    def broken(program: Lowered, _: Path):
        other = program.graph.clone()
        ReplaceOp("Exp", "Sin")(other)
        return GraphRunner(other).run

    target = find_target("onnx")
    found = bisect_runtime(graph, target, lowered, sets_of(graph), TOLERANCE, broken)
    assert found is not None
    assert found.stage == "the runtime of 'onnx'"
    assert found.node is not None and found.node.startswith("Exp 'node_3'")


WRONG = '''
from dataclasses import dataclass
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
    assert "forward: runtime of openvino" in captured.err
