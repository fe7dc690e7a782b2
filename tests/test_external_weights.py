"""Weights beside the protobuf: moved and brought back, and their bytes."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from linear_graphs import layer

from omnigraph.external_weights import external_weights, tensor_bytes


def test_weights_come_back_whatever_happens():
    graph = layer(inner=64, outer=32)
    before = graph.graph.initializers["w"].const_value

    def move_and_fail() -> None:
        with external_weights(graph, lambda name, _: (f"{name}.bin", 128), least_bytes=1024):
            moved = graph.graph.initializers["w"].const_value
            assert isinstance(moved, ir.ExternalTensor)
            assert (moved.location, moved.offset, moved.length) == ("w.bin", 128, 64 * 32 * 4)
            assert graph.graph.initializers["b"].const_value.numpy().shape == (32,)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        move_and_fail()
    assert graph.graph.initializers["w"].const_value is before


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int64, np.bool_, ml_dtypes.bfloat16])
def test_the_bytes_of_a_tensor_are_those_that_onnx_stores(dtype):
    array = np.random.default_rng(6).integers(0, 2, (5, 3)).astype(dtype)
    assert bytes(tensor_bytes(ir.tensor(array))) == array.tobytes()
    assert bytes(tensor_bytes(ir.tensor(array.T))) == array.T.tobytes()
    assert bytes(tensor_bytes(ir.tensor(array[:0]))) == b""


def test_the_bytes_of_a_tensor_are_not_copied():
    array = np.arange(1000, dtype=np.float32)
    view = np.frombuffer(tensor_bytes(ir.tensor(array)), np.uint8)
    assert view.ctypes.data == array.ctypes.data


def test_small_weights_of_a_file_come_inside(tmp_path: Path):
    ir.save(layer(), tmp_path / "model.onnx", external_data="model.data", size_threshold_bytes=0)
    graph = ir.load(tmp_path / "model.onnx")
    before = {name: v.const_value for name, v in graph.graph.initializers.items()}
    assert all(isinstance(tensor, ir.ExternalTensor) for tensor in before.values())
    with external_weights(graph, lambda *_: ("weights", 0), least_bytes=100):
        kinds = {n: type(v.const_value) for n, v in graph.graph.initializers.items()}
        assert kinds["b"] is ir.Tensor and kinds["w"] is ir.ExternalTensor
        assert graph.graph.initializers["w"].const_value.location == "weights"
    assert {n: v.const_value for n, v in graph.graph.initializers.items()} == before
