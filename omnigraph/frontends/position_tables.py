"""The longest inputs that a model's tables of learned positions allow, found by running it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

_ATEN = torch.ops.aten


def longest_lengths(
    model: nn.Module, run: Callable[[], Any], lengths: Mapping[str, int]
) -> dict[str, int]:
    """The largest size of each dimension that a table of positions bounds.

    A table of positions is one that is read at as many consecutive rows as the example is long.

    Args:
        run: runs the model on the example.
        lengths: the size of each dimension in the example.
    """
    with _Lookups(model) as lookups:
        run()
    longest: dict[str, int] = {}
    for rows, first, count in lookups.found:
        for dim, length in lengths.items():
            if count == length:
                longest[dim] = min(longest.get(dim, rows), rows - first)
    return longest


class _Lookups(TorchDispatchMode):
    """Notes each lookup of consecutive rows: the table's rows, the first one, and how many."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        own = (*model.parameters(), *model.buffers())
        self._tables = {tensor.data_ptr() for tensor in own if tensor.ndim == 2}
        self.found: list[tuple[int, int, int]] = []

    def __torch_dispatch__(
        self, op: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run an operation, and note it if it is such a lookup."""
        if op is _ATEN.embedding.default:
            self._note(args[0], args[1])
        elif op is _ATEN.index_select.default and args[1] == 0:
            self._note(args[0], args[2])
        elif op is _ATEN.index.Tensor and len(args[1]) == 1:
            self._note(args[0], args[1][0])
        return op(*args, **(kwargs or {}))

    def _note(self, table: torch.Tensor, rows: torch.Tensor) -> None:
        if table.data_ptr() not in self._tables or rows.dtype != torch.int64 or rows.ndim == 0:
            return
        steps = (rows.diff(dim=-1) == 1).all(dim=-1)
        if steps.any():
            first = int(rows[..., 0][steps].min())
            self.found.append((table.shape[0], first, rows.shape[-1]))
