"""Runs ``openvino`` artifacts with OpenVINO."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util
import mmap
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from omnigraph.artifact import ProgramEntry
from omnigraph.errors import ArtifactError, DeviceError
from omnigraph.precision import quantizes
from omnigraph.runtimes.base import Executable, Session
from omnigraph.runtimes.kernels import Kernel
from omnigraph.runtimes.openvino_package import import_openvino
from omnigraph.runtimes.versions import check_version

if TYPE_CHECKING:
    import openvino

#: The kinds of device that the artifacts of the target may run on.
_DEVICES = ("cpu", "gpu", "npu")
#: The type that floats are computed in where the manifest names none: the widest. A type is always
#: set, since OpenVINO would choose bf16 by itself on a CPU that has it, and fp16 on a GPU.
_WIDEST = "f32"
#: Its plugins compute 64 bits in 32, and take the lower half of an integer that needs more.
_NARROWED = {"int64": "int32", "uint64": "int32", "uint32": "int32", "float64": "float32"}
#: Whether OpenVINO multiplies quantized activations on a CPU as integers, or as floats of the same
#: quantized values. It is a key of its own plugins, which its documentation does not list.
_INTEGER_MATMULS = "LP_TRANSFORMS_MODE"
#: Stored integers are then multiplied in floats, and no activation is rounded.
_NO_GROUP = 0
#: Seconds between two releases of the pages that compiling has read.
_SWEEP = 0.02


class OpenVinoSession(Session):
    """A Session over OpenVINO: device "cpu", or "gpu" or "npu" where there is one."""

    target = "openvino"
    purpose = "runs on OpenVINO"
    narrowed = _NARROWED

    @classmethod
    def unrunnable(cls) -> str | None:
        """Why OpenVINO does not run here, or None."""
        if importlib.util.find_spec("openvino") is None:
            return "openvino is not installed: pip install 'omnigraph[openvino]'"
        return None

    def _open_device(self, device: str) -> str:
        check_version("openvino", _openvino().__version__, self.artifact)
        self._core = _openvino().Core()
        here = [name.lower() for name in self._core.available_devices]
        made_for = self.artifact.manifest["device"]
        chosen = made_for if device == "auto" else device.lower()
        found = chosen in here or any(name.startswith(f"{chosen}.") for name in here)
        if found and chosen.split(".")[0] in _DEVICES:
            return chosen
        raise DeviceError(
            f"OpenVINO cannot run on device {chosen!r} here",
            expected=" or ".join(["auto", *here]),
            hint="a GPU or NPU needs its driver; device='cpu' always runs",
        )

    def _compile(self, name: str, entry: ProgramEntry) -> Executable:
        compiled, weights = self._load(entry)
        return _executable(compiled, entry, weights)

    def kernels(self, program: str | None = None) -> list[Kernel]:
        """The kernels that one program runs, by OpenVINO's own description of what it compiled.

        Raises:
            InputError: there is no such program.
        """
        compiled, _weights = self._load(self.entry(program))
        found = []
        for op in compiled.get_runtime_model().get_ordered_ops():
            about = {key: str(value.value) for key, value in op.get_rt_info().items()}
            kind = f"{about.get('layerType', '')} {about.get('primitiveType', '')}".strip()
            nodes = about.get("originalLayersNames", "")
            found.append(Kernel(kind, tuple(filter(None, nodes.split(",")))))
        return found

    def _load(self, entry: ProgramEntry) -> tuple[openvino.CompiledModel, np.ndarray]:
        """A compiled program, and its mapped weights, which it reads in place."""
        xml = self.artifact.read(entry.files["model"]).tobytes()
        weights = (
            self.artifact.read(entry.files["weights"])
            if "weights" in entry.files
            else np.empty(0, np.uint8)
        )
        model = self._core.read_model(xml, _tensor_over(weights))
        config = self._config(entry)
        if self.device == "cpu" and _multiplies_integers(model) and sums_saturate():
            config[_INTEGER_MATMULS] = False
        with _pages_released(weights):
            compiled = self._core.compile_model(model, self.device.upper(), config)
        return compiled, weights

    def _config(self, entry: ProgramEntry) -> dict[str, Any]:
        """Properties of a compiled program, as the target wrote them into the manifest."""
        kind = self.device.split(".")[0]
        config: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": entry.details.get("execution", {}).get(kind, _WIDEST),
        }
        group = entry.details.get("dynamic_quantization_group")
        if not quantizes(self.artifact.manifest["precision"]):
            group = _NO_GROUP
        if kind == "cpu" and group is not None:
            config["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = group
        if self.threads is not None and self.device == "cpu":
            config["INFERENCE_NUM_THREADS"] = self.threads
        return config

    def _release(self) -> None:
        del self._core


def _multiplies_integers(model: openvino.Model) -> bool:
    return any(op.get_type_name() == "FakeQuantize" for op in model.get_ops())


@functools.cache
def sums_saturate() -> bool:
    """Whether sums of products of 8-bit integers saturate on this CPU.

    Without VNNI, x86 adds two products u8 * s8 in 16 bits, which saturate (``vpmaddubsw``; oneDNN,
    "Nuances of int8 computations"). No property of OpenVINO reports this, so we multiply the
    largest quantized values, once per process.
    """
    ops = _openvino().opset15
    x = ops.parameter([1, 16], np.float32)
    low, high = np.float32(0), np.float32(255)
    quantized = ops.fake_quantize(x, low, high, low, high, 256)
    weight = ops.convert(ops.constant(np.full((16, 16), 127, np.int8)), np.float32)
    product = ops.matmul(quantized, ops.multiply(weight, np.float32(1)), False, False)
    model = _openvino().Model([product], [x])
    config = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    found = _openvino().Core().compile_model(model, "CPU", config)(np.full((1, 16), high))[0]
    return bool((found != 16 * 255 * 127).any())


def _executable(
    compiled: openvino.CompiledModel, entry: ProgramEntry, weights: np.ndarray
) -> Executable:
    """A function that runs ``compiled``, from any thread.

    Inputs are read in place. Each run has output tensors of its own, which OpenVINO resizes and
    fills: nothing is copied, and no later run overwrites them.
    """
    tensor = _openvino().Tensor
    inputs = [_position(compiled.inputs, spec.name) for spec in entry.inputs]
    outputs = []
    for spec in entry.outputs:
        position = _position(compiled.outputs, spec.name)
        port = compiled.outputs[position]
        least = [dim.get_min_length() for dim in port.get_partial_shape()]
        outputs.append((position, port.get_element_type(), _openvino().Shape(least)))
    idle: list[openvino.InferRequest] = []  # its append and pop are atomic

    def execute(arrays: Sequence[np.ndarray], _keep: np.ndarray = weights) -> list[np.ndarray]:
        try:
            request = idle.pop()
        except IndexError:
            request = compiled.create_infer_request()
        # OpenVINO shares no other arrays, and keeps none alive: they are held until the run ends.
        shared = [a if a.flags.carray else a.copy(order="C") for a in arrays]
        for position, array in zip(inputs, shared, strict=True):
            request.set_input_tensor(position, tensor(array, shared_memory=True))
        results = []
        for position, kind, shape in outputs:
            result = tensor(kind, shape)
            request.set_output_tensor(position, result)
            results.append(result)
        request.infer()
        idle.append(request)  # a request that failed is not used again
        return [result.data for result in results]

    return execute


def _position(ports: Sequence[Any], name: str) -> int:
    """The position of a program's input or output.

    Raises:
        ArtifactError: the vendor's file has none of this name, which the manifest names.
    """
    for position, port in enumerate(ports):
        if name in port.get_names():
            return position
    raise ArtifactError(
        f"The manifest names a tensor {name!r} that the OpenVINO program does not have",
        expected=", ".join(min(port.get_names(), default="?") for port in ports),
        found=name,
        hint="export the model again",
    )


def _tensor_over(data: np.ndarray) -> openvino.Tensor:
    """A tensor that shares mapped bytes; OpenVINO reads weights, and never writes them."""
    if not data.size:
        return _openvino().Tensor(np.empty(0, np.uint8))
    # OpenVINO does not share read-only arrays of numpy, such as a mapped file.
    buffer = (ctypes.c_uint8 * data.size).from_address(data.ctypes.data)
    return _openvino().Tensor(np.ctypeslib.as_array(buffer), shared_memory=True)


@contextlib.contextmanager
def _pages_released(data: np.ndarray) -> Iterator[None]:
    """Release mapped pages while they are read, so that weights are not resident twice.

    Compiling reads each weight once, into a layout of its own. The pages stay in the system's
    cache, and are mapped again when something still reads them, such as an embedding.
    """
    mapped: Any = data
    while isinstance(mapped, np.ndarray):
        mapped = mapped.base
    if isinstance(mapped, memoryview):
        mapped = mapped.obj
    if not isinstance(mapped, mmap.mmap) or not hasattr(mmap, "MADV_DONTNEED"):
        yield
        return
    done = threading.Event()

    def sweep() -> None:
        while not done.wait(_SWEEP):
            mapped.madvise(mmap.MADV_DONTNEED)
        mapped.madvise(mmap.MADV_DONTNEED)

    sweeper = threading.Thread(target=sweep, name="omnigraph-pages", daemon=True)
    sweeper.start()
    try:
        yield
    finally:
        done.set()
        sweeper.join()


def _openvino() -> Any:
    try:
        return import_openvino()
    except ImportError as error:
        raise DeviceError(
            "OpenVINO is not installed, and this artifact runs on it",
            hint="pip install 'omnigraph[openvino]'",
        ) from error


SESSION = OpenVinoSession
