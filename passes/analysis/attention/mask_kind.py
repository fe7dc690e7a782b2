"""Names the kind of a mask for a person, and tells whether the causal flag can replace it."""

from __future__ import annotations

import onnx_ir as ir

from omnigraph.passes.analysis.attention.mask import MaskMeaning, meaning
from omnigraph.passes.analysis.attention.past import ConcatenatedPast
from omnigraph.passes.analysis.index import IndexReader, Linear, NotClosed
from omnigraph.passes.matching import same_dim


def meaning_of(mask: ir.Value) -> MaskMeaning | None:
    """The meaning of a mask; None where its elements cannot be read as an expression."""
    try:
        return meaning(mask)
    except NotClosed:
        return None


def is_causal_flag(
    meant: MaskMeaning, query: ir.Value, key: ir.Value, past: ConcatenatedPast | None
) -> bool:
    """Whether a mask is ``j <= i + past`` and nothing else, as ``is_causal`` says.

    Without a past, queries and keys must be equally many: then all runtimes read the flag alike.
    """
    if past is not None:
        offset = IndexReader().dims(past.key)[2]
        return offset is not None and meant.is_causal(offset)
    assert query.shape is not None and key.shape is not None
    return same_dim(query.shape[2], key.shape[2]) and meant.is_causal(Linear(0))


def kind_of(meant: MaskMeaning) -> str:
    """The kind of a mask, for a person: "causal, window of 128"."""
    left, right = meant.left, meant.right
    parts = [] if right is None or left == right else ["causal"]
    if left is not None:
        parts.append(f"window of {left if right in (None, left) else left + right + 1}")
    parts += ["position mask"] if meant.positional else []
    parts += ["mask of data"] if meant.by_data else []
    parts += ["bias"] if meant.bias else []
    return ", ".join(parts)
