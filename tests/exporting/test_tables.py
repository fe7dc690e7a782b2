"""Tables of weights by value: a row that no input reads is compared too."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

import omnigraph
from omnigraph.errors import ContractError
from omnigraph.exporting.tables import check_tables, table_hashes, tables_of
from omnigraph.graph import Graph
from omnigraph.lowering import find_target
from omnigraph.passes.base import Pass
from omnigraph.passes.matching import nodes_of
from omnigraph.testing import graph_with_weights

TABLE = np.random.default_rng(0).standard_normal((64, 16)).astype(np.float32)
TEXT = "g (int64[N] ids, float[64,16] table) => (float[N,16] y) { y = Gather(table, ids) }"


def graph() -> Graph:
    return graph_with_weights(TEXT, table=TABLE)


def zero_row(made: Graph, row: int) -> None:
    for node in nodes_of(made, "Gather"):
        value = node.inputs[0]
        if value is not None and value.is_initializer() and value.const_value is not None:
            array = value.const_value.numpy().copy()
            if array.ndim == 2 and len(array) > row:
                array[row] = 0
                value.const_value = ir.tensor(array, dtype=value.dtype, name=value.name)


def test_a_row_that_changed_is_named():
    before, after = graph(), graph()
    check_tables(tables_of(before), tables_of(after), "a test")
    zero_row(after, 63)
    with pytest.raises(ContractError, match="Row 63 of table 'table' has other values"):
        check_tables(tables_of(before), tables_of(after), "a test")


class Net(nn.Module):
    """A table of more rows than any input set reads, for tokens and for positions."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(5000, 16)
        self.positions = nn.Embedding(4096, 16)
        self.linear = nn.Linear(16, 16)

    def forward(self, input_ids):
        places = torch.arange(input_ids.shape[1])
        return self.linear(self.tokens(input_ids) + self.positions(places))


@dataclass(frozen=True)
class ZeroRow(Pass):
    """A faulty pass."""

    name: ClassVar[str] = "zero-row"

    def apply(self, graph: Graph) -> bool:
        """Lose the last row of each large table."""
        zero_row(graph, 4095)
        return True


def export(folder: Path, target: str, precision: str, **options: str) -> None:
    torch.manual_seed(0)
    inputs = {"input_ids": torch.randint(0, 5000, (2, 7))}
    out = folder / "net"
    omnigraph.export(Net().eval(), target, inputs=inputs, precision=precision, out=out, **options)


@pytest.mark.parametrize("how", [("onnx", "fp32"), ("onnx", "int8-weights"), ("openvino", "fp16")])
def test_a_row_that_a_pass_loses_is_found(how: tuple[str, str], tmp_path: Path):
    with pytest.raises(ContractError, match="Row 4095 of table"):
        export(tmp_path, *how, passes=f"{__file__}:ZeroRow")


@pytest.mark.parametrize(
    "how",
    [("onnx", "fp32"), ("openvino", "fp32"), ("openvino", "int8-weights"), ("tensorrt", "fp16")],
)
def test_a_row_that_the_compiler_loses_is_found(how: tuple[str, str], tmp_path: Path, monkeypatch):
    target = type(find_target(how[0]))
    emit = target.emit

    def faulty(self, programs, directory, **options):
        for program in programs:
            zero_row(program.graph, 4095)
        return emit(self, programs, directory, **options)

    export(tmp_path / "whole", *how)
    monkeypatch.setattr(target, "emit", faulty)
    with pytest.raises(ContractError, match="is not in the artifact with the values"):
        export(tmp_path, *how)


def test_hashes_are_of_what_is_stored():
    made = graph()
    ((size, sha256),) = table_hashes(made).values()
    assert size == TABLE.nbytes and len(sha256) == 64
