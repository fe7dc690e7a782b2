"""The order of the passes that every target begins with, and why it is this order."""

from __future__ import annotations

from omnigraph.passes.base import Pass
from omnigraph.passes.eliminate_common_subexpressions import EliminateCommonSubexpressions
from omnigraph.passes.eliminate_dead_code import EliminateDeadCode
from omnigraph.passes.eliminate_identities import EliminateIdentities
from omnigraph.passes.expand_attention_mask import ExpandAttentionMask
from omnigraph.passes.fold_constants import FoldConstants
from omnigraph.passes.fold_reshape_shapes import FoldReshapeShapes
from omnigraph.passes.fold_weight_transposes import FoldWeightTransposes
from omnigraph.passes.fuse_attention import FuseAttention
from omnigraph.passes.fuse_gelu import FuseGelu
from omnigraph.passes.fuse_norm import FuseNorm
from omnigraph.passes.fuse_rotary import FuseRotary
from omnigraph.passes.fuse_swiglu import FuseSwiglu
from omnigraph.passes.legalize_rotary_embedding import LegalizeRotaryEmbedding
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


def fused() -> tuple[Pass, ...]:
    """From many spellings of a thing to the one op that the standard has for it."""
    return (
        # Norms, activations and rotations stand before and between attentions, and are small.
        FuseNorm(),
        FuseGelu(),
        FuseSwiglu(),
        FuseRotary(),
        LegalizeRotaryEmbedding(),
        # Attention after rotations, so that a query or key is one value; its masks, which runtimes
        # do not broadcast over queries, are expanded behind it.
        FuseAttention(),
        ExpandAttentionMask(),
        *tidy(),
    )


def common() -> tuple[Pass, ...]:
    """What every target begins with."""
    return (*canonical(), *fused())
