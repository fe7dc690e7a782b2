"""Merges nodes that compute the same thing."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir.passes.common as library

from omnigraph.graph import Graph
from omnigraph.passes.base import Pass


@dataclass(frozen=True)
class EliminateCommonSubexpressions(Pass):
    """Merge nodes of one op with the same inputs and attributes.

    before:  a = Shape(x), b = Shape(x), Concat(a, b)
    after:   a = Shape(x), Concat(a, a)

    Needs: nothing. Leaves alone: random ops, and constants over ten elements (the library's limit).
    """

    def apply(self, graph: Graph) -> bool:
        """Rewrite in place; whether anything changed."""
        return library.CommonSubexpressionEliminationPass()(graph).modified
