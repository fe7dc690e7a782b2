"""OmniGraph compiles a PyTorch transformer once and runs it, verified and fast, on every chip.

Importing this package imports neither torch nor a vendor's SDK: each name loads on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omnigraph.driver import export
    from omnigraph.errors import OmniGraphError
    from omnigraph.export_options import ExportOptions
    from omnigraph.inspection.inspect import inspect
    from omnigraph.program import Dim, Program, TensorSpec
    from omnigraph.quantization.options import Quantization
    from omnigraph.runtimes import load

__version__ = "0.1.0"

_HOME = {
    "export": "omnigraph.driver",
    "load": "omnigraph.runtimes",
    "inspect": "omnigraph.inspection.inspect",
    "ExportOptions": "omnigraph.export_options",
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
