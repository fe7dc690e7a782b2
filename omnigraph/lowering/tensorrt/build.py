"""Building one engine from one ONNX file, with TensorRT-RTX or TensorRT."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from omnigraph.errors import CompileError, OmniGraphError, UnsupportedError
from omnigraph.graph import describe
from omnigraph.lowering.base import Lowered
from omnigraph.lowering.tensorrt import worker as tensorrt_worker
from omnigraph.lowering.tensorrt.engine import product_types
from omnigraph.program import Dim, TensorSpec, dim_terms, evaluate_dim

#: The largest size of a dimension that has no bound: an engine needs one, and its memory grows
#: with it. `--dynamic` gives another.
UNBOUNDED = {"batch": 8}
UNBOUNDED_LENGTH = 1024
#: The sizes that kernels are chosen for, where a range allows them.
_TYPICAL = {"batch": 1}
_TYPICAL_LENGTH = 128

#: The environment variables that the worker gets; others would change its memory's addresses.
_KEPT = ("LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "TMPDIR", "SYSTEMROOT")

#: Least, typical and largest shape of one input.
Shapes = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]


class TensorRtError(Exception):
    """The errors that the vendor's compiler logged when it refused, in order."""


@dataclass(frozen=True)
class Flavour:
    """One of the vendor's two compilers: the module's name, and the GPUs it can build for.

    Args:
        module: "tensorrt_rtx", which builds for GPUs that need not be here, or "tensorrt".
        capabilities: compute capabilities, such as "sm89".
    """

    module: str
    capabilities: tuple[str, ...]


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
    sums = [dim_terms(dim) for spec in program.inputs for dim in spec.shape if isinstance(dim, str)]
    names = {name for terms in sums for name in terms if not name.isdigit()}
    ranges = {name: program.dims.get(name, Dim()) for name in names}
    largest = {name: _largest(name, dim) for name, dim in ranges.items()}
    # Mostly one token is added to a past.
    steps = {name for terms in sums if "past" in terms for name in terms} - {"past"}
    typical = {
        name: max(dim.min, min(1 if name in steps else _typical(name), largest[name]))
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


def _typical(name: str) -> int:
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
        engine: the file to write, in the same directory.

    Returns:
        The facts of the engine that are known without a GPU, JSON-ready.

    Raises:
        CompileError: the vendor's parser or compiler refused, or crashed.
        UnsupportedError: the values of an input are used as a shape.
    """
    profile = profile_of(program)
    ahead = flavour.module == "tensorrt_rtx"
    job = {
        "module": flavour.module,
        "model": model.name,
        "engine": engine.name,
        "capabilities": list(capabilities) if ahead else [],
        "profile": profile,
        "packages": _packages_of(flavour.module),
    }
    result = _run_worker(program, job, engine.parent)
    if result["errors"]:
        raise _refusal(program, result["refused"], result["errors"])
    return {
        "flavour": flavour.module,
        "version": result["version"],
        "compute": list(capabilities),
        "profile": {
            name: dict(zip(("min", "opt", "max"), map(list, shapes), strict=True))
            for name, shapes in profile.items()
        },
        "tensors": result["tensors"],
        "engine": {
            "bytes": engine.stat().st_size,
            "activation_bytes": result["figures"].get("Total Activation Memory"),
            "weight_bytes": result["figures"].get("Total Weights Memory"),
        },
        "attention": {
            "nodes": sum(node.op_type == "Attention" for node in program.graph.graph),
            "kernels": result["attention_kernels"],
        },
        "products": product_types(engine),
    }


def _packages_of(module: str) -> str:
    """The directory that the vendor's packages are installed in."""
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None
    return os.fspath(Path(spec.origin).parent.parent)


def _run_worker(program: Lowered, job: Mapping[str, Any], directory: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, os.fspath(tensorrt_worker.__file__)],
        input=json.dumps(job).encode(),
        capture_output=True,
        cwd=directory,
        env={"PYTHONHASHSEED": "0", **{k: os.environ[k] for k in _KEPT if k in os.environ}},
        check=False,
    )
    if done.returncode == 0:
        return json.loads(done.stdout)
    said = done.stderr.decode(errors="replace").strip()
    how = f"exit status {done.returncode}"
    if done.returncode < 0:
        how = signal.Signals(-done.returncode).name
    raise CompileError(
        f"TensorRT's compiler crashed on program {program.name!r}",
        found=f"{how}{': ' + said.splitlines()[-1][:300] if said else ''}",
        hint="export one module at a time to find what it crashes on, or export to another target",
    ) from TensorRtError(said or how)


def _refusal(program: Lowered, part: str, errors: Sequence[str]) -> OmniGraphError:
    if part == "input":
        return UnsupportedError(
            f"Input {errors[0]!r} of program {program.name!r} is read as a shape, whose values "
            "TensorRT must know when it builds",
            hint="make it a dimension of an input instead, or a constant of the model",
        )
    node = _named_node(program, errors)
    refusal = CompileError(
        f"TensorRT's {part} refused program {program.name!r}"
        + (f" at {describe(node)}" if node is not None else ""),
        found=" ".join(errors[0].split())[:400],
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
