"""One engine, built in a process of its own.

The vendor's compiler crashes on some networks that it should refuse, and writes to stderr by
itself: a process of its own contains both. The bytes of an engine depend on the addresses of the
compiler's memory, so the process turns random addresses off.

Run as a script: a job as JSON on stdin, its result as JSON on stdout. Imports nothing of OmniGraph,
so that it starts at once.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import mmap
import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import IO, Any

_FIXED_ADDRESSES, _ASK = 0x0040000, 0xFFFFFFFF  # personality(2): ADDR_NO_RANDOMIZE
#: The name that each fused attention kernel has in an engine.
_ATTENTION_KERNEL = b"function={ name=_gemm_mha"


def build(job: Mapping[str, Any]) -> dict[str, Any]:
    """Build an engine.

    Args:
        job: ``module``, the vendor's; ``model`` and ``engine``, the files to read and to write;
            ``capabilities``, such as "sm89", none for the GPU that is here; ``profile``, for each
            dynamic input its least, typical and largest shape.

    Returns:
        ``errors``, the vendor's, empty where it succeeded; ``refused``, by which part; and what is
        known of the engine: ``version``, ``tensors``, ``figures``, ``attention_kernels``.
    """
    vendor = importlib.import_module(job["module"])
    log = _make_log(vendor)
    builder = vendor.Builder(log)
    strict = 1 << int(vendor.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(strict)
    parser = vendor.OnnxParser(network, log)
    if not parser.parse_from_file(job["model"]):
        return {"refused": "parser", "errors": _parser_errors(parser) or log.errors}
    config = _configure(vendor, builder, job["capabilities"])
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    if shapes := [tensor.name for tensor in inputs if tensor.is_shape_tensor]:
        return {"refused": "input", "errors": shapes}
    profile = builder.create_optimization_profile()
    for tensor in inputs:
        if -1 in tuple(tensor.shape):
            profile.set_shape(tensor.name, *(tuple(s) for s in job["profile"][tensor.name]))
    config.add_optimization_profile(profile)
    # Written as it is made: an engine holds all weights, and is never whole in memory.
    with open(job["engine"], "wb") as stream:
        writer = _make_writer(vendor, stream)
        if not builder.build_serialized_network_to_stream(network, config, writer):
            return {"refused": "compiler", "errors": log.errors}
    return {
        "errors": [],
        "version": vendor.__version__,
        "tensors": {t.name: f"{t.dtype.name.lower()} {list(t.shape)}" for t in inputs + outputs},
        "figures": log.figures,
        "attention_kernels": _count(job["engine"], _ATTENTION_KERNEL),
    }


def _configure(vendor: Any, builder: Any, capabilities: Sequence[str]) -> Any:
    config = builder.create_builder_config()
    # Positions are computed in fp32, and TF32 has no more digits than fp16.
    config.clear_flag(vendor.BuilderFlag.TF32)
    if capabilities:
        config.num_compute_capabilities = len(capabilities)
        for index, name in enumerate(capabilities):
            config.set_compute_capability(getattr(vendor.ComputeCapability, name.upper()), index)
    return config


def _make_log(vendor: Any) -> Any:
    """A logger for the vendor's compiler that keeps its errors, and its figures of memory."""

    class Log(vendor.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []
            self.figures: dict[str, int] = {}

        def log(self, severity: Any, message: str) -> None:
            if severity in (vendor.ILogger.INTERNAL_ERROR, vendor.ILogger.ERROR):
                self.errors.append(message)
            elif found := re.match(r"(Total [\w ]+): (\d+) bytes", message):
                self.figures[found[1]] = int(found[2])

    return Log()


def _parser_errors(parser: Any) -> list[str]:
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    return [f"{e.desc().strip()} (at {e.node_operator()} {e.node_name()!r})" for e in errors]


def _make_writer(vendor: Any, stream: IO[bytes]) -> Any:
    """A writer for the vendor's compiler to an open file."""

    class Writer(vendor.IStreamWriter):  # type: ignore[misc]
        def write(self, data: bytes) -> int:
            return stream.write(data)

    return Writer()


def _count(path: str, text: bytes) -> int:
    """How often a text stands in a file."""
    with open(path, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        found, position = 0, data.find(text)
        while position >= 0:
            found, position = found + 1, data.find(text, position + len(text))
    return found


def fix_addresses() -> None:
    """Restart this process without random addresses, where the system allows that."""
    if not sys.platform.startswith("linux"):
        return
    personality = ctypes.CDLL(None).personality
    personality.argtypes = (ctypes.c_ulong,)
    current = personality(_ASK)
    if current & _FIXED_ADDRESSES or personality(current | _FIXED_ADDRESSES) == -1:
        return
    os.execv(sys.executable, [sys.executable, *sys.argv])


def main() -> None:
    """Read a job, build the engine, and write the result."""
    fix_addresses()
    job = json.load(sys.stdin)
    sys.path[0] = job["packages"]  # in place of this folder, whose names are the vendors' own
    json.dump(build(job), sys.stdout)


if __name__ == "__main__":
    main()
