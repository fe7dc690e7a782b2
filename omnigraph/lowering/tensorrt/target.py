"""The ``tensorrt`` target: engines for NVIDIA GPUs, built on a machine that needs none."""

from __future__ import annotations

import importlib.util
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import onnx_ir as ir

from omnigraph.artifact import Artifact
from omnigraph.contract.comparison import Run
from omnigraph.errors import UsageError
from omnigraph.external_weights import release_memory
from omnigraph.lowering.base import Emission, Lowered, Target
from omnigraph.lowering.emulation import initializer_hashes, run_file_unrounded
from omnigraph.lowering.onnx.files import write_onnx
from omnigraph.lowering.tensorrt.build import Flavour, build_engine, rtx_flavour
from omnigraph.lowering.tensorrt.quantization import FIRST_CAPABILITY, SCHEMES
from omnigraph.lowering.tensorrt.support import ATTENTION, NO_BFLOAT16, refusal
from omnigraph.passes.convert_precision import ConvertPrecision
from omnigraph.passes.eliminate_common_subexpressions import EliminateCommonSubexpressions
from omnigraph.passes.eliminate_dead_code import EliminateDeadCode
from omnigraph.passes.legalize_attention_axes import LegalizeAttentionAxes
from omnigraph.passes.legalize_attention_past import LegalizeAttentionPast
from omnigraph.passes.legalize_causal_mask import LegalizeCausalMask
from omnigraph.passes.legalize_integer_lookups import LegalizeIntegerLookups
from omnigraph.passes.legalize_ragged_blocks import LegalizeRaggedBlocks
from omnigraph.passes.lift_constants import LiftConstants
from omnigraph.passes.pad_odd_channels import PadOddChannels
from omnigraph.passes.pipeline import Pipeline
from omnigraph.passes.pipelines import common
from omnigraph.passes.share_constants import ShareConstants
from omnigraph.precision import FLOAT_TYPES
from omnigraph.runtimes.cuda_driver import CudaError, Gpu, driver

#: An engine has the kernels of the oldest of its GPUs. These five share their kernels: one engine
#: for all is as large as for one. sm75 is not among them: it has no bf16, and older kernels.
#: Those that lack a type of the Graph are left out, as the first two lack float8.
_DEFAULT_COMPUTE = ("sm80", "sm86", "sm89", "sm120", "sm121")


class TensorRtTarget(Target):
    """Engines by TensorRT-RTX, ahead of time; by TensorRT, on the GPU they will run on.

    Precision is what the Graph says, node by node: networks are strongly typed. Attention is
    computed in the half type with its softmax in fp32, by a fused kernel where there is one. Beside
    quantized layers the half type is fp16: int8 and float8 are multiplied as they are, and where
    only weights are quantized, the kernel that reads them dequantizes them.

    The same input gives the same engine, byte for byte, with one version of TensorRT-RTX, where the
    system lets a process turn random addresses off (Docker's default profile does not): the
    compiler numbers the symbols of a network with a past by their addresses.
    """

    name = "tensorrt"
    purpose = "TensorRT engines for NVIDIA GPUs, built without one"
    session = "omnigraph.runtimes.tensorrt:TensorRtSession"
    schemes = SCHEMES
    floats_around = "fp16"
    options: ClassVar[Mapping[str, str]] = {
        "compute": "compute capabilities of the GPUs to build for, such as sm89,sm120 "
        f"(default {','.join(_DEFAULT_COMPUTE)}); kernels are those of the oldest",
    }

    def unusable(self) -> str | None:
        """Why neither flavour of the compiler can be used here, or None."""
        if importlib.util.find_spec("tensorrt_rtx") is not None:
            return None
        if importlib.util.find_spec("tensorrt") is None:
            return (
                "tensorrt_rtx is not installed: pip install 'omnigraph[tensorrt]' (Linux, x86-64)"
            )
        return None if _gpu_here() else "tensorrt is installed, but builds only on a GPU"

    def unrunnable(self) -> str | None:
        """Engines run on the GPUs they were built for, and on nothing else."""
        return self.unusable() or (None if _gpu_here() else "there is no NVIDIA GPU here")

    def supports(self, node: ir.Node, precision: str) -> str | None:
        """Why TensorRT cannot take a node, or None; its compiler was tested on each op."""
        return refusal(node)

    def pipeline(self, precision: str) -> Pipeline:
        """Attention as the kernels take it, then the half type, then duplicates merged."""
        half = self.rounding(precision)
        kernels = (
            # Before ConvertPrecision, which keeps values computed from integers in fp32.
            LegalizeIntegerLookups(),
            LegalizeRaggedBlocks(),
            # The compiler pads such weights itself, and keeps both copies where one is looked up.
            PadOddChannels(),
            LegalizeAttentionAxes(),
            # The mask before the past: a query's position depends on the past's length.
            LegalizeCausalMask(),
            LegalizeAttentionPast(),
            # Before ConvertPrecision, so that the softmax of a decomposed one stays in fp32.
            ATTENTION,
            LiftConstants(),
            ConvertPrecision(half, NO_BFLOAT16 if half == "bf16" else ()),
            ShareConstants(),
            EliminateCommonSubexpressions(),
            EliminateDeadCode(),
        )
        return replace(common(), kernels=kernels)

    def run_unrounded(self, artifact: Artifact, program: str) -> AbstractContextManager[Run]:
        """The Graph that an engine was compiled from: engines compute in the types it names."""
        return run_file_unrounded(artifact, program, "lowered")

    def constant_hashes(self, artifact: Artifact, program: str, sizes: Collection[int]) -> set[str]:
        """Of the initializers of the ONNX file that the engine was compiled from."""
        return initializer_hashes(artifact, program, "lowered", sizes)

    def check_options(self, options: Mapping[str, str]) -> None:
        """Refuse an unknown option, and a compute capability that cannot be built for."""
        super().check_options(options)
        _choose(options)

    def emit(
        self,
        programs: Sequence[Lowered],
        directory: Path,
        *,
        precision: str,
        options: Mapping[str, str],
    ) -> Emission:
        """Write the lowered ONNX with its weights, and an engine for each program."""
        flavour, compute = _choose(options, _types_of(programs))
        written = write_onnx(programs, directory)
        for program in programs:
            _read_weights_back(program, directory / written[program.name]["model"])
        release_memory()  # the compiler needs three times the weights of its own
        files: dict[str, dict[str, str]] = {}
        details = {}
        for program in programs:
            lowered = written[program.name]
            model, engine = directory / lowered["model"], directory / f"{program.name}.engine"
            details[program.name] = build_engine(flavour, program, model, compute, engine)
            files[program.name] = {**lowered, "lowered": model.name, "model": engine.name}
        version = str(next(iter(details.values()))["version"])
        gpu = _gpu_here()
        return Emission(
            files=files,
            device="cuda",
            requires={flavour.module: f"=={version}"},
            details=details,
            executes_here=gpu is not None and gpu.capability in compute,
        )


def _types_of(programs: Sequence[Lowered]) -> frozenset[str]:
    """The types of every value."""
    graphs = [program.graph.graph for program in programs]
    nodes = (node for graph in graphs for node in ir.traversal.RecursiveGraphIterator(graph))
    values = (value for node in nodes for value in (*node.inputs, *node.outputs))
    return frozenset(v.dtype.name for v in values if v is not None and v.dtype is not None)


def _read_weights_back(program: Lowered, model: Path) -> None:
    """Let a Graph read its weights from the written file, so that memory is freed."""
    written = ir.load(model).graph.initializers
    for name, value in program.graph.graph.initializers.items():
        value.const_value = written[name].const_value


def _gpu_here() -> Gpu | None:
    """The first GPU of this machine, or None."""
    try:
        return next(iter(driver().gpus()), None)
    except CudaError:
        return None


def _choose(
    options: Mapping[str, str], types: Collection[str] = ()
) -> tuple[Flavour, tuple[str, ...]]:
    """The compiler to use, and the compute capabilities to build for.

    Args:
        options: the target's.
        types: those in the Graphs; default capabilities that lack one are left out.

    Raises:
        UsageError: a capability is asked for that this compiler cannot build for, or that has no
            kernels of a type.
    """
    asked = tuple(dict.fromkeys(c.strip().lower() for c in options.get("compute", "").split(",")))
    asked = tuple(name for name in asked if name)
    rtx, gpu = rtx_flavour(), _gpu_here()
    full = gpu is not None and importlib.util.find_spec("tensorrt") is not None
    if gpu is not None and full and (rtx is None or asked == (gpu.capability,) or not asked):
        flavour = Flavour("tensorrt", (gpu.capability,))
        default = flavour.capabilities
    elif rtx is not None:
        flavour = rtx
        default = tuple(name for name in _DEFAULT_COMPUTE if name in rtx.capabilities)
    else:
        raise UsageError(
            "Neither tensorrt_rtx nor tensorrt with a GPU is here",
            hint="pip install 'omnigraph[tensorrt]' (Linux, x86-64)",
        )
    for name in asked:
        if name not in flavour.capabilities:
            raise UsageError(
                f"{flavour.module} cannot build for compute capability {name!r}",
                expected=", ".join(flavour.capabilities),
                hint="see NVIDIA's list of CUDA GPUs; an RTX 4090 is sm89, an RTX 5090 sm120",
            )
    if "compute" in options and not asked:
        raise UsageError(
            "No compute capability is asked for",
            hint=f"--set compute=sm89,sm120; without it, {','.join(default)}",
        )
    able = tuple(name for name in asked or default if _lacking(name, types) is None)
    if (asked and able != asked) or not able:
        name = next(name for name in asked or default if name not in able)
        raise UsageError(
            f"{name} has no {_lacking(name, types)}",
            expected=", ".join(c for c in flavour.capabilities if _lacking(c, types) is None),
            hint=f"leave {name} out of --set compute=…, or export with fp16",
        )
    return flavour, able


def _lacking(capability: str, types: Collection[str]) -> str | None:
    """The first of some types that a compute capability has no kernels for, or None."""
    number = int(capability.removeprefix("sm"))
    lacking = [name for name in sorted(types) if number < FIRST_CAPABILITY.get(name, 0)]
    return FLOAT_TYPES.get(lacking[0], lacking[0].lower()) if lacking else None


TARGET = TensorRtTarget()
