"""A model that loops without end is stopped, and the export says so."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from onnx import helper as make

import omnigraph
from omnigraph.contract import graph_check
from omnigraph.contract.graph_check import FileRunner
from omnigraph.contract.time_limit import VARIABLE, limited, time_limit
from omnigraph.errors import GraphError, OmniGraphError, UsageError


def endless(path: Path) -> Path:
    """A file whose Loop goes on for as long as its input is above zero."""
    body = make.make_graph(
        [
            make.make_node("Identity", ["go"], ["go_on"]),
            make.make_node("Mul", ["held", "one"], ["next"]),
        ],
        "body",
        [
            make.make_tensor_value_info("turn", TensorProto.INT64, []),
            make.make_tensor_value_info("go", TensorProto.BOOL, []),
            make.make_tensor_value_info("held", TensorProto.FLOAT, ["n"]),
        ],
        [
            make.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            make.make_tensor_value_info("next", TensorProto.FLOAT, ["n"]),
        ],
        [make.make_tensor("one", TensorProto.FLOAT, [], [1.0])],
    )
    nodes = [
        make.make_node("ReduceSumSquare", ["x"], ["size"], keepdims=0),
        make.make_node("GreaterOrEqual", ["size", "zero"], ["start"]),
        make.make_node("Loop", ["", "start", "x"], ["y"], body=body),
    ]
    graph = make.make_graph(
        nodes,
        "endless",
        [make.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])],
        [make.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])],
        [make.make_tensor("zero", TensorProto.FLOAT, [], [0.0])],
    )
    onnx.save(make.make_model(graph, opset_imports=[make.make_opsetid("", 18)]), path)
    return path


def test_an_endless_loop_is_stopped(tmp_path: Path, monkeypatch):
    monkeypatch.setenv(VARIABLE, "0.3")
    runner = FileRunner(endless(tmp_path / "endless.onnx"))
    start = time.perf_counter()
    with pytest.raises(GraphError, match=rf"an end within 0\.3 seconds[\s\S]*{VARIABLE}=SECONDS"):
        runner.run({"x": np.ones(3, np.float32)})
    assert time.perf_counter() - start < 30


@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_the_export_of_an_endless_loop_is_refused(tmp_path: Path, monkeypatch, target: str):
    monkeypatch.setenv(VARIABLE, "0.3")
    path = endless(tmp_path / "endless.onnx")
    runs = []
    with monkeypatch.context() as patch:
        patch.setattr(graph_check, "limited", lambda *given: runs.append(1) or limited(*given))
        with pytest.raises(OmniGraphError, match="did not end in onnxruntime"):
            omnigraph.export(str(path), target, out=tmp_path / "net.omni")
    assert not (tmp_path / "net.omni").exists()
    assert len(runs) == 1  # no other size is tried, for as long again


def test_an_export_names_a_limit_that_is_no_time(tmp_path: Path, monkeypatch):
    monkeypatch.setenv(VARIABLE, "soon")
    path = endless(tmp_path / "endless.onnx")
    with pytest.raises(UsageError, match=f"^{VARIABLE} is not a time"):
        omnigraph.export(str(path), "onnx", out=tmp_path / "net.omni")


def test_an_error_before_the_end_stays_what_it_is():
    with pytest.raises(ZeroDivisionError), limited("a run", None):
        _ = 1 / 0


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "soon"])
def test_a_limit_that_is_no_time_is_refused(monkeypatch, text: str):
    monkeypatch.setenv(VARIABLE, text)
    with pytest.raises(UsageError, match=VARIABLE):
        time_limit()
