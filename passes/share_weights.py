"""Stores equal weights once, and a weight and its transpose once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from omnigraph.graph import Graph
from omnigraph.passes.base import Pass
from omnigraph.passes.insertion import Inserter
from omnigraph.passes.matching import axis_size, rank

#: Elements along each axis of a matrix that are compared before all of them are.
_SAMPLES = 8
#: Rows that are compared at a time.
_ROWS = 1024


@dataclass(frozen=True)
class ShareWeights(Pass):
    """Store equal weights once, such as tied embeddings, also where one is the transpose.

    Before, with head [C, V] the transpose of table [V, C]::

        hidden = Gather(table, ids)
        logits = MatMul(x, head)

    After::

        hidden = Gather(table, ids)
        logits = MatMul(x, Transpose(table))

    The file then has one copy of the weight. The transpose costs nothing per call: onnxruntime,
    OpenVINO and TensorRT compute it when they load or compile, into the packed copy that a linear
    layer has in any case (``python -m benchmarks.kernels --only tied``).

    Needs: weights as initializers; to run before `FoldWeightTransposes`, which would store the
    transpose of one of two equal weights. Leaves alone: tensors under ``least_bytes``; weights that
    are inputs or outputs of the program; vectors, since biases and norms are often equal by chance
    and small; the transpose of a square weight, which is equal only by chance or by symmetry.

    Args:
        least_bytes: smaller tensors are left alone.
    """

    least_bytes: int = 1024

    def apply(self, graph: Graph) -> bool:
        """Rewrite in place; whether anything changed."""
        seen: dict[tuple[object, ...], list[ir.Value]] = {}
        changed = False
        for value in self._weights(graph):
            alike = seen.setdefault(_fingerprint(value), [])
            kept = next((v for v in alike if _equal(v, value)), None)
            transposed = None
            if kept is None and _is_oblong(value):
                transposed = next((v for v in alike if _equal(v, value, transposed=True)), None)
            if kept is not None:
                _replace(graph, value, kept)
            elif transposed is not None:
                # The one that is looked up by rows stays as it is.
                table, other = (value, transposed) if _is_looked_up(value) else (transposed, value)
                alike[alike.index(transposed)] = table
                _replace(graph, other, _transposed(graph, table))
            else:
                alike.append(value)
                continue
            changed = True
        return changed

    def _weights(self, graph: Graph) -> Iterator[ir.Value]:
        for value in list(graph.graph.initializers.values()):
            tensor = value.const_value
            if tensor is None or tensor.nbytes < self.least_bytes or tensor.dtype.bitwidth < 8:
                continue
            if len(tensor.shape) < 2:
                continue
            if value.uses() and not value.is_graph_input() and not value.is_graph_output():
                yield value


def _fingerprint(value: ir.Value) -> tuple[object, ...]:
    """Type, sizes and some elements of a weight; a matrix and its transpose have the same."""
    array = _bits(value)
    if array.ndim > 2:
        return value.dtype, array.shape, array.reshape(-1)[: _SAMPLES**2].tobytes()
    rows, columns = (np.linspace(0, size - 1, _SAMPLES).astype(int) for size in array.shape)
    grid = array[np.ix_(rows, columns)]
    if _is_oblong(value) and array.shape[0] > array.shape[1]:
        grid = grid.T
    return value.dtype, tuple(sorted(array.shape)), grid.tobytes()


def _is_oblong(value: ir.Value) -> bool:
    return rank(value) == 2 and axis_size(value, 0) != axis_size(value, 1)


def _bits(value: ir.Value) -> np.ndarray:
    """The elements as unsigned integers, so that their bits are compared."""
    assert value.const_value is not None
    array = value.const_value.numpy()
    if array.dtype.itemsize not in (1, 2, 4, 8):
        return array
    return np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}")


def _equal(one: ir.Value, other: ir.Value, *, transposed: bool = False) -> bool:
    """Whether two weights are equal, or with ``transposed`` one and the transpose of the other."""
    first, second = _bits(one), _bits(other)
    if transposed:
        second = second.T
    if first.shape != second.shape:
        return False
    return all(
        bool((first[row : row + _ROWS] == second[row : row + _ROWS]).all())
        for row in range(0, len(first), _ROWS)
    )


def _is_looked_up(value: ir.Value) -> bool:
    return any(user.op_type == "Gather" and index == 0 for user, index in value.uses())


def _transposed(graph: Graph, table: ir.Value) -> ir.Value:
    """The transpose of a weight, made once at the start of the Graph."""
    for user, _ in table.uses():
        if user.op_type == "Transpose" and user.domain == "":
            return user.outputs[0]
    before = Inserter(next(iter(graph.graph)))
    return before.op("Transpose", table, perm=[1, 0])


def _replace(graph: Graph, old: ir.Value, new: ir.Value) -> None:
    assert old.name is not None
    ir.convenience.replace_all_uses_with(old, new)
    graph.graph.initializers.pop(old.name)
