"""The onnx target: what it writes, for which runtimes, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import omnigraph
from omnigraph.artifact import MANIFEST, Artifact, seal
from omnigraph.errors import DeviceError, UnsupportedError
from omnigraph.graph import Graph
from omnigraph.lowering.base import Lowered
from omnigraph.lowering.onnx.files import write_onnx
from omnigraph.lowering.onnx.target import TARGET
from omnigraph.program import TensorSpec
from omnigraph.testing import graph_from_text


def lowered(name: str, graph: Graph) -> Lowered:
    spec = TensorSpec("x", "float32", ("N", 64))
    return Lowered(name, graph, (spec,), (TensorSpec("y", "float32", ("N", 64)),), {})


def linear(weight: np.ndarray, opset: int = 24) -> Graph:
    graph = graph_from_text(
        "g (float[N,64] x, float[64,64] w) => (float[N,64] y) { y = MatMul(x, w) }"
    )
    value = graph.graph.inputs.pop()
    value.const_value = ir.tensor(weight, name="w")
    graph.graph.register_initializer(value)
    return graph


WEIGHT = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)


def test_equal_weights_of_several_programs_are_written_once(tmp_path: Path):
    files = write_onnx(
        [lowered("a", linear(WEIGHT)), lowered("b", linear(WEIGHT.copy()))], tmp_path
    )
    assert files["b"] == {"model": "b.onnx", "weights": "weights.bin"}
    assert (tmp_path / "weights.bin").stat().st_size == WEIGHT.nbytes
    for name in ("a.onnx", "b.onnx"):
        model = onnx.load(tmp_path / name)
        np.testing.assert_array_equal(
            onnx.numpy_helper.to_array(model.graph.initializer[0]), WEIGHT
        )


def test_other_weights_are_written_apart_and_aligned(tmp_path: Path):
    write_onnx([lowered("a", linear(WEIGHT)), lowered("b", linear(WEIGHT + 1))], tmp_path)
    model = onnx.load(tmp_path / "b.onnx", load_external_data=False)
    place = {e.key: e.value for e in model.graph.initializer[0].external_data}
    assert int(place["offset"]) % 4096 == 0
    assert int(place["offset"]) >= WEIGHT.nbytes


def test_the_graph_keeps_its_weights_in_memory_after_writing(tmp_path: Path):
    graph = linear(WEIGHT)
    write_onnx([lowered("a", graph)], tmp_path)
    assert graph.graph.initializers["w"].const_value.numpy() is not None
    assert not isinstance(graph.graph.initializers["w"].const_value, ir.ExternalTensor)


def test_a_graph_is_written_for_the_oldest_runtime_that_takes_it(tmp_path: Path):
    emission = TARGET.emit([lowered("a", linear(WEIGHT))], tmp_path, precision="fp32", options={})
    assert emission.requires == {"onnxruntime": ">=1.23"}
    assert onnx.load(tmp_path / "a.onnx").opset_import[0].version == 23


def test_a_graph_with_a_newer_op_keeps_its_opset(tmp_path: Path):
    graph = graph_from_text("g (float[N,64] x) => (float[N,64] y) { y = Swish(x) }")
    emission = TARGET.emit([lowered("a", graph)], tmp_path, precision="fp32", options={})
    assert emission.requires == {"onnxruntime": ">=1.24"}
    assert onnx.load(tmp_path / "a.onnx").opset_import[0].version == 24


def test_a_runtime_that_is_too_old_is_named(tmp_path: Path):
    omnigraph.export(
        "omninet", "onnx", config="tiny", settings={"kind": "encoder"}, programs=["encode"],
        out=tmp_path / "net",
    )  # fmt: skip
    fields = json.loads((tmp_path / "net" / MANIFEST).read_text())
    fields["requires"] = {"onnxruntime": ">=99.1"}
    seal(tmp_path / "net", fields)
    Artifact(tmp_path / "net")
    with pytest.raises(DeviceError, match=r"another version of onnxruntime: expected >=99\.1"):
        omnigraph.load(tmp_path / "net")


def test_nodes_it_cannot_take_are_refused_with_their_modules():
    graph = graph_from_text("g (bfloat16[N] x) => (bfloat16[N] y) { t = Exp(x)  y = Neg(t) }")
    for node in graph.graph:
        node.metadata_props["omnigraph.module"] = "encoder.blocks.0"
    with pytest.raises(UnsupportedError) as refused:
        TARGET.check_nodes("forward", graph, "fp32")
    text = str(refused.value)
    assert "cannot take 2 nodes of program 'forward'" in text
    assert "Exp 'node_0' of module 'encoder.blocks.0': onnxruntime's CPU kernels do not" in text
    graph = ir.Model(
        ir.Graph([], [], nodes=[ir.Node("com.acme", "Warp", [])], opset_imports={"": 24}, name="g"),
        ir_version=11,
    )
    with pytest.raises(UnsupportedError, match=r"domain 'com\.acme' is not standard ONNX"):
        TARGET.check_nodes("forward", graph, "fp32")
