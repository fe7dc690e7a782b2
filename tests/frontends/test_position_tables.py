"""The lengths that tables of learned positions bound, by how they are read."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from omnigraph.frontends.position_tables import longest_lengths


def found(read: Callable[[Tensor, Tensor], Tensor], batch: int = 2) -> dict[str, int]:
    """What is found of a table of 40 rows, in a model that reads it for texts of 7 tokens."""
    model = nn.Embedding(40, 4)
    ids = torch.zeros(batch, 7, dtype=torch.int64)
    return longest_lengths(model, lambda: read(model.weight, ids), {"sequence": 7, "other": 5})


READS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "by one axis": lambda table, ids: table[torch.arange(2, 9)],
    "by two axes": lambda table, ids: table[(torch.arange(2, 9) + 0 * ids)],
    "by a batch in one axis": lambda table, ids: table.index_select(
        0, (torch.arange(2, 9) + 0 * ids).view(-1)
    ),
}


@pytest.mark.parametrize("name", READS)
def test_a_table_bounds_the_length(name: str):
    assert found(READS[name]) == {"sequence": 38}


def test_padding_in_one_text_is_passed_over():
    rows = torch.tensor([[1, 2, 3, 4, 5, 6, 7], [0, 0, 1, 2, 3, 4, 5]])
    assert found(lambda table, _: table.index_select(0, rows.view(-1))) == {"sequence": 39}


def test_one_run_of_several_lengths_is_of_something_else():
    """The patches of an image, say."""
    assert not found(lambda table, _: table[torch.arange(28)])
    assert not found(lambda table, _: table[torch.arange(28)[None]])


def test_token_ids_are_no_positions():
    assert not found(lambda table, ids: nn.functional.embedding(ids + 3, table))
