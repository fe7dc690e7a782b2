"""What OpenVINO's kernels take of integers: the schemes of the ``openvino`` target."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from omnigraph.passes.analysis.quantization.scheme import PER_CHANNEL, UNSIGNED, Scheme
from omnigraph.passes.analysis.quantization.weight_rounding import WeightGrid

#: By precision, the default first; None is floats alone.
SCHEMES: Mapping[str, Scheme | None] = {
    "fp32": None,
    "fp16": None,
    "bf16": None,
    "int8": Scheme(PER_CHANNEL, UNSIGNED),
    # Where weights alone are integers, OpenVINO quantizes activations at run time, in groups that
    # its session asks for. Without that, it widens the weights, which takes longer than bf16.
    "int8-dynamic": Scheme(PER_CHANNEL, runtime_group=128),
    "int8-weights": Scheme(PER_CHANNEL, runtime_group=32),
    "int4-weights": Scheme(WeightGrid(ir.DataType.UINT4, 64), runtime_group=32),
}
