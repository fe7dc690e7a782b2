"""Which inputs of a module are the indices of a table, seen while it runs on its example."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode


class _Lookups(TorchFunctionMode):
    """Records the rows of each table that an input indexes."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[int, str] = {}
        self.rows: dict[str, int] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Look at the two tensors of a lookup, whichever comes first."""
        kwargs = kwargs or {}
        if func is torch.nn.functional.embedding:
            indices = args[0] if args else kwargs["input"]
            table = args[1] if len(args) > 1 else kwargs["weight"]
            name = self.storages.get(indices.untyped_storage().data_ptr())
            if name is not None:
                self.rows[name] = min(table.shape[0], self.rows.get(name, table.shape[0]))
        return func(*args, **kwargs)


@contextmanager
def indexed_rows(module: nn.Module) -> Iterator[Mapping[str, int]]:
    """The rows of the smallest table that each input indexes, filled while the module runs.

    An input is known by its memory: one that is converted to another type first is not seen.
    """
    mode = _Lookups()

    def note(_: nn.Module, __: Any, inputs: dict[str, Any]) -> None:
        tensors = {name: t for name, t in inputs.items() if isinstance(t, torch.Tensor)}
        mode.storages = {t.untyped_storage().data_ptr(): name for name, t in tensors.items()}

    hook = module.register_forward_pre_hook(note, with_kwargs=True)
    try:
        with mode:
            yield mode.rows
    finally:
        hook.remove()
