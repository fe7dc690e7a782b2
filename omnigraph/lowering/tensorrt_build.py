"""Building one engine from one ONNX file, with TensorRT-RTX or TensorRT."""

from __future__ import annotations

import importlib
import importlib.util
import mmap
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import onnx_ir as ir

from omnigraph.errors import CompileError, UnsupportedError
from omnigraph.lowering.base import Lowered
from omnigraph.passes.base import describe
from omnigraph.program import Dim, TensorSpec, dim_terms, evaluate_dim

#: The largest size of a dimension that has no bound: an engine needs one, and its memory grows
#: with it. `--dynamic` gives another.
UNBOUNDED = {"batch": 8}
UNBOUNDED_LENGTH = 1024
#: The sizes that kernels are chosen for, where a range allows them.
_TYPICAL = {"batch": 1}
_TYPICAL_LENGTH = 128

#: The name that each fused attention kernel has in an engine.
_ATTENTION_KERNEL = b"function={ name=_gemm_mha"

#: Least, typical and largest shape of one input.
Shapes = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]


class TensorRtError(Exception):
    """What the vendor's compiler logged when it refused: its errors, in order."""


@dataclass(frozen=True)
class Flavour:
    """One of the vendor's two compilers: the module's name, and the GPUs it can build for.

    Args:
        module: "tensorrt_rtx", which builds for GPUs that need not be here, or "tensorrt".
        capabilities: compute capabilities, such as "sm89".
    """

    module: str
    capabilities: tuple[str, ...]

    def load(self) -> Any:
        """The vendor's module."""
        return importlib.import_module(self.module)


def rtx_flavour() -> Flavour | None:
    """TensorRT-RTX with every capability that this version has, or None where it is not."""
    if importlib.util.find_spec("tensorrt_rtx") is None:
        return None
    names = vars(importlib.import_module("tensorrt_rtx").ComputeCapability)
    found = sorted(int(n[2:]) for n in names if re.fullmatch(r"SM\d+", n))
    return Flavour("tensorrt_rtx", tuple(f"sm{number}" for number in found))


def profile_of(program: Lowered) -> dict[str, Shapes]:
    """The optimization profile of a program: the shapes that each dynamic input may have.

    Every shape follows from one size for each named dimension, so that sums such as
    "past + sequence" agree with their terms in all three.
    """
    names = {t for s in program.inputs for d in s.shape if isinstance(d, str) for t in dim_terms(d)}
    ranges = {name: program.dims.get(name, Dim()) for name in names if not name.isdigit()}
    largest = {name: _largest(name, dim) for name, dim in ranges.items()}
    steps = any(name.endswith("past") for name in names)
    typical = {
        name: max(dim.min, min(_typical(name, steps), largest[name]))
        for name, dim in ranges.items()
    }
    least = {name: dim.min for name, dim in ranges.items()}
    return {
        spec.name: (_shape(spec, least), _shape(spec, typical), _shape(spec, largest))
        for spec in program.inputs
        if any(isinstance(dim, str) for dim in spec.shape)
    }


def _largest(name: str, dim: Dim) -> int:
    return max(dim.min, UNBOUNDED.get(name, UNBOUNDED_LENGTH)) if dim.max is None else dim.max


def _typical(name: str, steps: bool) -> int:
    # With a past, most calls add one token to it.
    if steps and name.endswith("sequence"):
        return 1
    return _TYPICAL.get(name, _TYPICAL_LENGTH)


def _shape(spec: TensorSpec, sizes: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(evaluate_dim(dim, sizes) for dim in spec.shape)


def build_engine(
    flavour: Flavour, program: Lowered, model: Path, capabilities: Sequence[str], engine: Path
) -> dict[str, Any]:
    """Compile a lowered Graph's ONNX file into an engine, in exactly the types the Graph says.

    Args:
        flavour: the vendor's compiler.
        program: what ``model`` was written from.
        model: the ONNX file.
        capabilities: compute capabilities of the GPUs to build for.
        engine: the file to write.

    Returns:
        What is known of the engine without a GPU to load it on, JSON-ready.

    Raises:
        CompileError: the vendor's parser or compiler refused.
        UnsupportedError: an input whose numbers are a shape.
    """
    vendor = flavour.load()
    log = _make_log(vendor)
    builder = vendor.Builder(log)
    strict = 1 << int(vendor.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(strict)
    parser = vendor.OnnxParser(network, log)
    if not parser.parse_from_file(str(model)):
        raise _refused(program, "parser", _parser_errors(parser) or log.errors)
    config = builder.create_builder_config()
    # Positions are computed in fp32, and TF32 has no more digits than fp16.
    config.clear_flag(vendor.BuilderFlag.TF32)
    if flavour.module == "tensorrt_rtx":
        config.num_compute_capabilities = len(capabilities)
        for index, name in enumerate(capabilities):
            config.set_compute_capability(getattr(vendor.ComputeCapability, name.upper()), index)
    profile = profile_of(program)
    config.add_optimization_profile(_optimization_profile(builder, network, profile))
    # Written as it is made: the engine holds all weights, and is never whole in memory.
    with open(engine, "wb") as stream:
        writer = _make_writer(vendor, stream)
        if not builder.build_serialized_network_to_stream(network, config, writer):
            raise _refused(program, "compiler", log.errors)
    tensors = [network.get_input(i) for i in range(network.num_inputs)]
    tensors += [network.get_output(i) for i in range(network.num_outputs)]
    return {
        "flavour": flavour.module,
        "version": vendor.__version__,
        "compute": list(capabilities),
        "profile": {
            name: dict(zip(("min", "opt", "max"), map(list, shapes), strict=True))
            for name, shapes in profile.items()
        },
        "tensors": {t.name: f"{t.dtype.name.lower()} {list(t.shape)}" for t in tensors},
        "engine": {
            "bytes": engine.stat().st_size,
            "activation_bytes": log.figure("Total Activation Memory"),
            "weight_bytes": log.figure("Total Weights Memory"),
        },
        "attention": {
            "nodes": sum(node.op_type == "Attention" for node in program.graph.graph),
            "kernels": _count(engine, _ATTENTION_KERNEL),
        },
    }


def _optimization_profile(builder: Any, network: Any, shapes: Mapping[str, Shapes]) -> Any:
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        if tensor.is_shape_tensor:
            raise UnsupportedError(
                f"Input {tensor.name!r} is read as a shape, whose numbers TensorRT must know",
                hint="make it a dimension of an input instead, or a constant of the model",
            )
        if -1 in tuple(tensor.shape):
            profile.set_shape(tensor.name, *shapes[tensor.name])
    return profile


def _count(path: Path, text: bytes) -> int:
    """How often a text stands in a file."""
    with open(path, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        found, position = 0, data.find(text)
        while position >= 0:
            found, position = found + 1, data.find(text, position + len(text))
    return found


def _make_writer(vendor: Any, stream: IO[bytes]) -> Any:
    """A writer for the vendor's compiler to an open file."""

    class Writer(vendor.IStreamWriter):  # type: ignore[misc]
        def write(self, data: bytes) -> int:
            return stream.write(data)

    return Writer()


def _make_log(vendor: Any) -> Any:
    """A logger for the vendor's compiler that keeps what it says."""

    class Log(vendor.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []
            self._figures: dict[str, int] = {}

        def log(self, severity: Any, message: str) -> None:
            if severity in (vendor.ILogger.INTERNAL_ERROR, vendor.ILogger.ERROR):
                self.errors.append(message)
            elif found := re.match(r"(Total [\w ]+): (\d+) bytes", message):
                self._figures[found[1]] = int(found[2])

        def figure(self, name: str) -> int | None:
            return self._figures.get(name)

    return Log()


def _parser_errors(parser: Any) -> list[str]:
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    return [f"{e.desc().strip()} (at {e.node_operator()} {e.node_name()!r})" for e in errors]


def _refused(program: Lowered, part: str, errors: Sequence[str]) -> CompileError:
    first = " ".join((errors[0] if errors else "no error was given").split())
    node = _named_node(program, errors)
    refusal = CompileError(
        f"TensorRT's {part} refused program {program.name!r}"
        + (f" at {describe(node)}" if node is not None else ""),
        found=first[:400],
        hint="change the module named here, or export it to another target"
        if node is not None
        else "smaller maxima (--dynamic), another precision or another target may pass",
    )
    refusal.__cause__ = TensorRtError("\n".join(errors))
    return refusal


def _named_node(program: Lowered, errors: Sequence[str]) -> ir.Node | None:
    """The node that the vendor's errors name, if they name one."""
    nodes = {node.name: node for node in program.graph.graph if node.name}
    for error in errors:
        for word in re.findall(r"[\w./:-]+", error):
            if word in nodes:
                return nodes[word]
    return None
