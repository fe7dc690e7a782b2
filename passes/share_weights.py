"""Weights of equal content are one, and so are a weight and its transpose."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from omnigraph.graph import Graph
from omnigraph.passes.base import Pass
from omnigraph.passes.insertion import Inserter
from omnigraph.passes.matching import axis_size, rank

#: Elements of a matrix along each axis that are looked at before all of them are.
_SAMPLES = 8
#: Rows that are compared at a time.
_ROWS = 1024


@dataclass(frozen=True)
class ShareWeights(Pass):
    """Store a weight once that is there twice: tied embeddings, as they are or transposed.

    Before, with head [C, V] the transpose of table [V, C]::

        hidden = Gather(table, ids)
        logits = MatMul(x, head)

    After::

        hidden = Gather(table, ids)
        logits = MatMul(x, Transpose(table))

    onnxruntime, OpenVINO and TensorRT compute the transpose of a weight when they load or compile,
    into the packed copy that a product has in any case, and never per call; so this is the form
    that keeps one copy in the file (``python -m benchmarks.kernels --only tied``).

    Needs: weights as initializers; it runs before `FoldWeightTransposes`, which would store the
    transpose of one of two equal weights. Leaves alone: tensors under ``least_bytes``, which
    `ShareConstants` merges; weights that are inputs or outputs of the program; vectors, for biases
    and norms are often equal by chance, and cost nothing twice; the transpose of a square weight,
    which is equal by chance or by symmetry only.

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
            turned = None
            if kept is None and _is_oblong(value):
                turned = next((v for v in alike if _equal(v, value, turned=True)), None)
            if kept is not None:
                _replace(graph, value, kept)
            elif turned is not None:
                # The one that is looked up by rows stays as it is.
                table, other = (value, turned) if _is_looked_up(value) else (turned, value)
                alike[alike.index(turned)] = table
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
    """A type, sizes and some elements, the same for a matrix and its transpose."""
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
    """The elements as unsigned integers, so that what is compared is what is stored."""
    assert value.const_value is not None
    array = value.const_value.numpy()
    if array.dtype.itemsize not in (1, 2, 4, 8):
        return array
    return np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}")


def _equal(one: ir.Value, other: ir.Value, *, turned: bool = False) -> bool:
    """Whether two weights have the same elements, or one those of the other's transpose."""
    first, second = _bits(one), _bits(other)
    if turned:
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
    """The transpose of a weight as a value, at the start of the Graph; one for all who need it."""
    for user, _ in table.uses():
        if user.op_type == "Transpose" and user.domain == "":
            return user.outputs[0]
    before = Inserter(next(iter(graph.graph)))
    return before.op("Transpose", table, perm=[1, 0])


def _replace(graph: Graph, old: ir.Value, new: ir.Value) -> None:
    assert old.name is not None
    ir.convenience.replace_all_uses_with(old, new)
    graph.graph.initializers.pop(old.name)
