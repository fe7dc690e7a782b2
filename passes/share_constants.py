"""Merges small constants of equal content."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir.passes.common as library

from omnigraph.graph import Graph
from omnigraph.passes.base import Pass


@dataclass(frozen=True)
class ShareConstants(Pass):
    """Merge initializers of up to ``limit`` elements that have the same type and content.

    before:  Range(zero_a, n, one), Range(zero_b, n, one)
    after:   Range(zero, n, one), Range(zero, n, one)      which now are common subexpressions

    Needs: constants as initializers. Leaves alone: larger constants; `ShareWeights` merges weights.
    """

    limit: int = 16

    def apply(self, graph: Graph) -> bool:
        """Rewrite in place; whether anything changed."""
        return library.DeduplicateInitializersPass(size_limit=self.limit)(graph).modified
