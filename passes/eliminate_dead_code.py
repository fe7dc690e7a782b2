"""Removes everything that no output depends on."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir.passes.common as library

from omnigraph.graph import Graph
from omnigraph.passes.base import Pass


@dataclass(frozen=True)
class EliminateDeadCode(Pass):
    """Remove nodes, initializers, functions and opset imports that nothing uses.

    before:  y = Relu(x), z = Exp(x); outputs y
    after:   y = Relu(x); outputs y

    Needs: nothing. Leaves alone: graph inputs, used or not, since they are the program's signature.
    """

    def apply(self, graph: Graph) -> bool:
        """Rewrite in place; whether anything changed."""
        steps = (
            library.RemoveUnusedNodesPass(),
            library.RemoveUnusedFunctionsPass(),
            library.RemoveUnusedOpsetsPass(),
        )
        return any([step(graph).modified for step in steps])
