"""Turns constants into initializers."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir.passes.common as library

from omnigraph.graph import Graph
from omnigraph.passes.base import Pass


@dataclass(frozen=True)
class LiftConstants(Pass):
    """Turn Constant nodes into initializers, so that the nodes are the computation.

    before:  Add(x, Constant 1)
    after:   Add(x, one)        one is an initializer

    Needs: nothing. Leaves alone: constants that are graph outputs.
    """

    def apply(self, graph: Graph) -> bool:
        """Rewrite in place; whether anything changed."""
        return library.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(
            graph
        ).modified
