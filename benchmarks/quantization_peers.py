"""The vendors' own quantization of a plain export, as their documentation says to call it."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

Feeds = Mapping[str, np.ndarray]
Call = Callable[[Feeds], np.ndarray]
#: int4 weights of nncf: as ours, 64 terms share a scale and a zero point.
_GROUP = 64
#: What the sizes of a plain export are below.
_LONGEST = 1024


def plain_onnx(
    module: nn.Module,
    example: Mapping[str, torch.Tensor],
    path: Path,
    axes: Mapping[str, Mapping[int, str]] | None = None,
) -> Path:
    """What torch's own exporter gives, without any of our passes.

    Args:
        axes: the axes of any size, by input; by default all inputs are [batch, sequence].
    """
    if axes is None:
        sides = {n: "decoder_" * n.startswith("decoder") + "sequence" for n in example}
        axes = {name: {0: "batch", 1: side} for name, side in sides.items()}
    shapes = {
        name: {axis: torch.export.Dim(dim, max=_LONGEST) for axis, dim in axes[name].items()}
        for name in example
    }
    with torch.no_grad():
        torch.onnx.export(
            module,
            (),
            path,
            kwargs=dict(example),
            dynamo=True,
            opset_version=20,
            dynamic_shapes=shapes,
            external_data=True,
            verbose=False,
        )
    return path


def plain_openvino(module: nn.Module, example: Mapping[str, torch.Tensor], path: Path) -> Path:
    """What OpenVINO's own converter makes of a module, in the form that all of nncf takes."""
    import openvino

    model = openvino.convert_model(module, example_input=dict(example))
    openvino.save_model(model, path, compress_to_fp16=False)
    return path


def nncf_models(
    plain: Path, samples: Iterable[Feeds], folder: Path, kinds: Iterable[str]
) -> dict[str, Path]:
    """nncf's post-training INT8, and its compression of weights, as IR files by their kind.

    Args:
        plain: the ONNX file, or the IR of `plain_openvino`.
        samples: what to calibrate on.
        kinds: out of "int8", "int8-weights", "int4-weights", and "int4-weights all", which has
            AWQ, scale estimation and GPTQ switched on (and takes no ONNX file).
    """
    import nncf
    import openvino

    nncf.set_log_level(logging.ERROR)
    data, core, made = list(samples), openvino.Core(), {}
    for kind in kinds:
        model = core.read_model(plain)
        taken = {port.any_name for port in model.inputs}
        dataset = nncf.Dataset([{k: v for k, v in s.items() if k in taken} for s in data])
        if kind == "int8":
            model = nncf.quantize(
                model,
                dataset,
                model_type=nncf.ModelType.TRANSFORMER,
                subset_size=len(data),
            )
        elif kind == "int8-weights":
            model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_ASYM)
        else:
            everything = {"awq": True, "scale_estimation": True, "gptq": True, "dataset": dataset}
            model = nncf.compress_weights(
                model,
                mode=nncf.CompressWeightsMode.INT4_ASYM,
                group_size=_GROUP,
                ratio=1.0,
                **(everything if kind.endswith("all") else {}),
            )
        made[kind] = folder / f"nncf-{kind.replace(' ', '-')}.xml"
        openvino.save_model(model, made[kind], compress_to_fp16=False)
    return made


def openvino_call(path: Path, output: int = 0, threads: int | None = None) -> Call:
    """An IR on the CPU, in OpenVINO's own choice of types."""
    import openvino

    config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
    if threads is not None:
        config["INFERENCE_NUM_THREADS"] = threads
    compiled = openvino.Core().compile_model(path, "CPU", config)
    names = [port.any_name for port in compiled.inputs]
    request = compiled.create_infer_request()

    def call(feeds: Feeds) -> np.ndarray:
        return request.infer({name: feeds[name] for name in names})[output].copy()

    return call


def onnxruntime_dynamic(plain: Path, folder: Path) -> Path:
    """onnxruntime's own dynamic INT8 of every product."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    out = folder / "onnxruntime-dynamic.onnx"
    with tempfile.TemporaryDirectory():
        quantize_dynamic(
            plain,
            out,
            op_types_to_quantize=["MatMul", "Gemm", "Gather"],
            per_channel=True,
            weight_type=QuantType.QInt8,
        )
    return out


def onnxruntime_call(path: Path, threads: int | None = None) -> Call:
    """An ONNX file on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]

    def call(feeds: Feeds) -> np.ndarray:
        return session.run(None, {name: feeds[name] for name in names})[0]

    return call


def stored_bytes(path: Path) -> int:
    """A model's file and the files of its weights beside it."""
    beside = (path, path.with_suffix(".bin"), Path(f"{path}.data"))
    return sum(p.stat().st_size for p in beside if p.exists())
