"""Runs ``onnx`` artifacts with onnxruntime."""

from __future__ import annotations

import functools
import importlib.util
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from omnigraph.artifact import ProgramEntry
from omnigraph.errors import DeviceError
from omnigraph.precision import quantizes
from omnigraph.runtimes.base import Executable, Session
from omnigraph.runtimes.kernels import Kernel
from omnigraph.runtimes.variants import MISSED
from omnigraph.runtimes.versions import check_version

if TYPE_CHECKING:
    import onnxruntime

_FROM_MEMORY = "add_external_initializers_from_files_in_memory"
#: Rewrites of onnxruntime at load that are slower on CPUs than what they replace: its
#: SkipLayerNormalization takes 2 to 6 times as long as an Add and a LayerNormalization
#: (``python -m benchmarks.kernels --only residual``).
_SLOWER_ON_CPU = ["SkipLayerNormFusion"]
#: With this option onnxruntime multiplies u8 * u8, whose sums do not saturate, in place of u8 * s8.
#: It takes about twice as long on a CPU with VNNI, where no sum saturates.
_NO_SATURATION = ("session.x64quantprecision", "1")
#: How many activations share a scale where onnxruntime multiplies by weights with a scale for each
#: output channel: what the target's schemes say. With its own choice, 32, products of 8-bit weights
#: take a third more time.
_GROUP = ("session.qdq_matmulnbits_block_size", "128")
#: With this option onnxruntime multiplies stored integers in float32, and rounds no activation.
_IN_FLOATS = ("session.qdq_matmulnbits_accuracy_level", "1")
#: An ONNX model with one node, y = MatMulInteger(x: uint8[1, 16], w: int8[16, 16]), at opset 13. As
#: bytes, since what runs an artifact has no onnx to make it with.
_PRODUCT = (
    b'\x08\x08\x12\x00:\\\n\x18\n\x01x\n\x01w\x12\x01y"\rMatMulInteger\x12\x01g'
    b"Z\x13\n\x01x\x12\x0e\n\x0c\x08\x02\x12\x08\n\x02\x08\x01\n\x02\x08\x10"
    b"Z\x13\n\x01w\x12\x0e\n\x0c\x08\x03\x12\x08\n\x02\x08\x10\n\x02\x08\x10"
    b"b\x13\n\x01y\x12\x0e\n\x0c\x08\x06\x12\x08\n\x02\x08\x01\n\x02\x08\x10"
    b"B\x04\n\x00\x10\r"
)
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class OnnxSession(Session):
    """A Session over onnxruntime: device "cpu", or "cuda" where its provider is installed."""

    target = "onnx"
    purpose = "runs on onnxruntime"

    @classmethod
    def unrunnable(cls) -> str | None:
        """Why onnxruntime does not run here, or None."""
        if importlib.util.find_spec("onnxruntime") is None:
            return "onnxruntime is not installed: pip install 'omnigraph[onnx]'"
        return None

    def _open_device(self, device: str) -> str:
        ort = _onnxruntime()
        check_version("onnxruntime", ort.__version__, self.artifact)
        here = [
            d for d, provider in _PROVIDERS.items() if provider in ort.get_available_providers()
        ]
        made_for = self.artifact.manifest["device"]
        chosen = (made_for if made_for in here else "cpu") if device == "auto" else device
        if chosen not in here:
            raise DeviceError(
                f"onnxruntime cannot run on device {device!r} here",
                expected=" or ".join(["auto", *here]),
                hint="leave the device out; onnxruntime-gpu brings the CUDA provider",
            )
        return chosen

    def _compile(self, name: str, entry: ProgramEntry) -> Executable:
        options = _onnxruntime().SessionOptions()
        if name == self._variants.gates:
            # Threads of its own would keep spinning while the chosen variant runs.
            options.intra_op_num_threads = 1
        return _executable(self._load(entry, options), entry)

    def kernels(self, program: str | None = None) -> list[Kernel] | None:
        """The kernels that one program runs, by onnxruntime's own profile of its golden inputs.

        None where the artifact has no golden inputs of the program.

        Raises:
            InputError: there is no such program.
        """
        entry = self.entry(program)
        if entry.golden is None:
            return None
        name = self._default if program is None else program
        feeds, _ = self.artifact.golden_pair(name, without=(MISSED,))
        with tempfile.TemporaryDirectory() as scratch:
            options = _onnxruntime().SessionOptions()
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(scratch) / "profile")
            session = self._load(entry, options)
            session.run(None, feeds)
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        return [
            Kernel(
                f"{event['args']['op_name']} on {event['args']['provider']}",
                (event["name"].removesuffix("_kernel_time"),),
            )
            for event in events
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")
        ]

    def _load(
        self, entry: ProgramEntry, options: onnxruntime.SessionOptions
    ) -> onnxruntime.InferenceSession:
        ort = _onnxruntime()
        options.log_severity_level = 3
        if self.device == "cpu":
            options.add_session_config_entry(*_GROUP)
            if not quantizes(self.artifact.manifest["precision"]):
                options.add_session_config_entry(*_IN_FLOATS)
            if sums_saturate():
                options.add_session_config_entry(*_NO_SATURATION)
        if self.threads is not None and not options.intra_op_num_threads:
            options.intra_op_num_threads = self.threads
        how = {
            "providers": [_PROVIDERS[self.device]],
            "disabled_optimizers": _SLOWER_ON_CPU if self.device == "cpu" else [],
        }
        path = self.artifact.file(entry.files["model"])
        weights = entry.files.get("weights")
        if path is not None:
            session = ort.InferenceSession(str(path), options, **how)
        elif weights and not hasattr(options, _FROM_MEMORY):
            # onnxruntime before 1.24 reads weights from files only.
            with tempfile.TemporaryDirectory() as scratch:
                for file in entry.files.values():
                    self.artifact.read(file).tofile(Path(scratch) / file)
                model = Path(scratch) / entry.files["model"]
                session = ort.InferenceSession(str(model), options, **how)
        else:
            # From a single file: the graph as bytes, and the weights where they are mapped.
            if weights:
                data = self.artifact.read(weights)
                getattr(options, _FROM_MEMORY)([weights], [data], [len(data)])
            graph = self.artifact.read(entry.files["model"]).tobytes()
            session = ort.InferenceSession(graph, options, **how)
        return session


def _executable(session: onnxruntime.InferenceSession, entry: ProgramEntry) -> Executable:
    names = [spec.name for spec in entry.inputs]
    outputs = [spec.name for spec in entry.outputs]

    def execute(arrays: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        return session.run(outputs, dict(zip(names, arrays, strict=True)))

    return execute


@functools.cache
def sums_saturate() -> bool:
    """Whether onnxruntime's sums of products of 8-bit integers saturate on this CPU.

    Without VNNI, x86 adds two products u8 * s8 in 16 bits, which saturate (``vpmaddubsw``).
    Nothing of onnxruntime reports this, so we multiply the largest codes, once per process.
    """
    session = _onnxruntime().InferenceSession(_PRODUCT, providers=[_PROVIDERS["cpu"]])
    codes = {"x": np.full((1, 16), 255, np.uint8), "w": np.full((16, 16), 127, np.int8)}
    (found,) = session.run(None, codes)
    return bool((found != 16 * 255 * 127).any())


def _onnxruntime():  # type: ignore[no-untyped-def]
    try:
        import onnxruntime
    except ImportError as error:
        raise DeviceError(
            "onnxruntime is not installed, and this artifact runs on it",
            hint="pip install 'omnigraph[onnx]'",
        ) from error
    return onnxruntime


SESSION = OnnxSession
