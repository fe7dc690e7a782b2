"""The passes that every target begins with, in order, and why in this order."""

from __future__ import annotations

from omnigraph.passes.analysis.quantization.scheme import Scheme
from omnigraph.passes.base import Pass
from omnigraph.passes.correct_biases import CorrectBiases
from omnigraph.passes.decide_branches import DecideBranches
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
from omnigraph.passes.narrow_attention_mask import NarrowAttentionMask
from omnigraph.passes.narrow_stored_weights import NarrowStoredWeights
from omnigraph.passes.normalize_tokens import NormalizeTokens
from omnigraph.passes.pipeline import Pipeline
from omnigraph.passes.prune_heads import PruneHeads
from omnigraph.passes.share_constants import ShareConstants
from omnigraph.passes.share_weights import ShareWeights
from omnigraph.passes.smooth_activations import SmoothActivations
from omnigraph.passes.store_quantized_weights import StoreQuantizedWeights


def canonical() -> tuple[Pass, ...]:
    """The passes from an exporter's Graph to one that computes nothing twice."""
    return (
        # Before transposes are folded, which would store two equal weights twice.
        ShareWeights(),
        # Before a pass could fold the rounding of a weight into floats.
        StoreQuantizedWeights(),
        # Integers that the model itself stores, in their own width.
        NarrowStoredWeights(),
        # Lazily: constant folding would compute the same transposes in memory.
        FoldWeightTransposes(),
        # Constants before shapes, since many shapes are made from constants.
        FoldConstants(),
        DecideBranches(),
        EliminateIdentities(),
        # A Reshape that copies its dimensions needs no Shape, Gather and Concat: they are dead.
        FoldReshapeShapes(),
        EliminateDeadCode(),
        *tidy(),
    )


def tidy() -> tuple[Pass, ...]:
    """Passes that merge what is computed twice (masks, position ids), constants first."""
    return (
        LiftConstants(),
        ShareConstants(),
        EliminateCommonSubexpressions(),
        EliminateDeadCode(),
    )


def fused() -> tuple[Pass, ...]:
    """The passes from many spellings of a computation to the one op of the standard."""
    return (
        # Norms, activations and rotations stand before and between attentions, and are small.
        FuseNorm(),
        FuseGelu(),
        FuseSwiglu(),
        FuseRotary(),
        LegalizeRotaryEmbedding(),
        # Attention after rotations, so that a query or key is one value. Then its masks are made
        # once for all heads, and expanded, since runtimes do not broadcast them over queries.
        FuseAttention(),
        NarrowAttentionMask(),
        ExpandAttentionMask(),
        *tidy(),
    )


def folded(*, blocks_as_products: bool) -> tuple[Pass, ...]:
    """The passes that compute masks and positions from the fewest numbers."""
    return (
        # Heads are pruned while a bias is still a formula of each head.
        PruneHeads(),
        # Sparse masks before biases are folded: blocks take biases as the model computes them.
        LowerSparseAttention(products=blocks_as_products),
        FoldPositionBias(),
        *tidy(),
        # Removes rows that nothing reads, now that only a few ops compute them.
        HoistSelections(),
        EliminateDeadCode(),
    )


def quantized(scheme: Scheme) -> tuple[Pass, ...]:
    """The passes that quantize linear layers and embeddings by a scheme.

    They declare the facts that they need of calibration. The caller gathers these just before each
    pass, on the Graph that the passes before it left.
    """
    insert = InsertQdq(scheme=scheme)
    if not scheme.needs_ranges:
        return (insert,)
    return (
        *((NormalizeTokens(scheme=scheme),) if scheme.by_token else ()),
        # Exact, so before passes that round; it changes ranges, so they are observed after it.
        SmoothActivations(scheme=scheme),
        # While the Graph still has the weights in float.
        CorrectBiases(scheme=scheme),
        insert,
    )


def common(*, blocks_as_products: bool = False) -> Pipeline:
    """The first three stages of every target's pipeline.

    Args:
        blocks_as_products: whether the target computes attention by blocks faster as matrix
            products and a softmax than as an Attention.
    """
    return Pipeline(canonical(), fused(), folded(blocks_as_products=blocks_as_products))
