"""Runs an OpenVINO IR in f32, with its quantizers of activations taken out.

OpenVINO's frontend makes of a QuantizeLinear a FakeQuantize and a Convert to integers, and of a
DequantizeLinear a Convert, a Subtract where the zero point is not 0, and a Multiply.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from omnigraph.artifact import Artifact
from omnigraph.contract.comparison import Run
from omnigraph.errors import RunError
from omnigraph.runtimes.openvino_package import import_openvino
from omnigraph.runtimes.vendor_errors import message_of

if TYPE_CHECKING:
    import openvino

#: Everything in f32, as it is written: no type of the plugin's own choice.
_CONFIG = {
    "INFERENCE_PRECISION_HINT": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
    "KV_CACHE_PRECISION": "f32",
    "PERFORMANCE_HINT": "LATENCY",
}
_NO_WEIGHTS = np.empty(0, np.uint8)
_MOVES = ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "StridedSlice", "Slice", "Gather")


@contextmanager
def run_unrounded(artifact: Artifact, program: str) -> Iterator[Run]:
    """Give the function that runs a program of an artifact without rounding any activation."""
    ov = import_openvino()
    files = artifact.programs[program].files
    weights = np.array(artifact.read(files["weights"])) if "weights" in files else _NO_WEIGHTS
    model = ov.Core().read_model(artifact.read(files["model"]).tobytes(), ov.Tensor(weights))
    for op in model.get_ordered_ops():
        if op.get_type_name() == "FakeQuantize":
            _take_out(op)
    model.validate_nodes_and_infer_types()
    compiled = ov.Core().compile_model(model, "CPU", _CONFIG)
    request = compiled.create_infer_request()
    names = [spec.name for spec in artifact.programs[program].inputs]

    def run(feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        try:
            results = request.infer({name: feeds[name] for name in names})
        except RuntimeError as error:
            raise RunError(
                f"Program {program!r} failed in OpenVINO, without rounding",
                found=message_of(error),
                hint="the same sizes run in onnxruntime: fix the dimension with --dynamic",
            ) from error
        return {name: results[port].copy() for port in compiled.outputs for name in port.names}

    yield run


def _take_out(quantizer: openvino.Node) -> None:
    """Let what reads a quantized and dequantized value read the value itself."""
    source = quantizer.input_value(0)
    if source.get_node().get_type_name() == "Constant":
        return
    integers = [target.get_node() for target in quantizer.output(0).get_target_inputs()]
    if not all(node.get_type_name() == "Convert" for node in integers):
        return
    ends = [list(_ends(node)) for node in integers]
    if any(None in found or not found for found in ends):
        return
    if not all(_same_grid(quantizer, *pair) for found in ends for pair in filter(None, found)):
        return  # what is dequantized otherwise than it was quantized is not only rounded
    for node, found in zip(integers, ends, strict=True):
        for first, last in filter(None, found):
            last.output(0).replace(first.input_value(0))
        node.output(0).replace(source)


def _ends(
    node: openvino.Node,
) -> Iterator[tuple[openvino.Node, openvino.Node] | None]:
    """The first and the last node of each dequantization of a value; None is another reader."""
    for target in node.output(0).get_target_inputs():
        user = target.get_node()
        if user.get_type_name() in _MOVES:
            yield from _ends(user)
        elif user.get_type_name() == "Convert":
            yield _dequantization(user)
        else:
            yield None


def _dequantization(convert: openvino.Node) -> tuple[openvino.Node, openvino.Node] | None:
    node = _only_reader(convert)
    if node is not None and node.get_type_name() == "Subtract":
        node = _only_reader(node)
    if node is None or node.get_type_name() != "Multiply":
        return None
    return convert, node


def _same_grid(quantizer: openvino.Node, first: openvino.Node, last: openvino.Node) -> bool:
    """Whether a value is dequantized with the scale and the zero point of its quantizer."""
    nodes = [quantizer.input_value(i).get_node() for i in range(1, 5)]
    before = last.input_value(0).get_node()
    nodes += [last.input_value(1).get_node()]
    nodes += [before.input_value(1).get_node()] if before is not first else []
    numbers = [number for node in nodes if (number := _number(node)) is not None]
    if len(numbers) < len(nodes):
        return False
    low, high, least, most, scale, zero = (*numbers, 0.0)[:6]
    ends = [scale * (end - zero) for end in (least, most)]
    return bool(np.allclose(ends, [low, high], rtol=1e-4, atol=1e-4 * abs(scale)))


def _number(node: openvino.Node) -> float | None:
    """The number of a constant, also behind a Convert; None where there is none."""
    if node.get_type_name() == "Convert":
        node = node.input_value(0).get_node()
    if node.get_type_name() != "Constant":
        return None
    data = np.asarray(node.get_data(), np.float32).reshape(-1)
    return float(data[0]) if data.size and (data == data[0]).all() else None


def _only_reader(node: openvino.Node) -> openvino.Node | None:
    readers = list(node.output(0).get_target_inputs())
    return readers[0].get_node() if len(readers) == 1 else None
