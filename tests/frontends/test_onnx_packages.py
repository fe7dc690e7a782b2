"""ONNX files as packages ship them, in small: probabilities that are tiny, squeezes by If."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from tiny_sessions import reseal

import omnigraph
from omnigraph.artifact import Artifact
from omnigraph.artifact.sealing import MANIFEST
from omnigraph.errors import ArtifactError, TraceError, UnsupportedError

TARGETS = ("onnx", "openvino")
DRAW = np.random.default_rng(0)


def write(path: Path, text: str, **weights: np.ndarray) -> Path:
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 18]>\n{text}')
    for name, array in weights.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    onnx.save(model, path)
    return path


def normal(*shape: int) -> np.ndarray:
    return DRAW.standard_normal(shape).astype(np.float32)


def program(path: Path) -> dict:
    """The entry of the only program in a manifest."""
    return Artifact(path).programs["forward"].to_dict()


def detector(path: Path) -> Path:
    """All probabilities are near 1e-6, as on a page without text."""
    text = """net (float[N, 3, h, w] x) => (float[N, 1, h, w] p) {
        a = Conv<pads = [1, 1, 1, 1]>(x, k)
        b = Relu(a)
        c = Conv(b, last, bias)
        p = Sigmoid(c)
    }"""
    last, bias = normal(1, 8, 1, 1) / 32, np.array([-13.8], np.float32)
    return write(path, text, k=normal(8, 3, 3, 3) / 5, last=last, bias=bias)


@pytest.mark.parametrize("target", TARGETS)
def test_a_detector_that_sees_nothing_keeps_its_contract(tmp_path: Path, target: str):
    omnigraph.export(detector(tmp_path / "net.onnx"), target, out=tmp_path / "net")
    tolerance = program(tmp_path / "net")["tolerance"]
    # Whatever the depth, what one operation makes of numbers of size 1: 4 unit roundoffs.
    assert tolerance["least_scales"]["p"] * tolerance["rms"] == pytest.approx(2.4e-7, rel=0.01)
    with omnigraph.load(tmp_path / "net") as session:
        assert all(check.passed for check in session.verify())


def test_its_golden_pair_still_finds_a_fault(tmp_path: Path):
    path = tmp_path / "net"
    omnigraph.export(detector(tmp_path / "net.onnx"), "onnx", out=path)
    file = Artifact(path).programs["forward"].golden
    assert file is not None
    arrays = dict(Artifact(path).arrays(file))
    arrays["output/p"] = arrays["output/p"] + np.float32(1e-6)
    np.savez(path / file, **arrays)  # type: ignore[arg-type]
    reseal(path)
    with omnigraph.load(path) as session:
        assert [check.passed for check in session.verify()] == [False]


@pytest.mark.parametrize("scale", [1e9, -1.0, "1"])
def test_a_manifest_with_a_scale_above_that_of_a_probability_is_refused(tmp_path: Path, scale):
    path = tmp_path / "net"
    omnigraph.export(detector(tmp_path / "net.onnx"), "onnx", out=path)
    manifest = json.loads((path / MANIFEST).read_text())
    manifest["programs"]["forward"]["tolerance"]["least_scales"]["p"] = scale
    (path / MANIFEST).write_text(json.dumps(manifest))
    reseal(path)
    with pytest.raises(ArtifactError, match="least_scales"):
        omnigraph.load(path)


@pytest.mark.parametrize("target", TARGETS)
def test_a_softmax_over_thousands_of_characters_keeps_its_contract(tmp_path: Path, target: str):
    text = """net (float[N, T, 16] x) => (float[N, T, 6000] p) {
        a = MatMul(x, k)
        b = Relu(a)
        c = MatMul(b, last)
        p = Softmax<axis = 2>(c)
    }"""
    path = write(tmp_path / "net.onnx", text, k=normal(16, 64), last=normal(64, 6000) / 4)
    omnigraph.export(path, target, out=tmp_path / "net")


def test_an_output_that_is_no_number_on_what_was_drawn_asks_for_examples(tmp_path: Path):
    text = "net (float[N, T] x) => (float[N, T] y) { z = Abs(x) o = Neg(z) y = Log(o) }"
    with pytest.raises(TraceError, match=r"'y' is not a number") as error:
        omnigraph.export(write(tmp_path / "net.onnx", text), "onnx", out=tmp_path / "net")
    assert "--example" in str(error.value)


#: What an exporter writes for ``squeeze(-1)`` where it does not know the length.
SQUEEZE = """net (float[N, 1, T] x) => (float[N, 1] y) {
    padded = Pad<mode = "reflect">(x, pads)
    c = Conv<strides = [4]>(padded, k)
    n = Shape(c)
    size = Gather(n, last)
    is_one = Equal(size, one)
    s = If(is_one) <
        then_branch = a () => (float[N, 4] t) { t = Squeeze(c, last) },
        else_branch = b () => (float[N, 4, M] i) { i = Identity(c) }>
    u = Unsqueeze(s, last)
    d = Conv(u, v)
    y = Squeeze(d, last)
}"""
#: The pads of the last axis before those of the first, as torch has them, turned round.
PADS = """{
    zeros = ConstantOfShape<value = int64[1] {0}>(four)
    all_pads = Concat<axis = 0>(own_pads, zeros)
    pairs = Reshape(all_pads, pair)
    turned = Slice(pairs, last, far, first, last)
    columns = Transpose<perm = [1, 0]>(turned)
    pads = Reshape(columns, last)"""
LISTS = {
    "last": [-1],
    "one": [1],
    "four": [4],
    "own_pads": [0, 1],
    "pair": [-1, 2],
    "far": [-(2**63) + 1],
    "first": [0],
}


@pytest.mark.parametrize("target", TARGETS)
def test_a_squeeze_of_what_is_always_one(tmp_path: Path, target: str):
    lists = {name: np.array(numbers) for name, numbers in LISTS.items()}
    text = SQUEEZE.replace("{", PADS, 1)
    path = write(tmp_path / "net.onnx", text, k=normal(4, 1, 4), v=normal(1, 4, 1), **lists)
    omnigraph.export(path, target, out=tmp_path / "net")
    ops = json.loads((tmp_path / "net" / MANIFEST).read_text())["programs"]["forward"]["ops"]
    assert "If" not in ops


def test_a_squeeze_by_an_input_is_refused_by_name(tmp_path: Path):
    text = """net (float[N, 4, 1] x, bool flag) => (float[N, M] y) {
        s = If(flag) <
            then_branch = a () => (float[N, 4] t) { t = Squeeze(x, last) },
            else_branch = b () => (float[N, 4, 1] i) { i = Identity(x) }>
        y = Flatten(s)
    }"""
    path = write(tmp_path / "net.onnx", text, last=np.array([-1]))
    omnigraph.export(path, "onnx", out=tmp_path / "net")
    with pytest.raises(UnsupportedError, match=r"If .*its branches give 2 and 3 axes; fix the"):
        omnigraph.export(path, "openvino", out=tmp_path / "net")
