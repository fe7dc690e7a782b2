"""Puts modules into eval mode for an export, and back into their own modes after it."""

from __future__ import annotations

import contextlib
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


class TrainingModes:
    """The modes of the caller's modules, which are restored at the end, also after an error.

    It keeps no module alive.
    """

    def __init__(self) -> None:
        self._kept: list[tuple[weakref.ref[nn.Module], bool]] = []
        self._roots: list[weakref.ref[nn.Module]] = []

    def __enter__(self) -> TrainingModes:
        return self

    def __exit__(self, *_: object) -> None:
        for reference in self._roots:
            if (module := reference()) is not None and not module.training:
                _set_mode(module, True)  # a module's own train() may do more than set the flags
        for reference, training in self._kept:
            if (module := reference()) is not None:
                module.training = training

    def keep(self, module: nn.Module) -> None:
        """Remember the mode of a module and of each module in it."""
        if module.training:
            self._roots.append(weakref.ref(module))
        self._kept += [(weakref.ref(each), each.training) for each in module.modules()]


def in_eval_mode(module: nn.Module) -> nn.Module:
    """A module, put into eval mode if any module in it is not."""
    if any(each.training for each in module.modules()):
        _set_mode(module, False)
    return module


def _set_mode(module: nn.Module, training: bool) -> None:
    # The module of an exported program has one mode, and refuses to change it.
    with contextlib.suppress(NotImplementedError):
        module.train(training)
