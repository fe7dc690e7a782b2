"""Replaces long causal attention by onnxruntime's GroupQueryAttention, which works in blocks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from omnigraph.graph import Graph, range_of
from omnigraph.passes.insertion import Inserter
from omnigraph.passes.join_attention_heads import join_heads
from omnigraph.passes.matching import axis_size, input_at, nodes_of, rank, replace_output, same_dim
from omnigraph.passes.site_pass import Miss, SitePass

#: The domain of onnxruntime's own ops, and its version.
CONTRIB_DOMAIN, CONTRIB_VERSION = "com.microsoft", 1
_MASK, _PAST_KEY = 3, 4
_SEVERAL = 2


@dataclass(frozen=True)
class UseGroupQueryAttention(SitePass):
    """Replace causal self-attention over many tokens by an op that never holds all scores.

    Before, with T tokens known to be at least ``shortest``::

        y = Attention[is_causal=1, q_num_heads=H, kv_num_heads=G](q, k, v, mask)

    After, with an op of onnxruntime's own domain, which no other runtime has::

        last = Expand(T - 1, [B])
        y    = com.microsoft::GroupQueryAttention[num_heads=H, kv_num_heads=G](
                   q, k, v, seqlens_k=last, total_sequence_length=T,
                   attention_bias=Where(mask, 0, -inf))

    A row with all keys hidden is zero in both. From 1,024 tokens on, the op was measured to take
    less time and memory, and more below (``omnigraph/lowering/onnx/kernels.py``).

    Needs: float32; known sizes of the heads; heads that are split and joined just around the node
    or not at all. Leaves alone: an Attention that may have fewer tokens than ``shortest``; one with
    a past, a softcap, keys of other tokens, or scores that something reads.

    Args:
        shortest: the fewest tokens for which the op is faster.
    """

    makes: ClassVar[tuple[str, ...]] = ("com.microsoft::GroupQueryAttention",)

    shortest: int = 1024

    def sites(self, graph: Graph) -> Iterable[ir.Node]:
        """Every causal Attention."""
        for node in nodes_of(graph, "Attention"):
            if node.attributes.get_int("is_causal", 0):
                yield node

    def rewrite(self, graph: Graph, node: ir.Node) -> str:
        """Replace one Attention by a GroupQueryAttention."""
        tokens = self._tokens(graph, node)
        mask = input_at(node, _MASK)
        if mask is not None:
            _check_mask(mask)
            if tokens < _SEVERAL:
                raise Miss("of one token alone that its mask hides, it would give NaN")
        if "q_num_heads" not in node.attributes:
            node = join_heads(node)
        heads = node.attributes.get_int("q_num_heads", 0)
        groups = node.attributes.get_int("kv_num_heads", 0)
        before = Inserter(node)
        length = before.op("Shape", node.inputs[1], start=1, end=2)
        last = before.op("Sub", length, before.integers(1))
        batch = before.op("Shape", node.inputs[1], start=0, end=1)
        last = before.op("Cast", before.op("Expand", last, batch), to=ir.DataType.INT32)
        total = before.op("Squeeze", before.op("Cast", length, to=ir.DataType.INT32))
        attributes: dict[str, float | int] = {"num_heads": heads, "kv_num_heads": groups}
        if (scale := node.attributes.get_float("scale", 0.0)) != 0.0:
            attributes["scale"] = scale
        inputs = [*node.inputs[:3], None, None, last, total]
        if mask is not None:
            inputs += [None, None, None, _addable(mask, before)]
        new = ir.node(
            "GroupQueryAttention",
            inputs,
            attributes,
            domain=CONTRIB_DOMAIN,
            num_outputs=3,
            name=node.name,
        )
        new.metadata_props.update(node.metadata_props)
        for output, like in zip(new.outputs, node.inputs, strict=False):
            assert like is not None
            output.type = like.type
        node.prepend(new)
        new.outputs[0].shape = node.outputs[0].shape
        replace_output(node.outputs[0], new.outputs[0])
        graph.graph.remove(node, safe=True)
        graph.opset_imports[CONTRIB_DOMAIN] = CONTRIB_VERSION
        return f"GroupQueryAttention, {heads} heads, {tokens} tokens or more"

    def _tokens(self, graph: Graph, node: ir.Node) -> int:
        """The fewest tokens that a site may have.

        Raises:
            Miss: they are too few, or the op computes something else.
        """
        query, key = node.inputs[:2]
        assert query is not None and key is not None
        split = "q_num_heads" not in node.attributes
        axis, axes = (2, 4) if split else (1, 3)
        if query.dtype != ir.DataType.FLOAT:
            raise Miss(f"it was not measured in {query.dtype}")
        if any(value is not None for value in node.inputs[_PAST_KEY:]):
            raise Miss("it has a past, or lengths of its own")
        if any(v.uses() or v.is_graph_output() for v in node.outputs[1:]):
            raise Miss("more than its result is read")
        if node.attributes.get_float("softcap", 0.0):
            raise Miss("it has a softcap")
        if rank(query) != axes or rank(key) != axes or query.shape is None or key.shape is None:
            raise Miss("shapes are not known")
        if not same_dim(query.shape[axis], key.shape[axis]):
            raise Miss("queries and keys are not known to be equally many")
        sizes = {axis_size(value, axes - 1 if split else 2) for value in node.inputs[1:3]}
        if None in sizes or len(sizes) != 1:
            raise Miss("keys and values are not of one known size")
        size = query.shape[axis]
        least = size if isinstance(size, int) else range_of(graph, size.value or "")[0]
        if least < self.shortest:
            raise Miss(f"it may have {least} tokens, and pays from {self.shortest} on")
        return least


def _check_mask(mask: ir.Value) -> None:
    """Refuse a mask that the op does not take: it takes [B or 1, H or 1, T, T] in float32."""
    if rank(mask) != 4 or mask.shape is None:
        raise Miss("its mask is not of four axes")
    if mask.dtype not in (ir.DataType.BOOL, ir.DataType.FLOAT):
        raise Miss(f"its mask is of {mask.dtype}")
    if axis_size(mask, 2) == 1 or axis_size(mask, 3) == 1:
        raise Miss("its mask has not a row for each query and a column for each key")


def _addable(mask: ir.Value, before: Inserter) -> ir.Value:
    """A mask as numbers to add."""
    if mask.dtype == ir.DataType.FLOAT:
        return mask
    zero, hidden = (before.constant(np.array(n, np.float32)) for n in (0.0, -np.inf))
    return before.op("Where", mask, zero, hidden)
