"""The order of the passes that every target begins with, and why it is this order."""

from __future__ import annotations

from omnigraph.passes.base import Pass
from omnigraph.passes.eliminate_common_subexpressions import EliminateCommonSubexpressions
from omnigraph.passes.eliminate_dead_code import EliminateDeadCode
from omnigraph.passes.eliminate_identities import EliminateIdentities
from omnigraph.passes.fold_constants import FoldConstants
from omnigraph.passes.fold_reshape_shapes import FoldReshapeShapes
from omnigraph.passes.fold_weight_transposes import FoldWeightTransposes
from omnigraph.passes.lift_constants import LiftConstants
from omnigraph.passes.share_constants import ShareConstants


def canonical() -> tuple[Pass, ...]:
    """From what an exporter writes to a Graph with one node for each thing that is computed."""
    return (
        # Weights first, lazily: constant folding would compute the same transposes into memory.
        FoldWeightTransposes(),
        # Constants before shapes, since many shapes are put together from constants.
        FoldConstants(),
        EliminateIdentities(),
        # A Reshape that copies its dimensions needs no Shape, Gather and Concat: they are dead.
        FoldReshapeShapes(),
        EliminateDeadCode(),
        *tidy(),
    )


def tidy() -> tuple[Pass, ...]:
    """What stands twice (masks, position ids) is merged, its constants first."""
    return (
        LiftConstants(),
        ShareConstants(),
        EliminateCommonSubexpressions(),
        EliminateDeadCode(),
    )


def common() -> tuple[Pass, ...]:
    """What every target begins with."""
    return canonical()
