"""Keeps large weights out of a protobuf, and small ones in it."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from omnigraph.graph import Graph

#: Tensors of at most as many elements may be axes or shapes, which runtimes need in the protobuf.
_FEW = 1024
#: Gives the place of an initializer's data: (location, offset).
Place = Callable[[str, ir.TensorProtocol], tuple[str, int]]


@contextlib.contextmanager
def external_weights(graph: Graph, place: Place, *, least_bytes: int) -> Iterator[None]:
    """Within the block, initializers of ``least_bytes`` or more, and only those, are external."""
    kept: dict[str, ir.TensorProtocol] = {}
    try:
        for name, value in graph.graph.initializers.items():
            tensor = value.const_value
            if tensor is None:
                continue
            if tensor.nbytes < least_bytes:
                if isinstance(tensor, ir.ExternalTensor):  # of the file that the Graph came from
                    kept[name] = tensor
                    value.const_value = ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=name)
                continue
            location, offset = place(name, tensor)
            kept[name] = tensor
            value.const_value = ir.ExternalTensor(
                location,
                offset,
                tensor.nbytes,
                tensor.dtype,
                shape=ir.Shape(tensor.shape.numpy()),
                name=name,
            )
        yield
    finally:
        for name, tensor in kept.items():
            graph.graph.initializers[name].const_value = tensor


def with_small_tensors(path: Path) -> onnx.ModelProto | None:
    """A file with its small external tensors in the protobuf; None where it has none.

    onnxruntime refuses an op whose axes or shape are in another file. Larger tensors stay there.
    """
    model = onnx.load_model(path, load_external_data=False)
    helper = onnx.external_data_helper
    external = filter(helper.uses_external_data, helper._get_all_tensors(model))
    small = [tensor for tensor in external if np.prod(tensor.dims) <= _FEW]
    for tensor in small:
        helper.load_external_data_for_tensor(tensor, str(path.parent))
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]
    return model if small else None


def tensor_bytes(tensor: ir.TensorProtocol) -> memoryview:
    """The data of a tensor as ONNX stores it: little-endian, row-major, copied only if needed."""
    if tensor.dtype.bitwidth < 8:
        return memoryview(tensor.tobytes())
    array = np.ascontiguousarray(tensor.numpy())
    return array.reshape(-1).view(np.uint8).data


def release_memory() -> None:
    """Return unused memory to the system, where the system allows it.

    A torch model has reference cycles, so only the garbage collector frees it; and glibc keeps
    freed blocks up to 32 MB, which most weights are.
    """
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
