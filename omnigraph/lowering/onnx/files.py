"""Writes Graphs as ONNX files, and their weights into one file beside them, each once."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import onnx_ir as ir

from omnigraph.external_weights import external_weights, tensor_bytes
from omnigraph.lowering.base import Lowered

#: Smaller initializers stay in the graph's own file, where shape inference can read them.
_EXTERNAL_BYTES = 1024
#: Offsets are multiples of this, so that a runtime can map each tensor (ONNX external data).
_ALIGNMENT = 4096


def write_onnx(
    programs: Sequence[Lowered], directory: Path, weights: str = "weights.bin"
) -> dict[str, dict[str, str]]:
    """Write ``<program>.onnx`` for each program, and the weights of all into one file, each once.

    Tensors are streamed one at a time, so memory grows by one tensor, not by the model.

    Returns:
        For each program, role to file name: ``model``, and ``weights`` where it has any.
    """
    files: dict[str, dict[str, str]] = {}
    with open(directory / weights, "wb") as stream:
        store = _WeightStore(stream, weights)
        for program in programs:
            with external_weights(program.graph, store.place, least_bytes=_EXTERNAL_BYTES):
                proto = ir.to_proto(program.graph)
            name = f"{program.name}.onnx"
            (directory / name).write_bytes(proto.SerializeToString(deterministic=True))
            files[program.name] = {"model": name, "weights": weights}
        empty = stream.tell() == 0
    if empty:
        (directory / weights).unlink()
        files = {name: {"model": roles["model"]} for name, roles in files.items()}
    return files


class _WeightStore:
    """Appends tensors to a stream, each content once."""

    def __init__(self, stream: IO[bytes], location: str) -> None:
        self._stream, self._location = stream, location
        self._offsets: dict[bytes, int] = {}

    def place(self, _: str, tensor: ir.TensorProtocol) -> tuple[str, int]:
        data = tensor_bytes(tensor)
        digest = hashlib.sha256(data).digest()
        if digest not in self._offsets:
            self._stream.write(bytes(-self._stream.tell() % _ALIGNMENT))
            self._offsets[digest] = self._stream.tell()
            self._stream.write(data)
        return self._location, self._offsets[digest]
