"""Attention that is written out becomes one Attention node."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from omnigraph.graph import Graph
from omnigraph.passes.analysis.attention.joined_mask import fitted_mask, joined_mask
from omnigraph.passes.analysis.attention.mask_kind import is_flag, kind_of, meaning_of
from omnigraph.passes.analysis.attention.past import AbsorbedPast, absorbed_past
from omnigraph.passes.analysis.attention.spelling import WrittenAttention
from omnigraph.passes.analysis.attention.weights import reaches_product
from omnigraph.passes.insertion import Inserter
from omnigraph.passes.matching import (
    axis_size,
    nodes_of,
    only_use,
    rank,
    remove_unused,
    replace_output,
    same_dim,
    standard,
)
from omnigraph.passes.site_pass import SitePass


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
        return _Rewrite(WrittenAttention(node)).run(self.absorb_past)


class _Rewrite:
    """One attention being written as an Attention before the product that ends it."""

    def __init__(self, found: WrittenAttention) -> None:
        self.found = found
        self.new = Inserter(found.shares.product)

    def run(self, absorb_past: bool) -> str:
        """Write the Attention in the place of the site, and say what it is."""
        found, new = self.found, self.new
        query, key, value = (heads.made(new) for heads in (found.query, found.key, found.value))
        mask = joined_mask(new, found.scores.terms, found.dtype, found.heads)
        if mask is not None:
            mask = fitted_mask(new, mask, query, key)
        past = absorbed_past(key, value, [query, mask]) if absorb_past else None
        mask, causal, kind = self._named(mask, query, key, past)
        inputs = [query, key, value, mask]
        if past is not None:
            inputs = [query, past.new_key, past.new_value, mask, past.key, past.value]
        elif mask is None:
            inputs.pop()
        outputs = 4 if found.seen is not None else 3 if past is not None else 1
        node = new.node("Attention", *inputs, outputs=outputs, **self._attributes(causal))
        node.name = found.softmax.name
        replaced = [past.keys, past.values] if past is not None else []
        if past is not None:
            past.replace(node.outputs[1], node.outputs[2])
        elif outputs == 4:
            node.outputs[1].name = node.outputs[2].name = ""
        if found.seen is not None and (maker := found.seen.producer()) is not None:
            replace_output(found.seen, self._with_axes(node.outputs[3], rank(found.seen)))
            replaced.append(maker)
        self._put(node.outputs[0])
        for before in replaced:  # which the site itself read too
            remove_unused(before)
        if past is not None:  # what reads the present may stand before the product
            assert node.graph is not None
            node.graph.sort()
        return self._became(kind, past)

    def _named(
        self,
        mask: ir.Value | None,
        query: ir.Value,
        key: ir.Value,
        past: AbsorbedPast | None,
    ) -> tuple[ir.Value | None, bool, str]:
        """The mask unless it need not be there, whether it is the causal flag, and its name."""
        if mask is None or (meant := meaning_of(mask)) is None:
            return mask, False, "" if mask is None else "added mask"
        shows_all = not meant.visible and not meant.bias
        causal = not shows_all and is_flag(meant, query, key, past)
        if self.found.seen is not None or not (shows_all or causal):
            return mask, False, kind_of(meant)
        if (maker := mask.producer()) is not None:
            remove_unused(maker)
        return None, causal, kind_of(meant)

    def _attributes(self, causal: bool) -> dict[str, float | int]:
        found = self.found
        attributes: dict[str, float | int] = {"scale": float(np.float32(found.scale))}
        if found.scores.softcap:
            attributes["softcap"] = float(np.float32(found.scores.softcap))
        precision = found.softmax.outputs[0].dtype
        if precision is not None and precision != found.dtype:
            attributes["softmax_precision"] = int(precision)
        if causal:
            attributes["is_causal"] = 1
        if found.seen is not None:
            attributes["qk_matmul_output_mode"] = found.mode
        return attributes

    def _put(self, result: ir.Value) -> None:
        """Give the result [B, H, T, D] to the users of the product, in their layout."""
        new, last, gates = self.new, self.found.shares.product, self.found.shares.gates
        old = last.outputs[0]
        user, heads = only_use(old), self.found.heads
        if user is not None and heads is not None and not gates and _splits(user, heads):
            old, last = user.outputs[0], user
        else:
            result = self._with_axes(result, rank(old))
        for gate in gates:
            result = new.op("Mul", result, gate)
        replace_output(old, result)
        remove_unused(last)

    def _with_axes(self, value: ir.Value, axes: int | None) -> ir.Value:
        """[B, H, M, N] as [B*H, M, N], or as [B, M, N] or [M, N] where the others are 1."""
        new = self.new
        if axes == 3 and self.found.heads is not None:
            tail = new.op("Shape", value, start=2, end=4)
            return new.op("Reshape", value, new.op("Concat", new.integers(-1), tail, axis=0))
        if axes in (2, 3):
            return new.op("Squeeze", value, new.integers(*((0, 1) if axes == 2 else (1,))))
        return value

    def _became(self, mask: str, past: AbsorbedPast | None) -> str:
        found = self.found
        heads, groups = found.query.dims[1], found.key.dims[1]
        parts = [
            f"Attention, {heads} heads",
            "" if same_dim(heads, groups) else f"{groups} of keys",
            mask,
            "softcap" if found.scores.softcap else "",
            "past" if past is not None else "",
            "gated" if found.shares.gates else "",
        ]
        return ", ".join(filter(None, parts))


def _splits(node: ir.Node, heads: int) -> bool:
    """Whether a node is a Reshape to [B, H, T, D] of a product [B*H, T, D]."""
    before, after = node.inputs[0], node.outputs[0]
    if not standard(node, "Reshape") or rank(before) != 3 or rank(after) != 4:
        return False
    if before is None or before.shape is None or after.shape is None:
        return False
    same = all(same_dim(before.shape[axis], after.shape[axis]) for axis in (-1, -2))
    return same and axis_size(after, 1) == heads
