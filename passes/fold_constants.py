"""What depends on no input is computed once."""

from __future__ import annotations

from dataclasses import dataclass

from onnxscript import optimizer

from omnigraph.passes.base import Graph, Pass, count_ops


@dataclass(frozen=True)
class FoldConstants(Pass):
    """Compute nodes that depend on constants alone, and shapes that are known.

    before:  Add(Constant 1, Constant 2), Shape(x [2, 3])
    after:   Constant 3, Constant [2, 3]

    Needs: nothing. Leaves alone: results over ``output_limit`` elements and inputs over
    ``input_limit``, so that no weight is copied; random ops.
    """

    input_limit: int = 8192
    output_limit: int = 65536

    def apply(self, graph: Graph) -> bool:
        """Rewrite in place; whether anything changed."""
        before = count_ops(graph)
        result = optimizer.fold_constants(
            graph,
            onnx_shape_inference=True,
            input_size_limit=self.input_limit,
            output_size_limit=self.output_limit,
        )
        return bool(result.modified) and before != count_ops(graph)
