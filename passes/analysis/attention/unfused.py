"""Reads an unfused attention from its softmax, in any spelling, and checks it."""

from __future__ import annotations

import onnx_ir as ir

from omnigraph.passes.analysis.attention.heads import (
    Dim,
    Heads,
    four_axes,
    joined_heads,
    repeated_from,
    scaled_queries,
    transposed_keys,
)
from omnigraph.passes.analysis.attention.joined_mask import check_terms
from omnigraph.passes.analysis.attention.scores import Scores, read_scores
from omnigraph.passes.analysis.attention.weights import AttentionWeights, read_weights
from omnigraph.passes.matching import axis_size, same_dim
from omnigraph.passes.site_pass import Miss


class UnfusedAttention:
    """The parts of an attention around one softmax; reading them changes nothing.

    Attributes:
        scores, weights: the nodes before the softmax, and the nodes after it.
        query, key, value: the tensors of four axes.
        heads: H where scores of three axes are [B*H, T, S]; else None.
        scale: the factor of the product of queries and keys.
        qk_output: the value on the way that something else reads too, if there is one; Attention
            gives it as ``qk_matmul_output`` in mode ``qk_mode``.

    Raises:
        Miss: Attention-24 does not compute this attention.
    """

    def __init__(self, softmax: ir.Node) -> None:
        self.softmax = softmax
        self.scores: Scores = read_scores(softmax)
        self.weights: AttentionWeights = read_weights(softmax, self.scores)
        left, right = self.scores.product.inputs[:2]
        value = self.weights.product.inputs[1]
        assert left is not None and right is not None and value is not None
        self.heads = self.scores.heads or self.weights.heads or joined_heads(left)
        self.query, left_scale = scaled_queries(left, self.heads)
        self.key, right_scale = transposed_keys(right, self.heads)
        self.value = four_axes(value, self.heads)
        self.scale = self.scores.scale * left_scale * right_scale
        if not self.scale > 0:
            raise Miss("the scale is not positive", self.scores.product)
        self.dtype = self._dtype()
        self._group_heads()
        self._check_sizes()
        self.qk_output, self.qk_mode = self._read_elsewhere()
        check_terms(self.scores.terms, self.dtype, self.weights.zeroed)

    def _dtype(self) -> ir.DataType:
        found = {heads.source.dtype for heads in (self.query, self.key, self.value)}
        (dtype, *others) = found
        if others or dtype is None:
            raise Miss("queries, keys and values are not of one known type", self.weights.product)
        return dtype

    def _group_heads(self) -> None:
        """Use keys and values from before both were repeated for the query heads."""
        if self.key.make is not None or self.value.make is not None:
            return
        key, value = repeated_from(self.key.source), repeated_from(self.value.source)
        if key is not None and value is not None and axis_size(key, 1) == axis_size(value, 1):
            self.key, self.value = Heads.whole(key), Heads.whole(value)

    def _check_sizes(self) -> None:
        """Refuse queries, keys and values that are broadcast to each other: Attention does not."""
        query, key, value = self.query.dims, self.key.dims, self.value.dims
        at = self.scores.product
        for one, name in ((key, "keys"), (value, "values")):
            if not _agree(query[0], one[0]):
                raise Miss(f"queries and {name} are not known to be of one batch", at)
            if not _agree(query[1], one[1]) and not _groups(query[1], one[1]):
                raise Miss(f"{name} have other heads than queries", at)
        if not _agree(key[1], value[1]):
            raise Miss("keys and values have other heads", at)
        if not _agree(key[2], value[2]):
            raise Miss("keys and values are not known to be equally many", at)
        self._check_masked()

    def _check_masked(self) -> None:
        """Refuse masks that broadcast the scores to more queries, heads or batches."""
        batch, heads, queries, _ = self.query.dims
        masked = self.softmax.outputs[0].shape
        if masked is None or (len(masked) == 3 and self.heads is not None):
            return
        own: list[Dim] = [batch, heads, queries, self.key.dims[2]]
        own = own if len(masked) == 4 else [batch, *own[2:]] if len(masked) == 3 else own[2:]
        for one, many in zip(own, masked, strict=True):
            if one == 1 and many != 1:
                raise Miss("the mask has a size that queries and keys have not", self.softmax)

    def _read_elsewhere(self) -> tuple[ir.Value | None, int]:
        """The one value on the way that something else reads too, and its output mode."""
        scores, weights = self.scores, self.weights
        way = [*scores.nodes, self.softmax, *weights.nodes]
        found: list[ir.Value] = []
        for value in (output for node in way for output in node.outputs):
            if value is weights.product.outputs[0] or value in found:
                continue
            if not _is_read_within(value, set(way)):
                found.append(value)
        found = [value for value in found if self._is_ours(value)]
        if not found:
            return None, 0
        modes = {**scores.modes, **dict.fromkeys(weights.ungated, 3)}
        if len(found) > 1 or found[0] not in modes:
            raise Miss("scores or attention weights are read elsewhere too", found[0].producer())
        if found[0].dtype != self.dtype:
            raise Miss(
                "scores or attention weights are read elsewhere in another precision", self.softmax
            )
        return found[0], modes[found[0]]

    def _is_ours(self, value: ir.Value) -> bool:
        """Whether a value depends on the product; conditions of guards may not."""
        stack, seen = [value], set()
        ways = {output for node in self.scores.nodes for output in node.outputs}
        ways.add(self.softmax.outputs[0])
        ours = {*self.scores.nodes, self.softmax, *self.weights.nodes}
        while stack:
            current = stack.pop()
            if current in ways:
                return True
            node = current.producer()
            if node in ours and current not in seen:
                seen.add(current)
                stack += [v for v in node.inputs if v is not None]
        return False


def _is_read_within(value: ir.Value, nodes: set[ir.Node], depth: int = 6) -> bool:
    """Whether only these nodes read a value, directly or through others, such as its Shape."""
    if value.is_graph_output() or depth == 0:
        return False
    others = [user for user, _ in value.uses() if user not in nodes]
    made = [output for user in others for output in user.outputs]
    return all(v.uses() and _is_read_within(v, nodes, depth - 1) for v in made)


def _agree(one: Dim, other: Dim) -> bool:
    """Whether two dimensions of one product are equal: neither of them is known to be 1."""
    return same_dim(one, other) or not (isinstance(one, int) or isinstance(other, int))


def _groups(queries: Dim, keys: Dim) -> bool:
    if not isinstance(queries, int) or not isinstance(keys, int):
        return False
    return queries > keys > 0 and queries % keys == 0
