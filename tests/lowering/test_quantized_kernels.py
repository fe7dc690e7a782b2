"""Integers reach the kernels: what each CPU runtime makes of a quantized artifact."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

import omnigraph
from omnigraph.artifact import Artifact
from omnigraph.contract.graph_check import GraphRunner
from omnigraph.contract.reference import Reference
from omnigraph.emitter import Emitter
from omnigraph.lowering import Lowered, find_target
from omnigraph.passes.analysis.quantization.statistics import Observation, Statistics
from omnigraph.passes.base import run_passes
from omnigraph.passes.calibrated_pass import QuantizationFacts
from omnigraph.passes.insert_qdq import InsertQdq
from omnigraph.program import Case, Dim, TensorSpec
from omnigraph.runtimes.onnx import OnnxSession
from omnigraph.runtimes.openvino import sums_saturate
from omnigraph.testing import graph_with_weights

RNG = np.random.default_rng(0)
TERMS, CHANNELS = 256, 128
WEIGHT = RNG.standard_normal((TERMS, CHANNELS)).astype(np.float32)
TEXT = f"""g (float[batch,{TERMS}] x, float[{TERMS},{CHANNELS}] w) => (float[batch,{CHANNELS}] y)
    {{ y = MatMul(x, w) }}"""
PRODUCT = "y = MatMul(x, w)"
TINY = {"config": "tiny", "settings": {"kind": "encoder"}, "programs": ["encode"]}
DECODER = {
    "config": "tiny",
    "settings": {"kind": "decoder", "vocab_size": "512"},
    "programs": ["decode"],
}


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory) -> dict[tuple[str, str], Path]:
    out = tmp_path_factory.mktemp("kernels")
    made = {}
    for precision in ("int8", "int4-weights"):
        for report in omnigraph.export(
            "omninet", ["onnx", "openvino"], precision=precision, out=out / precision, **TINY
        ):
            made[report.target, precision] = report.path
    return made


def onnxruntime_nodes(artifact: Path, scratch: Path) -> list[onnx.NodeProto]:
    """The nodes that onnxruntime runs, after its own optimizations, as the Session loads it."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(scratch / "optimized.onnx")
    with OnnxSession(Artifact(artifact)) as session:
        session._load(session.entry(), options)
    return list(onnx.load(scratch / "optimized.onnx", load_external_data=False).graph.node)


def onnxruntime_ops(artifact: Path, scratch: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnxruntime_nodes(artifact, scratch))


def test_onnxruntime_multiplies_integers(artifacts, tmp_path: Path):
    ops = onnxruntime_ops(artifacts["onnx", "int8"], tmp_path)
    assert ops["MatMulIntegerToFloat"] + ops["QLinearMatMul"] == 2 * 6
    assert ops["MatMul"] == ops["DequantizeLinear"] == 0


def test_onnxruntime_multiplies_by_four_bits(artifacts, tmp_path: Path):
    ops = onnxruntime_ops(artifacts["onnx", "int4-weights"], tmp_path)
    assert ops["MatMulNBits"] == 2 * 6 and ops["MatMul"] == 0


@pytest.mark.parametrize("precision", ["int8-weights", "int4-weights"])
def test_no_step_dequantizes_a_weight(tmp_path: Path, precision: str):
    """Logits read the table of the embedding, which is stored once, and multiply its integers."""
    (report,) = omnigraph.export("omninet", ["onnx"], precision=precision, out=tmp_path, **DECODER)
    nodes = onnxruntime_nodes(report.path, tmp_path)
    ops = Counter(node.op_type for node in nodes)
    assert ops["MatMulNBits"] == 2 * 6 + 1
    assert ops["MatMul"] == ops["Gemm"] == ops["DequantizeLinear"] == 0
    # Groups as the scheme says them, which the contract counts the noise of.
    chosen = find_target("onnx").schemes[precision]
    assert chosen is not None and chosen.tables is not None
    table = find_target("onnx").schemes["int8-weights"]
    for node in nodes:
        found = {a.name: a.i for a in node.attribute}
        if node.op_type == "MatMulNBits":
            scheme = table if found["bits"] == 8 else chosen
            assert found["block_size"] == scheme.runtime_group, found
    # What the embedding and the logits read has two names, but one place in the file.
    file = onnx.load(report.path / "decode.onnx", load_external_data=False)
    for shape, kind in (([512, 64], onnx.TensorProto.INT8), ([512], onnx.TensorProto.FLOAT)):
        like = [t for t in file.graph.initializer if t.dims == shape and t.data_type == kind]
        places = {entry.value for t in like for entry in t.external_data if entry.key == "offset"}
        assert len(like) == (1 if kind == onnx.TensorProto.INT8 else 2) and len(places) == 1


def test_openvino_multiplies_integers(artifacts):
    with omnigraph.load(artifacts["openvino", "int8"]) as session:
        kinds = [k.kind for k in session.kernels() if k.kind.startswith("FullyConnected")]
    assert len(kinds) == 2 * 6
    # Where sums of integers are cut off, the same codes are multiplied in float.
    multiplied = "f32" if sums_saturate() else "i8"
    assert all(kind.lower().endswith(multiplied) for kind in kinds), Counter(kinds)


SEVERAL = f"""g (float[batch,{TERMS}] x, float[{TERMS},{CHANNELS}] w) =>
    (float[batch,{CHANNELS}] y) {{ a = MatMul(x, w) n = Neg(x) b = MatMul(n, w) y = Sub(a, b) }}"""
ROWS_OF_CHANNELS = f"""g (float[batch,{CHANNELS}] x, float[{TERMS},{CHANNELS}] w) =>
    (float[batch,{TERMS}] y) {{ y = Gemm<transB = 1>(x, w) }}"""


@pytest.mark.parametrize("precision", ["int8-weights", "int4-weights"])
@pytest.mark.parametrize(("text", "products"), [(SEVERAL, 2), (ROWS_OF_CHANNELS, 1)])
def test_onnxruntime_dequantizes_no_weight(
    tmp_path: Path, precision: str, text: str, products: int
):
    graph = graph_with_weights(text, w=WEIGHT)
    target = find_target("onnx")
    run_passes(graph, [InsertQdq(scheme=target.schemes[precision])])
    run_passes(graph, target.pipeline(precision))
    lowered = Lowered("forward", graph, (), (), {})
    target.emit([lowered], tmp_path, precision=precision, options={})
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(tmp_path / "forward.onnx", options)
    found = onnx.load(tmp_path / "optimized.onnx", load_external_data=False).graph.node
    ops = Counter(node.op_type for node in found)
    assert ops["MatMulNBits"] == products and ops["DequantizeLinear"] == 0, ops


def product_and_exact(
    target: str,
    precision: str,
    weight: np.ndarray,
    x: np.ndarray,
    scratch: Path,
    nodes: str = PRODUCT,
    span: tuple[float, float] = (0.0, 1.0),
    emitted: str = "",
) -> tuple[np.ndarray, np.ndarray]:
    """x @ weight as a target's runtime computes it, and as the Graph with its integers says.

    Args:
        emitted: the precision of the artifact, where it is not that of the weight.
    """
    terms, channels = weight.shape
    text = f"""g (float[batch,{terms}] x, float[{terms},{channels}] w) =>
        (float[batch,{channels}] y) {{ {nodes} }}"""
    graph = graph_with_weights(text, w=weight)
    chosen = find_target(target)
    seen = replace(Observation.of(x), low=span[0], high=span[1])
    facts = QuantizationFacts(Statistics({"w": seen}, "min-max", "a test", 1))
    run_passes(graph, [InsertQdq(scheme=chosen.schemes[precision], facts=facts)])
    exact = GraphRunner(graph.clone()).run({"x": x})["y"]
    run_passes(graph, chosen.pipeline(emitted or precision))
    sizes = {"x": terms, "y": channels}
    specs = [TensorSpec(name, "float32", ("batch", size)) for name, size in sizes.items()]
    lowered = Lowered("forward", graph, (specs[0],), (specs[1],), {"batch": Dim()})
    golden = Reference(Case("golden", {}), {"x": x}, {"y": exact})
    with Emitter(chosen, emitted or precision, {}, golden).session(lowered, scratch) as session:
        return session.run({"x": x})["y"], exact


@pytest.mark.parametrize("target", ["onnx", "openvino"])
@pytest.mark.parametrize("precision", ["int8-weights", "int4-weights"])
@pytest.mark.parametrize("terms", [40, 64, 72, 200])
def test_blocks_that_do_not_fill_their_axis(
    tmp_path: Path, target: str, precision: str, terms: int
):
    weight = RNG.standard_normal((terms, 24)).astype(np.float32)
    x = RNG.standard_normal((3, terms)).astype(np.float32)
    found, exact = product_and_exact(target, precision, weight, x, tmp_path)
    # Products in bf16, or with activations in codes of eight bits, whose step is a 127th of the
    # largest: of either, less than a hundredth.
    assert np.abs(found - exact).max() < 0.02 * np.abs(exact).max()


@pytest.mark.parametrize("target", ["onnx", "openvino"])
@pytest.mark.parametrize("stored", ["int8-weights", "int4-weights"])
@pytest.mark.parametrize("emitted", ["fp32", "fp16"])
def test_a_precision_of_floats_rounds_no_activation(
    tmp_path: Path, target: str, stored: str, emitted: str
):
    """A model may come with integers; both runtimes would quantize what they multiply."""
    x = RNG.standard_normal((3, TERMS)).astype(np.float32)
    found, exact = product_and_exact(target, stored, WEIGHT, x, tmp_path, emitted=emitted)
    # Sums in another order; scales are too few to be stored in halves.
    assert np.abs(found - exact).max() < 1e-6 * np.abs(exact).max()


@pytest.mark.parametrize("target", ["onnx", "openvino"])
@pytest.mark.parametrize("precision", ["int8", "int8-dynamic", "int8-weights", "int4-weights"])
def test_no_sum_is_cut_off(tmp_path: Path, target: str, precision: str):
    # Products of the largest codes, of one sign: kernels that add two of them in 16 bits, as those
    # of CPUs without VNNI do, lose half of each sum.
    weight = np.sign(RNG.standard_normal((TERMS, 32))) * RNG.uniform(0.9, 1, (TERMS, 32))
    weight[:, 0], weight[:, 1] = np.abs(weight[:, 0]), -np.abs(weight[:, 1])
    x = RNG.uniform(0.9, 1, (5, TERMS)).astype(np.float32)
    found, exact = product_and_exact(target, precision, weight.astype(np.float32), x, tmp_path)
    # As above: a step of eight bits, where the runtime quantizes activations by itself.
    assert np.abs(found - exact).max() < 0.02 * np.abs(exact).max()


@pytest.mark.parametrize("target", ["onnx", "openvino"])
@pytest.mark.parametrize("precision", ["int8", "int8-dynamic", "int8-weights", "int4-weights"])
@pytest.mark.parametrize("channels", [4, 32])
def test_a_weight_that_several_products_read(
    tmp_path: Path, target: str, precision: str, channels: int
):
    weight = RNG.standard_normal((32, channels)).astype(np.float32)
    x = RNG.standard_normal((3, 32)).astype(np.float32)
    nodes = "a = MatMul(x, w) n = Neg(x) b = MatMul(n, w) y = Sub(a, b)"
    found, exact = product_and_exact(target, precision, weight, x, tmp_path, nodes, (-3.0, 3.0))
    assert np.abs(found - exact).max() < 0.02 * np.abs(exact).max()  # as above


@pytest.mark.parametrize("target", ["onnx", "openvino"])
@pytest.mark.parametrize("precision", ["int8-weights", "int4-weights"])
def test_only_integers_are_stored(tmp_path: Path, target: str, precision: str):
    graph = graph_with_weights(TEXT, w=WEIGHT)
    chosen = find_target(target)
    run_passes(graph, [InsertQdq(scheme=chosen.schemes[precision])])
    specs = [TensorSpec(n, "float32", ("batch", s)) for n, s in (("x", TERMS), ("y", CHANNELS))]
    lowered = Lowered("forward", graph, (specs[0],), (specs[1],), {"batch": Dim()})
    chosen.emit([lowered], tmp_path, precision=precision, options={})
    held = max(p.stat().st_size for p in tmp_path.iterdir())
    bits = 8 if precision == "int8-weights" else 4
    # Scales and zero points, for each channel or each block of 64; tensors begin at pages.
    blocks = 1 if bits == 8 else TERMS // 64
    assert held < WEIGHT.size * bits // 8 + blocks * CHANNELS * 5 + 4 * 4096
