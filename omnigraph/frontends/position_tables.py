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

    A table of positions is one that is read at as many consecutive rows as the example is long; the
    rows of a whole batch may stand in one axis.

    Args:
        run: runs the model on the example.
        lengths: the size of each dimension in the example.
    """
    with _Lookups(model) as lookups:
        run()
    longest: dict[str, int] = {}
    for table, read in lookups.found:
        for dim, length in lengths.items():
            if (first := _first_of(read, length)) is not None:
                longest[dim] = min(longest.get(dim, table), table - first)
    return longest


def _first_of(read: torch.Tensor, length: int) -> int | None:
    """The first of ``length`` consecutive rows that are read, of any text of the batch."""
    if read.shape[-1] != length:
        one_run = bool((read.diff() == 1).all())
        if read.ndim > 1 or read.shape[0] % length or one_run:
            return None
    texts = read.reshape(-1, length)
    steps = (texts.diff(dim=-1) == 1).all(dim=-1)
    return int(texts[steps, 0].min()) if steps.any() else None


class _Lookups(TorchDispatchMode):
    """Notes each lookup in a table of the model: how many rows it has, and those that are read."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        own = (*model.parameters(), *model.buffers())
        self._tables = {tensor.data_ptr() for tensor in own if tensor.ndim == 2}
        self.found: list[tuple[int, torch.Tensor]] = []

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
        self.found.append((table.shape[0], rows))
