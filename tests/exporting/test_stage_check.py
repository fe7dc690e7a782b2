"""Each stage is compared with the one before: a fault is found in the stage that has it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir
import pytest

from omnigraph.contract.graph_check import GraphRunner
from omnigraph.contract.reference import Reference
from omnigraph.contract.tolerance import Tolerance
from omnigraph.errors import ContractError
from omnigraph.export_job import TracedProgram
from omnigraph.exporting.stage_check import StageCheck
from omnigraph.graph import Graph
from omnigraph.lowering import find_target
from omnigraph.passes.base import Pass, run_passes
from omnigraph.passes.calibrated_pass import QuantizationFacts
from omnigraph.passes.convert_precision import ConvertPrecision
from omnigraph.passes.insert_qdq import InsertQdq
from omnigraph.passes.matching import nodes_of
from omnigraph.program import Case
from omnigraph.testing import graph_with_weights

RNG = np.random.default_rng(0)
TEXT = """g (float[N,32] x, float[32,32] w, float[32,16] v, float[32] b) => (float[N,16] y) {
    h = MatMul(x, w) i = Add(h, b) j = Relu(i) y = MatMul(j, v) }"""
EXACT = Tolerance.for_precision("fp32", depth=4, contraction=32)


def graph() -> Graph:
    normal = RNG.standard_normal
    return graph_with_weights(
        TEXT,
        w=normal((32, 32)).astype(np.float32),
        v=normal((32, 16)).astype(np.float32),
        b=normal(32).astype(np.float32),
    )


def start(made: Graph) -> StageCheck:
    run = GraphRunner(made).run
    sets = []
    for rows in (1, 7):
        feeds = {"x": RNG.standard_normal((rows, 32)).astype(np.float32)}
        sets.append(Reference(Case(str(rows), {"N": rows}), feeds, run(feeds)))
    item = TracedProgram("g", (), (), {}, (), sets, sets[0], 4, 32, None)
    return StageCheck(item, EXACT, made)


def scale_bias(made: Graph, factor: float) -> None:
    value = made.graph.initializers["b"]
    assert value.const_value is not None
    array = value.const_value.numpy().copy()
    array[3] *= factor
    value.const_value = ir.tensor(array, name="b")


def test_a_pass_that_claims_to_be_exact_is_held_to_it():
    made = graph()
    check = start(made)
    check.exact(made, "nothing")
    scale_bias(made, 1.02)
    with pytest.raises(ContractError, match=r"differs from torch after a test, on input set"):
        check.exact(made, "a test")


ROUNDING: list[Pass] = [
    ConvertPrecision("fp16"),
    ConvertPrecision("bf16"),
    *(
        InsertQdq(scheme=find_target("onnx").schemes[name])
        for name in ("int8-dynamic", "int8-weights", "int4-weights")
    ),
]


@pytest.mark.parametrize("pass_", ROUNDING, ids=str)
def test_rounding_passes_within_its_bounds_and_hides_no_fault(pass_: Pass):
    made = graph()
    check = start(made)
    check.exact(made, "nothing")
    before = made.clone()
    run_passes(made, [pass_])
    check.rounded(before.clone(), made, pass_, QuantizationFacts())
    check.exact(made, "nothing more")
    # The same fault, far below the noise of the rounding, behind it.
    wrong = made.clone()
    node = next(n for n in nodes_of(wrong, "Relu"))
    node.op_type, node.attributes["alpha"] = "LeakyRelu", ir.AttrFloat32("alpha", 1e-3)
    with pytest.raises(ContractError, match="differs from the graph before after a test"):
        check.exact(wrong, "a test")


@pytest.mark.parametrize("pass_", ROUNDING, ids=str)
def test_a_pass_that_rounds_may_do_nothing_else(pass_: Pass):
    made = graph()
    check = start(made)
    before = made.clone()
    run_passes(made, [pass_])
    node = next(n for n in nodes_of(made, "Relu"))
    node.op_type, node.attributes["alpha"] = "LeakyRelu", ir.AttrFloat32("alpha", 1e-3)
    with pytest.raises(ContractError, match="differs from the graph before"):
        check.rounded(before, made, pass_, QuantizationFacts())


@pytest.mark.parametrize("pass_", ROUNDING, ids=str)
def test_a_pass_that_claims_to_be_exact_rounds_nothing(pass_: Pass):
    made = graph()
    check = start(made)
    before = made.clone()
    run_passes(made, [pass_])
    check.rounded(before, made, pass_, QuantizationFacts())
    run_passes(made, [Narrow()])
    with pytest.raises(ContractError, match="More activations of program 'g' are rounded"):
        check.exact(made, "a test")


@dataclass(frozen=True)
class Narrow(Pass):
    """Round the output through a half type."""

    name: ClassVar[str] = "narrow"

    def apply(self, graph: Graph) -> bool:
        """Cast down and up again."""
        output = graph.graph.outputs[0]
        down = ir.node("Cast", [output], {"to": ir.DataType.FLOAT16})
        up = ir.node("Cast", [down.outputs[0]], {"to": ir.DataType.FLOAT})
        for node, dtype in ((down, ir.DataType.FLOAT16), (up, ir.DataType.FLOAT)):
            node.outputs[0].type, node.outputs[0].shape = ir.TensorType(dtype), output.shape
            graph.graph.append(node)
        graph.graph.outputs[0] = up.outputs[0]
        output.name, up.outputs[0].name = f"{output.name}_wide", output.name
        return True


def chooser(axis: int = 1) -> Graph:
    """Rounds by itself, and chooses the largest."""
    return graph_with_weights(
        f"""g (float[N,32] x, float[32,32] w, float s, int8 z) => (int64[M] y) {{
            q = QuantizeLinear(x, s, z) h = DequantizeLinear(q, s, z) i = MatMul(h, w)
            y = ArgMax<axis = {axis}, keepdims = 0>(i) }}""",
        w=np.random.default_rng(1).standard_normal((32, 32)).astype(np.float32),
        s=np.float32(4 / 127),
        z=np.int8(0),
    )


def test_what_a_model_that_rounds_by_itself_chooses_is_counted():
    made = chooser()
    run = GraphRunner(made).run
    feeds = {"x": np.random.default_rng(2).standard_normal((200, 32)).astype(np.float32)}
    outputs = run(feeds)
    flipped = np.where(np.arange(200) < 2, outputs["y"] + 1, outputs["y"])
    sets = [Reference(Case("x", {"N": 200}), feeds, {"y": flipped})]
    item = TracedProgram("g", (), (), {}, (), sets, sets[0], 4, 32, None)
    # Torch may round a tie to the other side.
    StageCheck(item, EXACT, made).exact(made, "a test")
    with pytest.raises(ContractError, match=r"Output 'y' .* differs from torch after a test"):
        StageCheck(item, EXACT, made).exact(chooser(axis=0), "a test")
