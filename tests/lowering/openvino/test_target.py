"""The openvino target: what it refuses, what it writes, and that OpenVINO computes it rightly."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import onnx_ir as ir
import openvino as ov
import pytest
from onnx.reference import ReferenceEvaluator
from onnx_ir.passes.common import ShapeInferencePass
from openvino_programs import CORE, compiled, emit, program, read, run

from omnigraph.contract.tolerance import Tolerance, deviation
from omnigraph.errors import CompileError, UnsupportedError, UsageError
from omnigraph.graph import MODULE_KEY
from omnigraph.lowering import find_target
from omnigraph.lowering.base import Lowered
from omnigraph.lowering.openvino.target import TARGET
from omnigraph.program import Dim, TensorSpec

HAS_BF16 = "BF16" in CORE.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
HIDDEN = 64

BLOCK = """
int64[batch, sequence] ids, int64[batch, sequence] mask => float[batch, sequence, 64] hidden
{
    x = Gather(embedding, ids)
    normed = LayerNormalization<axis = -1>(x, scale, shift)
    up = MatMul(normed, w_up)
    active = Gelu(up)
    down = MatMul(active, w_down)
    ones = Cast<to = 1>(mask)
    kept = Unsqueeze(ones, last)
    masked = Mul(down, kept)
    hidden = Add(x, masked)
}
"""


def weights(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {
        "embedding": (100, HIDDEN),
        "scale": (HIDDEN,),
        "shift": (HIDDEN,),
        "w_up": (HIDDEN, 4 * HIDDEN),
        "w_down": (4 * HIDDEN, HIDDEN),
    }
    made = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return {**made, "last": np.array([-1])}


def block(name: str = "forward") -> Lowered:
    dims = {"batch": Dim(1), "sequence": Dim(1, 512)}
    return program(BLOCK, weights(), name=name, dims=dims)


def digests(directory: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in directory.iterdir()}


def block_feeds(batch: int = 2, length: int = 23) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {
        "ids": rng.integers(0, 100, (batch, length)),
        "mask": rng.integers(0, 2, (batch, length)),
    }


def block_reference(feeds: Mapping[str, np.ndarray]) -> np.ndarray:
    proto = ir.to_proto(block().graph)
    return ReferenceEvaluator(proto).run(["hidden"], dict(feeds))[0]


# What is written ----------------------------------------------------------------------------------


def test_registered() -> None:
    assert find_target("openvino") is TARGET
    assert TARGET.unusable() is None
    with pytest.raises(UnsupportedError, match="fp32 or fp16 or bf16"):
        TARGET.check_precision("fp8")
    with pytest.raises(UsageError, match="no option 'compute'"):
        TARGET.check_options({"compute": "sm89"})


def test_files_and_requirements(tmp_path: Path) -> None:
    emission = emit([block("encode"), block("forward")], tmp_path)
    assert emission.files == {
        "encode": {"model": "encode.xml", "weights": "weights.bin"},
        "forward": {"model": "forward.xml", "weights": "weights.bin"},
    }
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "encode.xml",
        "forward.xml",
        "weights.bin",
    ]
    assert emission.device == "cpu" and emission.executes_here
    assert emission.requires["openvino"].startswith(">=2026.4")


def test_inputs_and_outputs_are_those_of_the_program(tmp_path: Path) -> None:
    emit([block()], tmp_path)
    model = read(tmp_path)
    assert [(p.get_any_name(), p.get_element_type()) for p in model.inputs] == [
        ("ids", ov.Type.i64),
        ("mask", ov.Type.i64),
    ]
    assert [p.get_names() for p in model.outputs] == [{"hidden"}]
    for port in model.inputs:  # the sequence is bounded, the batch is not
        assert port.partial_shape == ov.PartialShape([-1, ov.Dimension(1, 512)])


def test_sums_of_dimensions_are_bounded_by_their_terms(tmp_path: Path) -> None:
    text = "float[past + sequence] a, float[past + 1] b, float[free + past] c => float[n] y"
    lowered = program(
        text.replace("past + sequence", "p").replace("past + 1", "q").replace("free + past", "r")
        + "{ y = Concat<axis = 0>(a, b, c) }"
    )
    shapes = [("past + sequence",), ("past + 1",), ("free + past",)]
    inputs = tuple(
        TensorSpec(spec.name, spec.dtype, shape)
        for spec, shape in zip(lowered.inputs, shapes, strict=True)
    )
    dims = {"past": Dim(0, 6), "sequence": Dim(1, 4)}
    emit([Lowered("forward", lowered.graph, inputs, lowered.outputs, dims)], tmp_path)
    shapes_found = [port.partial_shape for port in read(tmp_path).inputs]
    assert shapes_found == [
        ov.PartialShape([ov.Dimension(1, 10)]),
        ov.PartialShape([ov.Dimension(1, 7)]),
        ov.PartialShape([-1]),
    ]


def test_an_input_that_nothing_needs_stays(tmp_path: Path) -> None:
    emit([program("float[n] x, int64[n, 2] unused => float[n] y { y = Neg(x) }")], tmp_path)
    model = compiled(tmp_path)
    assert {port.get_any_name() for port in model.inputs} == {"x", "unused"}
    found = run(model, {"x": np.ones(3, np.float32), "unused": np.zeros((3, 2), np.int64)})
    np.testing.assert_array_equal(found["y"], -np.ones(3))


def test_outputs_of_one_value_keep_their_names(tmp_path: Path) -> None:
    text = "float[n] x => float[n] y, float[n] z, float[n] w { y = Neg(x) z = Identity(y) "
    lowered = program(text + "w = Identity(x) }")
    TARGET.emit([lowered], tmp_path, precision="fp32", options={})
    found = run(compiled(tmp_path), {"x": np.ones(3, np.float32)})
    assert {name: array[0] for name, array in found.items()} == {"y": -1, "z": -1, "w": 1}


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_numbers_and_sizes_of_each_precision(tmp_path: Path, precision: str) -> None:
    emit([block()], tmp_path, precision)
    model = compiled(tmp_path, hint="bf16" if precision == "bf16" else "f32")
    # Six roundings in a row (two products, a norm of three, one sum), of products of 256 terms.
    tolerance = Tolerance.for_precision(TARGET.rounding(precision), depth=6, contraction=256)
    for batch, length in ((1, 1), (3, 7), (2, 65)):
        feeds = block_feeds(batch, length)
        found = run(model, feeds)["hidden"]
        assert deviation(found, block_reference(feeds)).within(tolerance)
    stored = (tmp_path / "weights.bin").stat().st_size
    full = sum(a.nbytes for a in weights().values())
    # Each weight begins at a page, so a few are wider apart than they are long.
    expected = full if precision == "fp32" else full / 2
    assert expected * 0.98 < stored < expected + 8 * 4096


def test_bf16_is_what_runs(tmp_path: Path) -> None:
    emit([block()], tmp_path, "bf16")
    ran = {
        node.get_rt_info()["runtimePrecision"].astype(str)
        for node in compiled(tmp_path, hint="bf16").get_runtime_model().get_ops()
        if node.get_rt_info()["layerType"].astype(str) == "FullyConnected"
    }
    # Elsewhere, in f32, with weights that are widened from f16 where the CPU can do that.
    assert ran <= ({"bf16"} if HAS_BF16 else {"f32", "f16"}) and ran


def test_weights_of_two_programs_are_stored_once(tmp_path: Path) -> None:
    emit([block("encode")], tmp_path / "one")
    emit([block("encode"), block("forward")], tmp_path / "two")
    one, two = (tmp_path / d / "weights.bin" for d in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    feeds = block_feeds()
    for name in ("encode", "forward"):
        found = run(compiled(tmp_path / "two", name), feeds)["hidden"]
        np.testing.assert_allclose(found, block_reference(feeds), rtol=1e-4, atol=1e-4)


def test_constants_are_aligned_and_within_the_file(tmp_path: Path) -> None:
    emit([block()], tmp_path)
    end = (tmp_path / "weights.bin").stat().st_size
    layers = ElementTree.parse(tmp_path / "forward.xml").iter("layer")
    constants = {
        layer.get("name"): layer.find("data").attrib  # type: ignore[union-attr]
        for layer in layers
        if layer.get("type") == "Const"
    }
    assert {"embedding", "w_up", "w_down"} <= constants.keys()
    for data in constants.values():
        assert int(data["offset"]) % 64 == 0
        assert int(data["offset"]) + int(data["size"]) <= end
    for name in ("embedding", "w_up"):
        data = constants[name]
        stored = np.memmap(tmp_path / "weights.bin", np.float32, "r", int(data["offset"]))
        np.testing.assert_array_equal(
            stored[: weights()[name].size].reshape(weights()[name].shape), weights()[name]
        )


@pytest.mark.parametrize(("precision", "expected"), [("fp32", 0), ("fp16", 0), ("bf16", 3)])
def test_halves_that_are_computed_with_stay_halves(
    tmp_path: Path, precision: str, expected: int
) -> None:
    emit([block()], tmp_path, precision)
    layers = ElementTree.parse(tmp_path / "forward.xml").iter("layer")
    marked = [e for e in layers if e.find("rt_info/attribute[@name='decompression']") is not None]
    assert [layer.get("type") for layer in marked] == ["Convert"] * expected


#: OpenVINO folds the shape that a Slice needs into a constant, whose name holds a counter.
SLICE = """float[batch, 6] x => float[batch, 2] y {
    a = Constant<value_ints=[0]>() b = Constant<value_ints=[2]>() c = Constant<value_ints=[1]>()
    y = Slice(x, a, b, c)
}"""


@pytest.mark.parametrize("make", [block, lambda: program(SLICE)], ids=["block", "slice"])
def test_same_bytes_twice_in_a_process(tmp_path: Path, make: Callable[[], Lowered]) -> None:
    emit([make()], tmp_path / "one")
    CORE.compile_model(read(tmp_path / "one"), "CPU")  # moves OpenVINO's counters of names
    emit([make()], tmp_path / "two")
    assert digests(tmp_path / "one") == digests(tmp_path / "two")


def test_same_bytes_of_several_programs_twice_in_a_process(tmp_path: Path) -> None:
    for name in ("one", "two"):
        emit([block("encode"), block()], tmp_path / name)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")


def test_same_bytes_in_another_process(tmp_path: Path) -> None:
    emit([block()], tmp_path / "here")
    code = (
        "import importlib.util, pathlib, sys\n"
        "spec = importlib.util.spec_from_file_location('there', sys.argv[1])\n"
        "there = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(there)\n"
        "there.emit([there.block()], pathlib.Path(sys.argv[2]))\n"
    )
    subprocess.run(
        [sys.executable, "-c", code, __file__, str(tmp_path / "there")],
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert digests(tmp_path / "here") == digests(tmp_path / "there")


# What is refused ----------------------------------------------------------------------------------

REFUSED = {
    "float[n] x => float[n] y { y = ai.omnigraph.Thing(x) }": "domain 'ai.omnigraph'",
    "float[n,n] x => float[] y { y = Det(x) }": "no conversion rule for Det",
    "float[n] x => float[n] y { y = Mod<fmod = 0>(x, x) }": "`fmod` attribute must be set to 1",
    'float[n] x, int64[2] p => float[m] y { y = Pad<mode = "wrap">(x, p) }': "wrap",
    "float[n] x, int64[1] r => float[m] y { y = Tile(x, r) }": "never written",
    "float[b,4,t,8] q => float[b,4,t,8] y { y = Attention(q, q, q) }": "divides by a wrong sum",
}


@pytest.mark.parametrize("text", REFUSED)
def test_refused_with_a_reason(text: str) -> None:
    node = _parsed(text).graph[0]
    assert REFUSED[text] in str(TARGET.supports(node, "fp32"))


def _parsed(text: str) -> ir.Model:
    signature, body = text.split("{", 1)
    inputs, outputs = signature.split("=>")
    header = '<ir_version: 10, opset_import: ["" : 24, "ai.omnigraph" : 1]>'
    return ir.from_onnx_text(f"{header} g ({inputs}) => ({outputs}) {{{body}")


def test_all_that_is_refused_is_named_at_once() -> None:
    graph = _parsed("float[n,n] x => float[] z { y = Det(x) m = Mod<fmod = 0>(y, y) z = Neg(m) }")
    for node in graph.graph:
        node.metadata_props[MODULE_KEY] = f"layer.{node.op_type}"
    ShapeInferencePass()(graph)
    with pytest.raises(UnsupportedError) as caught:
        TARGET.check_nodes("forward", graph, "fp32")
    for text in ("2 nodes of program 'forward'", "layer.Det", "layer.Mod", "hint:"):
        assert text in str(caught.value)


def test_a_node_of_unknown_type_is_left_to_the_frontend() -> None:
    graph = _parsed("float[n,n] x => float[] z { y = Det(x) z = Neg(y) }")
    assert TARGET.supports(graph.graph[1], "fp32") is None


def test_what_the_frontend_refuses_names_the_node(tmp_path: Path) -> None:
    lowered = program("float[n,n] x => float[] z { y = Det(x) z = Neg(y) }")
    with pytest.raises(CompileError, match=r"Det .*of module 'block'.*of program 'forward'") as e:
        TARGET.emit([lowered], tmp_path, precision="fp32", options={})
    assert isinstance(e.value.__cause__, RuntimeError)
    assert "no conversion rule for Det" in str(e.value)
