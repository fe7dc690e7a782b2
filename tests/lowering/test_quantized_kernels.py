"""Integers reach the kernels: what each CPU runtime makes of a quantized artifact."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

import omnigraph
from omnigraph.contract.graph_check import GraphRunner
from omnigraph.contract.reference import Reference
from omnigraph.emitter import Emitter
from omnigraph.lowering import Lowered, find_target
from omnigraph.passes.analysis.quantization.statistics import Observation, Statistics
from omnigraph.passes.base import run_passes
from omnigraph.passes.calibrated_pass import QuantizationFacts
from omnigraph.passes.insert_qdq import InsertQdq
from omnigraph.program import Case, Dim, TensorSpec
from omnigraph.runtimes.openvino import sums_saturate
from omnigraph.testing import graph_with_weights

RNG = np.random.default_rng(0)
TERMS, CHANNELS = 256, 128
WEIGHT = RNG.standard_normal((TERMS, CHANNELS)).astype(np.float32)
TEXT = f"""g (float[batch,{TERMS}] x, float[{TERMS},{CHANNELS}] w) => (float[batch,{CHANNELS}] y)
    {{ y = MatMul(x, w) }}"""
PRODUCT = "y = MatMul(x, w)"
TINY = {"config": "tiny", "settings": {"kind": "encoder"}, "programs": ["encode"]}


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


def onnxruntime_ops(artifact: Path, scratch: Path) -> Counter[str]:
    """The ops of the Graph that onnxruntime runs, after its own optimizations."""
    from omnigraph.artifact import Artifact

    opened = Artifact(artifact)
    folder = scratch / "files"
    folder.mkdir()
    for name in opened.manifest["files"]:
        if name.startswith("golden"):
            continue
        (folder / name).write_bytes(bytes(opened.read(name)))
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(scratch / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(folder / "encode.onnx", options)
    optimized = onnx.load(scratch / "optimized.onnx", load_external_data=False)
    return Counter(node.op_type for node in optimized.graph.node)


def test_onnxruntime_multiplies_integers(artifacts, tmp_path: Path):
    ops = onnxruntime_ops(artifacts["onnx", "int8"], tmp_path)
    assert ops["MatMulIntegerToFloat"] + ops["QLinearMatMul"] == 2 * 6
    assert ops["MatMul"] == ops["DequantizeLinear"] == 0


def test_onnxruntime_multiplies_by_four_bits(artifacts, tmp_path: Path):
    ops = onnxruntime_ops(artifacts["onnx", "int4-weights"], tmp_path)
    assert ops["MatMulNBits"] == 2 * 6 and ops["MatMul"] == 0


def test_openvino_multiplies_integers(artifacts):
    with omnigraph.load(artifacts["openvino", "int8"]) as session:
        kinds = [k.kind for k in session.kernels() if k.kind.startswith("FullyConnected")]
    assert len(kinds) == 2 * 6
    # Where sums of integers are cut off, the same codes are multiplied in float.
    multiplied = "f32" if sums_saturate() else "i8"
    assert all(kind.lower().endswith(multiplied) for kind in kinds), Counter(kinds)


def product_and_exact(
    target: str,
    precision: str,
    weight: np.ndarray,
    x: np.ndarray,
    scratch: Path,
    nodes: str = PRODUCT,
    span: tuple[float, float] = (0.0, 1.0),
) -> tuple[np.ndarray, np.ndarray]:
    """x @ weight as a target's runtime computes it, and as the Graph with its integers says."""
    terms, channels = weight.shape
    text = f"""g (float[batch,{terms}] x, float[{terms},{channels}] w) =>
        (float[batch,{channels}] y) {{ {nodes} }}"""
    graph = graph_with_weights(text, w=weight)
    chosen = find_target(target)
    seen = Observation(*span, *span, 1, np.abs(x).max(0), x.mean(0))
    facts = QuantizationFacts(Statistics({"w": seen}, "min-max", "a test", 1))
    run_passes(graph, [InsertQdq(scheme=chosen.schemes[precision], facts=facts)])
    exact = GraphRunner(graph.clone()).run({"x": x})["y"]
    run_passes(graph, chosen.pipeline(precision))
    sizes = {"x": terms, "y": channels}
    specs = [TensorSpec(name, "float32", ("batch", size)) for name, size in sizes.items()]
    lowered = Lowered("forward", graph, (specs[0],), (specs[1],), {"batch": Dim()})
    golden = Reference(Case("golden", {}), {"x": x}, {"y": exact})
    with Emitter(chosen, precision, {}, golden).session(lowered, scratch) as session:
        return session.run({"x": x})["y"], exact


@pytest.mark.parametrize("target", ["onnx", "openvino"])
@pytest.mark.parametrize("terms", [40, 64, 72, 200])
def test_blocks_that_do_not_fill_their_axis(tmp_path: Path, target: str, terms: int):
    weight = RNG.standard_normal((terms, 24)).astype(np.float32)
    x = RNG.standard_normal((3, terms)).astype(np.float32)
    found, exact = product_and_exact(target, "int4-weights", weight, x, tmp_path)
    # Products in bf16, or with activations in codes of eight bits, whose step is a 127th of the
    # largest: of either, less than a hundredth.
    assert np.abs(found - exact).max() < 0.02 * np.abs(exact).max()


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
