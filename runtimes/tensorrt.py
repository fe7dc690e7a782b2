"""Runs ``tensorrt`` artifacts: engines of TensorRT-RTX or TensorRT, on an NVIDIA GPU."""

from __future__ import annotations

import importlib.util
import math
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from omnigraph.artifact import ProgramEntry
from omnigraph.errors import ArtifactError, DeviceError, InputError, RunError
from omnigraph.runtimes.base import Executable, Session
from omnigraph.runtimes.cuda_driver import Buffer, CudaContext, CudaError, Gpu, Stream, driver

#: The modules that an artifact may ask for; no other name in a manifest is ever imported.
_FLAVOURS = ("tensorrt_rtx", "tensorrt")


class TensorRtSession(Session):
    """A Session over TensorRT-RTX or TensorRT: device "cuda", or "cuda:1" for another GPU.

    One program runs at a time on the GPU; ``run`` may be called from any thread.
    """

    target = "tensorrt"
    purpose = "runs on NVIDIA GPUs, with TensorRT"

    @classmethod
    def unrunnable(cls) -> str | None:
        """Why no engine runs here, or None; whether one does, its own GPU and version decide."""
        if not any(importlib.util.find_spec(flavour) for flavour in _FLAVOURS):
            return (
                "tensorrt_rtx is not installed: pip install 'omnigraph[tensorrt]' (Linux, x86-64)"
            )
        try:
            return None if driver().gpus() else "there is no NVIDIA GPU here"
        except CudaError as error:
            return f"there is no NVIDIA GPU here: {error}"

    def _open_device(self, device: str) -> str:
        details = self._details(self.artifact.manifest["default_program"])
        gpu = choose_gpu(device, _gpus_here(details["compute"]), details["compute"])
        self._vendor = _import_vendor(details["flavour"], details["version"])
        self._context = CudaContext(gpu)
        self._engines: list[_Engine] = []
        return f"cuda:{gpu.index}"

    def _compile(self, name: str, entry: ProgramEntry) -> Executable:
        details = self._details(name)
        data = self.artifact.read(entry.files["model"])
        with self._context:
            engine = _Engine(self._vendor, self._context, name, entry, details["profile"], data)
        self._engines.append(engine)
        return engine

    def _details(self, program: str) -> Mapping[str, Any]:
        return self.artifact.programs[program].details

    def _release(self) -> None:
        with self._context:
            for engine in self._engines:
                engine.close()
        self._engines.clear()
        self._context.close()


class _Engine:
    """One program on the GPU: the vendor's engine, and memory for its inputs and outputs."""

    def __init__(
        self,
        vendor: Any,
        context: CudaContext,
        program: str,
        entry: ProgramEntry,
        profile: Mapping[str, Mapping[str, Sequence[int]]],
        data: np.ndarray,
    ) -> None:
        self._context, self._program, self._entry = context, program, entry
        self._lock = threading.Lock()
        self._log = _make_log(vendor)
        self._runtime = vendor.Runtime(self._log)
        self._engine = self._runtime.deserialize_cuda_engine(data)
        if self._engine is None:
            raise DeviceError(
                f"TensorRT does not load the engine of program {program!r}",
                found=self._log.first_error(),
                hint="an engine runs on the GPUs and with the version that it was made for",
            )
        self._execution = self._engine.create_execution_context()
        if self._execution is None:
            raise DeviceError(
                f"The GPU has no room to run program {program!r}",
                found=self._log.first_error(),
                hint="export with smaller maxima: --dynamic batch=1:4,sequence=1:512",
            )
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        host = {
            n for n in names if self._engine.get_tensor_location(n) == vendor.TensorLocation.HOST
        }
        #: Inputs in order: position, name, whether it is read on the host, least and largest shape.
        self._inputs = [
            (position, spec.name, spec.name in host, profile.get(spec.name))
            for position, spec in enumerate(entry.inputs)
            if spec.name in names
        ]
        self._buffers = {name: Buffer() for name in names if name not in host}
        self._stream = Stream()

    def __call__(self, arrays: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        arrays = [np.ascontiguousarray(array) for array in arrays]
        for position, name, _, limits in self._inputs:
            if limits is not None:
                check_limits(
                    self._program,
                    name,
                    self._entry.inputs[position].shape,
                    arrays[position],
                    limits,
                )
        with self._lock, self._context:
            if self._execution is None:
                raise DeviceError("This session is closed", hint="load the artifact again")
            self._log.clear()
            for position, name, on_host, _ in self._inputs:
                self._give(name, arrays[position], on_host)
            self._check(not self._execution.infer_shapes(), "cannot find the shapes of its outputs")
            results = [self._take(spec.name, np.dtype(spec.dtype)) for spec in self._entry.outputs]
            started = self._execution.execute_async_v3(self._stream.handle)
            self._check(started, "did not start")
            for spec, result in zip(self._entry.outputs, results, strict=True):
                self._stream.download(self._buffers[spec.name], result)
            self._stream.wait()
        return results

    def close(self) -> None:
        """Free what it holds on the GPU."""
        with self._lock:
            self._stream.close()
            for buffer in self._buffers.values():
                buffer.close()
            # The vendor's objects free themselves, the execution first.
            self._execution = self._engine = self._runtime = None

    def _give(self, name: str, array: np.ndarray, on_host: bool) -> None:
        """Set an input's shape, and the address of its data."""
        execution = self._execution
        shaped = execution.set_input_shape(name, array.shape)
        self._check(shaped, f"does not take input {name!r} of shape {list(array.shape)}")
        if on_host:
            execution.set_tensor_address(name, array.ctypes.data)
            return
        buffer = self._buffers[name]
        execution.set_tensor_address(name, buffer.reserve(array.nbytes))
        self._stream.upload(array, buffer)

    def _take(self, name: str, dtype: np.dtype) -> np.ndarray:
        """An array for an output, whose memory on the GPU is reserved."""
        shape = tuple(self._execution.get_tensor_shape(name))
        self._check(-1 not in shape, f"has an output {name!r} whose size depends on values")
        buffer = self._buffers[name]
        size = math.prod(shape) * dtype.itemsize
        self._execution.set_tensor_address(name, buffer.reserve(size))
        return np.empty(shape, dtype)

    def _check(self, passed: bool, what: str) -> None:
        if not passed:
            raise RunError(
                f"Program {self._program!r} {what} in TensorRT",
                found=self._log.first_error(),
                hint="run `omnigraph verify` on the artifact",
            )


def check_limits(
    program: str,
    name: str,
    dims: Sequence[int | str],
    array: np.ndarray,
    limits: Mapping[str, Sequence[int]],
) -> None:
    """Refuse an input outside the sizes that its engine was made for.

    Raises:
        InputError: naming the dimension, its limits and the size found.
    """
    for axis, size in enumerate(array.shape):
        least, most = limits["min"][axis], limits["max"][axis]
        if not least <= size <= most:
            raise InputError(
                f"Input {name!r} of program {program!r} is outside the sizes that its engine was "
                f"made for: {dims[axis]!r} on axis {axis}",
                expected=f"{least} to {most}",
                found=size,
                hint=f"export again with --dynamic {dims[axis]}=MIN:MAX that has this size",
            )


def _make_log(vendor: Any) -> Any:
    """A logger for the vendor's runtime that keeps its errors and drops the rest."""

    class Log(vendor.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self._errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (vendor.ILogger.INTERNAL_ERROR, vendor.ILogger.ERROR):
                self._errors.append(message)

        def first_error(self) -> str:
            return self._errors[0].splitlines()[0][:300] if self._errors else "no error was given"

        def clear(self) -> None:
            self._errors.clear()

    return Log()


def _gpus_here(capabilities: Sequence[str]) -> Sequence[Gpu]:
    """The GPUs of this machine.

    Raises:
        DeviceError: there is no driver, or it has none.
    """
    try:
        found = driver().gpus()
    except CudaError as error:
        raise DeviceError(
            "This artifact holds TensorRT engines, and there is no NVIDIA GPU here to run them",
            expected=_made_for(capabilities),
            found=str(error),
            hint="copy the artifact to a machine with such a GPU, or export with --target onnx",
        ) from error
    return found


def choose_gpu(device: str, gpus: Sequence[Gpu], capabilities: Sequence[str]) -> Gpu:
    """The GPU that ``device`` ("auto", "cuda" or "cuda:N") stands for, which can run the engine.

    Raises:
        DeviceError: there is none of that name, or none that the engine was made for.
    """
    kind, _, number = device.partition(":")
    if device != "auto" and (kind != "cuda" or (number and not number.isdigit())):
        raise DeviceError(
            f"A tensorrt artifact cannot run on device {device!r}",
            expected="auto, cuda, or cuda:1 for another GPU",
            hint=f"this one needs {_made_for(capabilities)}",
        )
    named = [gpu for gpu in gpus if not number or gpu.index == int(number)]
    for gpu in named:
        if gpu.capability in capabilities:
            return gpu
    raise DeviceError(
        "This artifact's TensorRT engines were not made for the GPU that is here",
        expected=_made_for(capabilities),
        found=", ".join(f"{g.name} ({g.capability})" for g in named) or "no such GPU",
        hint="export again with --set compute=CAPABILITY, or with --target onnx for other GPUs",
    )


def _made_for(capabilities: Sequence[str]) -> str:
    return f"an NVIDIA GPU of compute capability {' or '.join(capabilities)}"


def _import_vendor(flavour: str, version: str) -> Any:
    """The vendor's runtime that an engine was made with, in exactly that version.

    Raises:
        ArtifactError: the artifact asks for another module.
        DeviceError: it is not installed, or another version is.
    """
    if flavour not in _FLAVOURS:
        raise ArtifactError(
            "A tensorrt artifact asks for an unknown runtime",
            expected=" or ".join(_FLAVOURS),
            found=repr(flavour),
            hint="do not use this artifact: it was not written by omnigraph",
        )
    try:
        vendor = importlib.import_module(flavour)
    except ImportError as error:
        raise DeviceError(
            f"{flavour} is not installed, and this artifact's engines run on it",
            expected=f"{flavour} {version}",
            hint="pip install 'omnigraph[tensorrt]'",
        ) from error
    if vendor.__version__ != version:
        raise DeviceError(
            f"The engines of this artifact are for another version of {flavour}",
            expected=version,
            found=vendor.__version__,
            hint=f"pip install a {flavour} of that version, or export again with this one",
        )
    return vendor


SESSION = TensorRtSession
