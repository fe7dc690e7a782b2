"""What the mask of an Attention is: the flag that it may be instead, and its name for a person."""

from __future__ import annotations

import onnx_ir as ir

from omnigraph.passes.analysis.attention.mask import MaskMeaning, NotClosed, meaning
from omnigraph.passes.analysis.attention.past import AbsorbedPast
from omnigraph.passes.analysis.index.expression import Linear
from omnigraph.passes.analysis.index.reading import IndexReader
from omnigraph.passes.matching import same_dim


def meaning_of(mask: ir.Value) -> MaskMeaning | None:
    """What a mask means, if its elements can be read as an expression of positions and data."""
    try:
        return meaning(mask)
    except NotClosed:
        return None


def is_flag(meant: MaskMeaning, query: ir.Value, key: ir.Value, past: AbsorbedPast | None) -> bool:
    """Whether a mask is what ``is_causal`` means: ``j <= i + past``, and read one way by all."""
    if past is not None:
        offset = IndexReader().dims(past.key)[2]
        return offset is not None and meant.is_causal(offset)
    assert query.shape is not None and key.shape is not None
    return same_dim(query.shape[2], key.shape[2]) and meant.is_causal(Linear(0))


def kind_of(meant: MaskMeaning) -> str:
    """What a mask is, for a person."""
    left, right = meant.left, meant.right
    parts = [] if right is None or left == right else ["causal"]
    if left is not None:
        parts.append(f"window of {left if right in (None, left) else left + right + 1}")
    parts += ["position mask"] if meant.positional else []
    parts += ["mask of data"] if meant.by_data else []
    parts += ["bias"] if meant.bias else []
    return ", ".join(parts)
