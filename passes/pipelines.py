"""The order of the passes that every target begins with, and why it is this order."""

from __future__ import annotations

from omnigraph.passes.analysis.quantization.scheme import Scheme
from omnigraph.passes.base import Pass
from omnigraph.passes.correct_biases import CorrectBiases
from omnigraph.passes.eliminate_common_subexpressions import EliminateCommonSubexpressions
from omnigraph.passes.eliminate_dead_code import EliminateDeadCode
from omnigraph.passes.eliminate_identities import EliminateIdentities
from omnigraph.passes.expand_attention_mask import ExpandAttentionMask
from omnigraph.passes.fold_constants import FoldConstants
from omnigraph.passes.fold_position_bias import FoldPositionBias
from omnigraph.passes.fold_reshape_shapes import FoldReshapeShapes
from omnigraph.passes.fold_weight_transposes import FoldWeightTransposes
from omnigraph.passes.fuse_attention import FuseAttention
from omnigraph.passes.fuse_gelu import FuseGelu
from omnigraph.passes.fuse_norm import FuseNorm
from omnigraph.passes.fuse_rotary import FuseRotary
from omnigraph.passes.fuse_swiglu import FuseSwiglu
from omnigraph.passes.hoist_selections import HoistSelections
from omnigraph.passes.insert_qdq import InsertQdq
from omnigraph.passes.legalize_rotary_embedding import LegalizeRotaryEmbedding
from omnigraph.passes.lift_constants import LiftConstants
from omnigraph.passes.lower_sparse_attention import LowerSparseAttention
from omnigraph.passes.pipeline import Pipeline
from omnigraph.passes.prune_heads import PruneHeads
from omnigraph.passes.share_constants import ShareConstants
from omnigraph.passes.share_weights import ShareWeights
from omnigraph.passes.smooth_activations import SmoothActivations
from omnigraph.passes.store_quantized_weights import StoreQuantizedWeights


def canonical() -> tuple[Pass, ...]:
    """From what an exporter writes to a Graph with one node for each thing that is computed."""
    return (
        # Before transposes are folded, which would store the second of two equal weights again.
        ShareWeights(),
        # Before anything would fold the rounding of a weight into floats.
        StoreQuantizedWeights(),
        # Weights lazily: constant folding would compute the same transposes into memory.
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


def folded(*, blocks_as_products: bool) -> tuple[Pass, ...]:
    """What masks and positions cost, in the fewest numbers that they can be computed from."""
    return (
        # Heads that give nothing, while a bias still is a formula of each head.
        PruneHeads(),
        # Sparse masks before biases are folded: the blocks take those along as they are written.
        LowerSparseAttention(products=blocks_as_products),
        FoldPositionBias(),
        *tidy(),
        # Rows that nobody reads, now that what they are computed by is a few ops.
        HoistSelections(),
        EliminateDeadCode(),
    )


def quantized(scheme: Scheme) -> tuple[Pass, ...]:
    """From linear layers and embeddings in float to what a scheme makes of them.

    These passes say what they need of calibration. They are given it as they run, for it is
    observed on the Graph that the passes before them leave.
    """
    insert = InsertQdq(scheme=scheme)
    if not scheme.needs_ranges:
        return (insert,)
    return (
        # Exact, and so before what rounds; it changes ranges, which are observed after it.
        SmoothActivations(),
        # While the weights that will be rounded are still at hand.
        CorrectBiases(scheme=scheme),
        insert,
    )


def common(*, blocks_as_products: bool = False) -> Pipeline:
    """What every target begins with: its first three stages.

    Args:
        blocks_as_products: whether attention by blocks is faster to the target as products and a
            softmax than as an Attention.
    """
    return Pipeline(canonical(), fused(), folded(blocks_as_products=blocks_as_products))
