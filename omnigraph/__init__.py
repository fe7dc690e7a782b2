"""OmniGraph compiles a PyTorch transformer once and runs it, verified and fast, on every chip.

Importing this package imports neither torch nor a vendor's SDK: each name loads on first use.
"""

from __future__ import annotations

import importlib
import os
import sys
from importlib.machinery import PathFinder
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

    from omnigraph.driver import export
    from omnigraph.errors import OmniGraphError
    from omnigraph.exporting.options import ExportOptions
    from omnigraph.inspection.bisect import bisect
    from omnigraph.inspection.inspect import inspect
    from omnigraph.program import Dim, Program, TensorSpec
    from omnigraph.quantization.options import Quantization
    from omnigraph.runtimes import load

__version__ = "0.1.0"

_FOLDER = os.path.dirname(os.path.abspath(__file__))
_ROOT = os.path.dirname(_FOLDER)
_MAPPED = ("models", "passes", "runtimes")


class _CheckoutFinder:
    """Finds ``omnigraph.models``, ``omnigraph.passes`` and ``omnigraph.runtimes`` in a checkout.

    An installed package has these folders inside; in a checkout they lie beside it. Python that
    starts in the root of a checkout imports this folder, whatever is installed. This finder gives
    it the rest of the same checkout, under the full names only, so that no class exists twice.
    """

    names = frozenset(f"omnigraph.{folder}" for folder in _MAPPED)

    @classmethod
    def find_spec(
        cls, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return PathFinder.find_spec(name, [_ROOT]) if name in cls.names else None


def _holds_mapped(folder: str) -> bool:
    return all(os.path.isfile(os.path.join(folder, name, "__init__.py")) for name in _MAPPED)


if _holds_mapped(_ROOT) and not _holds_mapped(_FOLDER):
    # First, so that an editable install of another checkout mixes none of its folders in.
    sys.meta_path.insert(0, _CheckoutFinder)

_HOME = {
    "bisect": "omnigraph.inspection.bisect",
    "export": "omnigraph.driver",
    "load": "omnigraph.runtimes",
    "inspect": "omnigraph.inspection.inspect",
    "ExportOptions": "omnigraph.exporting.options",
    "Quantization": "omnigraph.quantization.options",
    "Program": "omnigraph.program",
    "TensorSpec": "omnigraph.program",
    "Dim": "omnigraph.program",
    "OmniGraphError": "omnigraph.errors",
}
__all__ = [
    "Dim",
    "ExportOptions",
    "OmniGraphError",
    "Program",
    "Quantization",
    "TensorSpec",
    "bisect",
    "export",
    "inspect",
    "load",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'omnigraph' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
