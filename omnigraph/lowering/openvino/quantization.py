"""The precisions of the ``openvino`` target: their schemes, and what its runtime must know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir

from omnigraph.passes.analysis.quantization.scheme import PER_CHANNEL, UNSIGNED, Scheme
from omnigraph.passes.analysis.quantization.weight_rounding import WeightGrid

#: By precision, the default first; None is floats only.
SCHEMES: Mapping[str, Scheme | None] = {
    "fp32": None,
    "fp16": None,
    "bf16": None,
    # With sensitive layers in groups of 128, MiniLM ran 4% to 8% faster than in groups of 32.
    "int8": Scheme(PER_CHANNEL, UNSIGNED, finer=Scheme(PER_CHANNEL, runtime_group=128)),
    # Where only weights are quantized, OpenVINO quantizes activations at run time, in groups whose
    # size the Session sets. Without groups, it dequantizes the weights, which is slower than bf16.
    "int8-dynamic": Scheme(PER_CHANNEL, runtime_group=128),
    "int8-weights": Scheme(PER_CHANNEL, runtime_group=32),
    "int4-weights": Scheme(WeightGrid(ir.DataType.UINT4, 64), runtime_group=32),
}

#: The type that a device computes floats in, where it is not its half type.
_EXECUTION = {
    "cpu": {"fp32": "f32", "fp16": "f32"},
    "gpu": {"fp32": "f32"},
    "npu": {},
}
_HALF = {"cpu": "bf16", "gpu": "f16", "npu": "f16"}


def runtime_details(precision: str) -> dict[str, Any]:
    """What the runtime must know of a precision, as JSON-ready fields of the manifest.

    Returns:
        ``execution``: by device, the type that floats are computed in. Where activations are
        quantized at run time, of all layers or of sensitive ones, ``dynamic_quantization_group``:
        the size of a group.
    """
    execution = {
        device: types.get(precision, _HALF[device]) for device, types in _EXECUTION.items()
    }
    details: dict[str, Any] = {"execution": execution}
    if (scheme := SCHEMES[precision]) is not None:
        group = (scheme.finer or scheme).runtime_group
        if group is not None:
            details["dynamic_quantization_group"] = group
    return details
