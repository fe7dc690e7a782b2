"""Tables of weights from stage to stage: by value, since inputs read few of their rows.

A row of an embedding that no input set reads, or a position beyond their lengths, changes no output
that is compared. Tables are only moved or rounded, so their values are compared instead.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping

import numpy as np
import onnx_ir as ir

from omnigraph.errors import ContractError
from omnigraph.external_weights import tensor_bytes
from omnigraph.graph import Graph
from omnigraph.passes.analysis.quantization.float_precision import is_weight
from omnigraph.passes.matching import nodes_of

#: Smaller tables may be folded into what reads them.
_LEAST_BYTES = 1024
Tables = Mapping[str, ir.TensorProtocol]


def tables_of(graph: Graph) -> Tables:
    """The initializers that are looked up by numbers that are computed or given, by name."""
    return {value.name or "": _tensor(value) for value in _looked_up(graph)}


def _looked_up(graph: Graph) -> Iterator[ir.Value]:
    for node in nodes_of(graph, "Gather", "GatherElements", "GatherND"):
        table, indices = node.inputs[0], node.inputs[1]
        if table is None or indices is None or not is_weight(table):
            continue
        constant = ir.convenience.get_const_tensor(indices) is not None
        if not constant and _tensor(table).nbytes >= _LEAST_BYTES:
            yield table


def _tensor(value: ir.Value) -> ir.TensorProtocol:
    assert value.const_value is not None
    return value.const_value


def check_tables(before: Tables, after: Tables, stage: str) -> None:
    """Refuse a table that kept its name, type and shape, and not its values.

    Raises:
        ContractError: naming the table and the first row that differs.
    """
    for name, tensor in after.items():
        known = before.get(name)
        if known is None or known is tensor or known.dtype != tensor.dtype:
            continue
        one, other = known.numpy(), tensor.numpy()
        if one.shape != other.shape or np.array_equal(one, other, equal_nan=True):
            continue
        row = int(np.argwhere((one != other).reshape(len(one), -1).any(1))[0, 0])
        raise ContractError(
            f"Row {row} of table {name!r} has other values after {stage}; no artifact was written",
            expected="the values before: a table is only moved or rounded",
            found="others, which the input sets may not read",
            hint="the pass changes a weight",
        )


def table_hashes(graph: Graph) -> dict[str, tuple[int, str]]:
    """The size in bytes and the sha256 of each table of a lowered Graph, by name."""
    return {
        name: (tensor.nbytes, hashlib.sha256(tensor_bytes(tensor)).hexdigest())
        for name, tensor in tables_of(graph).items()
    }
