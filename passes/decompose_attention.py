"""Writes attention that no fused kernel takes as products and a softmax."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from omnigraph.graph import Graph
from omnigraph.passes.insertion import Inserter
from omnigraph.passes.matching import axis_size, input_at, nodes_of
from omnigraph.passes.site_pass import Miss, SitePass

_MASK, _PAST_KEY, _NONPAD = 3, 4, 6
_QK_OUTPUT = 3


@dataclass(frozen=True)
class DecomposeAttention(SitePass):
    """Write each Attention that no fused kernel takes as products and a softmax.

    Before::

        y = Attention(q, k, v, mask)

    After::

        scores  = MatMul(Mul(q, scale), Transpose(k))
        weights = Softmax(Add(scores, mask))      a boolean mask: Where(mask, scores, least)
        y       = MatMul(weights, v)

    A row with all keys hidden is zero, as Attention-24 says. Keys and values with fewer heads than
    the queries are repeated.

    Args:
        smallest_head, largest_head: the kernel takes head sizes between these.
        separate: whether the kernel needs queries and keys to be two tensors.
        fixed_heads: whether the kernel needs a known number of heads; attention by blocks has none.

    Needs: shapes with known heads and head sizes. Leaves alone: an Attention that the kernel takes
    (head size within the limits, keys and values of one size, no softcap, no output of the scores);
    an Attention that is not plain: of three axes, causal, with a past or ``nonpad_kv_seqlen``.
    """

    smallest_head: int = 1
    largest_head: int = 256
    separate: bool = False
    fixed_heads: bool = False

    def sites(self, graph: Graph) -> Iterator[ir.Node]:
        """Every Attention."""
        return nodes_of(graph, "Attention")

    def rewrite(self, graph: Graph, node: ir.Node) -> str:
        """Write one Attention as products and a softmax."""
        if not is_plain(node):
            raise Miss("it is causal, has a past, or its heads are not an axis of their own")
        reason = self.why_no_kernel(node)
        if reason is None:
            raise Miss("a fused kernel takes it")
        _Decomposition(node).run()
        return f"products and a softmax, for there is no fused kernel for {reason}"

    def why_no_kernel(self, node: ir.Node) -> str | None:
        """The property of an Attention that no fused kernel takes; None if one takes it."""
        size = head_size(node, 0)
        if size is not None and not self.smallest_head <= size <= self.largest_head:
            return f"heads of {size}, outside {self.smallest_head} to {self.largest_head}"
        if head_size(node, 2) != size:
            return f"values of {head_size(node, 2)} and queries of {size}"
        if self.fixed_heads and axis_size(node.inputs[0], 1) is None:
            return "a number of heads that is not fixed"
        if self.separate and origin(node.inputs[0]) is origin(node.inputs[1]):
            return "queries and keys that are one tensor"
        if node.attributes.get_float("softcap", 0.0):
            return "a softcap"
        if "softmax_precision" in node.attributes:
            return "a softmax precision"
        if len(node.outputs) > _QK_OUTPUT:
            return "an output of the scores"
        return None


def is_plain(node: ir.Node) -> bool:
    """Whether a node is an Attention of four axes with no causal flag and no past."""
    if node.domain != "" or node.op_type != "Attention" or "q_num_heads" in node.attributes:
        return False
    if node.attributes.get_int("is_causal", 0) or head_size(node, 0) is None:
        return False
    return not any(v is not None for v in node.inputs[_PAST_KEY:])


def write_out(node: ir.Node) -> None:
    """Put products and a softmax in the place of a plain Attention."""
    _Decomposition(node).run()


def head_size(node: ir.Node, index: int) -> int | None:
    """The size of the heads of an input [B, H, T, D], where it is known."""
    value = node.inputs[index]
    size = value.shape[3] if value is not None and value.shape is not None else None
    return size if isinstance(size, int) else None


def origin(value: ir.Value | None) -> ir.Value | None:
    """The value that others are copies of."""
    while value is not None and (node := value.producer()) is not None:
        if node.domain != "" or node.op_type != "Identity":
            break
        value = node.inputs[0]
    return value


class _Decomposition:
    """Writes the products and the softmax of one Attention before it."""

    def __init__(self, node: ir.Node) -> None:
        self.node = node
        query, self.key, self.value = (v for v in node.inputs[:3] if v is not None)
        self.query, self.dtype = query, query.dtype or ir.DataType.FLOAT
        self.mask = input_at(node, _MASK)
        self.new = Inserter(node)

    def run(self) -> None:
        new, size = self.new, head_size(self.node, 0)
        assert size is not None
        scale = self.node.attributes.get_float("scale", 0.0) or 1 / math.sqrt(size)
        transposed = new.op("Transpose", self.per_query(self.key), perm=[0, 1, 3, 2])
        scaled = new.op("Mul", self.query, self.number(scale))
        stages = [new.op("MatMul", scaled, transposed)]
        cap = self.node.attributes.get_float("softcap", 0.0)
        if cap:
            bounded = new.op("Tanh", new.op("Div", stages[0], self.number(cap)))
            stages.append(new.op("Mul", bounded, self.number(cap)))
        else:
            stages.append(stages[0])
        stages.append(self.masked(stages[1]))
        stages.append(self.without_hidden_rows(new.op("Softmax", stages[-1], axis=-1)))
        result = self.new.op("MatMul", stages[-1], self.per_query(self.value))
        self.replace(0, result)
        if len(self.node.outputs) > _QK_OUTPUT:
            shown = self.node.attributes.get_int("qk_matmul_output_mode", 0)
            self.replace(_QK_OUTPUT, stages[shown])
        assert self.node.graph is not None
        self.node.graph.remove(self.node, safe=True)

    def per_query(self, value: ir.Value) -> ir.Value:
        """Keys or values [B, H, S, D] with as many heads as the queries have."""
        assert self.query.shape is not None and value.shape is not None
        heads, own, size = self.query.shape[1], value.shape[1], value.shape[3]
        if heads == own or not (isinstance(heads, int) and isinstance(own, int)):
            return value
        assert isinstance(size, int)
        apart = self.new.op("Unsqueeze", value, self.new.integers(2))  # [B, H, 1, S, D]
        repeated = self.new.op("Expand", apart, self.new.integers(1, 1, heads // own, 1, 1))
        return self.new.op("Reshape", repeated, self.new.integers(0, heads, -1, size))

    def masked(self, scores: ir.Value) -> ir.Value:
        if self.mask is None:
            return scores
        if self.mask.dtype == ir.DataType.BOOL:
            least = np.finfo(np.float32).min if self.dtype != ir.DataType.FLOAT16 else -65504.0
            return self.new.op("Where", self.mask, scores, self.number(float(least)))
        return self.new.op("Add", scores, self.mask)

    def without_hidden_rows(self, weights: ir.Value) -> ir.Value:
        """Zero the attention weights of hidden keys, also in rows with all keys hidden."""
        if self.mask is None:
            return weights
        if self.mask.dtype == ir.DataType.BOOL:
            return self.new.op("Where", self.mask, weights, self.number(0.0))
        undefined = self.new.op("IsNaN", weights)
        return self.new.op("Where", undefined, self.number(0.0), weights)

    def replace(self, index: int, result: ir.Value) -> None:
        old = self.node.outputs[index]
        name, result.shape = old.name, old.shape
        old.name = f"{name}_fused"
        result.name = name
        ir.convenience.replace_all_uses_with(old, result, replace_graph_outputs=True)

    def number(self, number: float) -> ir.Value:
        return self.new.number(number, self.query)
