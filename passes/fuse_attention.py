"""Attention that is written out becomes one Attention node."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import onnx_ir as ir

from omnigraph.passes.attention_heads import (
    Dim,
    Heads,
    four_axes,
    joined_heads,
    repeated_from,
    scaled_queries,
    turned_keys,
)
from omnigraph.passes.attention_scores import Scores, read_scores
from omnigraph.passes.attention_shares import Shares, reaches_product, read_shares
from omnigraph.passes.base import Graph
from omnigraph.passes.insertion import Inserter
from omnigraph.passes.joined_mask import check_terms, fitted_mask, joined_mask
from omnigraph.passes.matching import (
    axis_size,
    made_by,
    nodes_of,
    only_use,
    rank,
    replace_output,
    same_dim,
)
from omnigraph.passes.site_pass import Miss, SitePass


@dataclass(frozen=True)
class FuseAttention(SitePass):
    """Make one Attention of products, scales, masks and a softmax that are written out.

    Before::

        scores = MatMul(Mul(q, scale), Transpose(k))
        y      = MatMul(Softmax(Add(scores, mask)), v)

    After (Attention-24)::

        y = Attention[scale](q, k, v, mask)

    Taken in: a scale on queries, keys, both or the scores, before or after masks; masks that are
    added, and conditions by Where; a softcap; keys and values repeated for groups of heads; heads
    split into four axes or joined with the batch into three; a softmax in another precision;
    guards that give zero for a row that is hidden wholly; a gate on the shares, which becomes a
    Mul after the node; scores or shares that are read elsewhere, as ``qk_matmul_output``.

    A row hidden wholly by -inf is NaN before unless it is guarded, and zero after, as the standard
    says. One hidden by finite numbers keeps its numbers: a mask's lowest number becomes the lowest
    but one, because onnxruntime zeroes rows of the lowest.

    Args:
        absorb_past: whether keys and values concatenated with a past become ``past_key`` and
            ``past_value``, and what was concatenated the outputs ``present_*``.

    Needs: shapes with known ranks. Leaves alone: scores of five axes, random dropout, masks inside
    a softcap, and what the reasons say.
    """

    absorb_past: bool = True

    def sites(self, graph: Graph) -> Iterable[ir.Node]:
        """Every Softmax over the last axis whose result reaches a product of matrices."""
        for node in nodes_of(graph, "Softmax"):
            axis, axes = node.attributes.get_int("axis", -1), rank(node.inputs[0])
            if axis in (-1, (axes or 0) - 1) and reaches_product(node):
                yield node

    def rewrite(self, graph: Graph, node: ir.Node) -> str:
        """Rewrite one site, and say what it became."""
        return _Site(node).rewrite(self.absorb_past)


class _Site:
    """One softmax of scores, read and checked, then written as an Attention."""

    def __init__(self, softmax: ir.Node) -> None:
        self.softmax = softmax
        self.scores: Scores = read_scores(softmax)
        self.shares: Shares = read_shares(softmax, self.scores)
        left, right = self.scores.product.inputs[:2]
        value = self.shares.product.inputs[1]
        assert left is not None and right is not None and value is not None
        self.heads = self.scores.heads or self.shares.heads or joined_heads(left)
        self.query, left_scale = scaled_queries(left, self.heads)
        self.key, right_scale = turned_keys(right, self.heads)
        self.value = four_axes(value, self.heads)
        self.scale = self.scores.scale * left_scale * right_scale
        if not self.scale > 0:
            raise Miss("the scale is not positive", self.scores.product)
        self.dtype = self._dtype()
        self._group_heads()
        self._check_sizes()
        self.seen, self.mode = self._read_elsewhere()
        check_terms(self.scores.terms, self.dtype, self.shares.zeroed)

    def _dtype(self) -> ir.DataType:
        found = {heads.source.dtype for heads in (self.query, self.key, self.value)}
        (dtype, *others) = found
        if others or dtype is None:
            raise Miss("queries, keys and values are not of one known type", self.shares.product)
        return dtype

    def _group_heads(self) -> None:
        """Take keys and values from before they were repeated, where both were."""
        if self.key.make is not None or self.value.make is not None:
            return
        key, value = repeated_from(self.key.source), repeated_from(self.value.source)
        if key is not None and value is not None and axis_size(key, 1) == axis_size(value, 1):
            self.key, self.value = Heads.whole(key), Heads.whole(value)

    def _check_sizes(self) -> None:
        """Refuse factors that one is broadcast to the other: Attention does not."""
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

    def _read_elsewhere(self) -> tuple[ir.Value | None, int]:
        """The one value on the way that others read too, and the output mode that gives it."""
        scores, shares = self.scores, self.shares
        absorbed = {*scores.nodes, self.softmax, *shares.nodes}
        way = [*scores.nodes, self.softmax, *shares.nodes]
        found: list[ir.Value] = []
        for value in (output for node in way for output in node.outputs):
            if value is shares.product.outputs[0] or value in found:
                continue
            if value.is_graph_output() or any(user not in absorbed for user, _ in value.uses()):
                found.append(value)
        found = [value for value in found if self._is_ours(value)]
        if not found:
            return None, 0
        modes = {**scores.modes, **dict.fromkeys(shares.shares, 3)}
        if len(found) > 1 or found[0] not in modes:
            raise Miss("scores or shares are read elsewhere too", found[0].producer())
        if rank(found[0]) != 4 or found[0].dtype != self.dtype:
            raise Miss("scores or shares are read elsewhere in another layout", self.softmax)
        return found[0], modes[found[0]]

    def _is_ours(self, value: ir.Value) -> bool:
        """Whether a value depends on the product; conditions of guards may not."""
        stack, seen = [value], set()
        ways = {output for node in self.scores.nodes for output in node.outputs}
        ways.add(self.softmax.outputs[0])
        ours = {*self.scores.nodes, self.softmax, *self.shares.nodes}
        while stack:
            current = stack.pop()
            if current in ways:
                return True
            node = current.producer()
            if node in ours and current not in seen:
                seen.add(current)
                stack += [v for v in node.inputs if v is not None]
        return False

    def rewrite(self, absorb_past: bool) -> str:
        """Write the Attention in the place of the site, and say what it is."""
        end = self.shares.product
        new = Inserter(end)
        query, key, value = (heads.made(new) for heads in (self.query, self.key, self.value))
        mask = joined_mask(new, self.scores.terms, self.dtype, self.heads)
        if mask is not None:
            mask = fitted_mask(new, mask, query, key)
        inputs: list[ir.Value | None] = [query, key, value, mask]
        pasts = _pasts(key, value, [query, mask]) if absorb_past else None
        if pasts is not None:
            inputs = [query, pasts[0].inputs[1], pasts[1].inputs[1], mask]
            inputs += [pasts[0].inputs[0], pasts[1].inputs[0]]
        elif mask is None:
            inputs.pop()
        outputs = 4 if self.seen is not None else 3 if pasts is not None else 1
        node = new.node("Attention", *inputs, outputs=outputs, **self._attributes())
        node.name = self.softmax.name
        if pasts is not None:
            for index, past in enumerate(pasts):
                replace_output(past.outputs[0], node.outputs[1 + index])
        elif outputs == 4:
            node.outputs[1].name = node.outputs[2].name = ""
        if self.seen is not None:
            replace_output(self.seen, node.outputs[3])
        self._put(new, node.outputs[0])
        if pasts is not None:
            assert node.graph is not None
            node.graph.sort()
        return self._became(mask, pasts is not None)

    def _attributes(self) -> dict[str, float | int]:
        attributes: dict[str, float | int] = {"scale": self.scale}
        if self.scores.softcap:
            attributes["softcap"] = self.scores.softcap
        precision = self.softmax.outputs[0].dtype
        if precision is not None and precision != self.dtype:
            attributes["softmax_precision"] = int(precision)
        if self.seen is not None:
            attributes["qk_matmul_output_mode"] = self.mode
        return attributes

    def _put(self, new: Inserter, result: ir.Value) -> None:
        """Give the result [B, H, T, D] to the users of the product, in their layout."""
        old, last = self.shares.product.outputs[0], self.shares.product
        axes = rank(old)
        if axes == 3 and self.heads is not None:
            split = made_by_use(old)
            if split is not None and not self.shares.gates and self._splits(split):
                old, last = split.outputs[0], split
            else:
                tail = new.op("Shape", result, start=2, end=4)
                whole = new.op("Concat", new.integers(-1), tail, axis=0)
                result = new.op("Reshape", result, whole)
        elif axes in (2, 3):
            result = new.op("Squeeze", result, new.integers(*((0, 1) if axes == 2 else (1,))))
        for gate in self.shares.gates:
            result = new.op("Mul", result, gate)
        replace_output(old, result)
        remove_unused(last)

    def _splits(self, node: ir.Node) -> bool:
        """Whether a Reshape gives [B, H, T, D] from the product [B*H, T, D]."""
        before, after = node.inputs[0], node.outputs[0]
        if before is None or before.shape is None or after.shape is None or rank(after) != 4:
            return False
        same = all(same_dim(before.shape[axis], after.shape[axis]) for axis in (-1, -2))
        return same and axis_size(after, 1) == self.heads

    def _became(self, mask: ir.Value | None, past: bool) -> str:
        heads, groups = self.query.dims[1], self.key.dims[1]
        parts = [f"Attention, {heads} heads"]
        if not same_dim(heads, groups):
            parts.append(f"{groups} of keys")
        if mask is not None:
            parts.append("a condition for mask" if mask.dtype == ir.DataType.BOOL else "added mask")
        if self.scores.softcap:
            parts.append("softcap")
        if past:
            parts.append("past")
        return ", ".join(parts)


def made_by_use(value: ir.Value) -> ir.Node | None:
    """The Reshape that alone reads a value."""
    user = only_use(value)
    return user if user is not None and user.op_type == "Reshape" and user.domain == "" else None


def _agree(one: Dim, other: Dim) -> bool:
    """Whether two dimensions of one product are equal: neither of them is known to be 1."""
    return same_dim(one, other) or not (isinstance(one, int) or isinstance(other, int))


def _groups(queries: Dim, keys: Dim) -> bool:
    known = isinstance(queries, int) and isinstance(keys, int)
    return known and queries > keys > 0 and queries % keys == 0


def _pasts(
    key: ir.Value, value: ir.Value, others: list[ir.Value | None]
) -> tuple[ir.Node, ir.Node] | None:
    """The Concats of a past with new keys and values, if nothing else of the site reads them."""
    joins = []
    for joined in (key, value):
        node = made_by(joined, "Concat")
        if (
            node is None
            or len(node.inputs) != 2
            or node.attributes.get_int("axis", 0) not in (2, -2)
        ):
            return None
        if node.inputs[0] is node.inputs[1] or rank(joined) != 4:
            return None
        joins.append(node)
    past, other = (node.inputs[0] for node in joins)
    if past is None or other is None or past.shape is None or other.shape is None:
        return None
    if key is value or not _agree(past.shape[2], other.shape[2]):
        return None
    inputs = [v for node in joins for v in node.inputs]
    return None if _depend([*others, *inputs], set(joins)) else (joins[0], joins[1])


def _depend(values: list[ir.Value | None], nodes: set[ir.Node]) -> bool:
    """Whether any of these values is made from an output of these nodes."""
    stack, seen = list(values), set()
    while stack:
        value = stack.pop()
        node = value.producer() if value is not None else None
        if node is None or node in seen:
            continue
        if node in nodes:
            return True
        seen.add(node)
        stack += node.inputs
    return False


def remove_unused(node: ir.Node) -> None:
    """Remove a node that nothing reads, and those before it that then nothing reads."""
    stack = [node]
    while stack:
        current = stack.pop()
        used = any(v.uses() or v.is_graph_output() for v in current.outputs)
        if current.graph is None or used:
            continue
        before = [v.producer() for v in current.inputs if v is not None]
        current.graph.remove(current, safe=True)
        stack += [producer for producer in before if producer is not None]
