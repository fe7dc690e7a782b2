"""Fuses the products, masks and softmax of an attention into one Attention node."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from omnigraph.graph import Graph
from omnigraph.passes.analysis.attention.joined_mask import fitted_mask, joined_mask
from omnigraph.passes.analysis.attention.mask_kind import is_causal_flag, kind_of, meaning_of
from omnigraph.passes.analysis.attention.past import ConcatenatedPast, concatenated_past
from omnigraph.passes.analysis.attention.sites import reaches_product, softmaxes_of_keys
from omnigraph.passes.analysis.attention.unfused import UnfusedAttention
from omnigraph.passes.insertion import Inserter
from omnigraph.passes.matching import (
    axis_size,
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
    """Fuse the products, scales, masks and softmax of an attention into one Attention.

    Before::

        scores = MatMul(Mul(q, scale), Transpose(k))
        y      = MatMul(Softmax(Add(scores, mask)), v)

    After (Attention-24)::

        y = Attention[scale](q, k, v, mask)

    The Attention takes in:

    - a scale on queries, keys, both or the scores, before or after masks;
    - masks that are added, and conditions of a Where;
    - a softcap;
    - keys and values repeated for groups of heads;
    - heads split into four axes, or joined with the batch into three;
    - a softmax in another precision;
    - guards that zero a row with all keys hidden;
    - a gate on the attention weights, which becomes a Mul after the node;
    - scores or attention weights that something else reads, as ``qk_matmul_output``.

    A row with all keys hidden by -inf is NaN before, unless it is guarded, and zero after, as the
    standard says. A row hidden by finite numbers keeps its result: the lowest number in a mask
    becomes the lowest but one, because onnxruntime zeroes rows of the lowest.

    Args:
        absorb_past: whether the concatenation of keys and values with a past becomes the inputs
            ``past_key`` and ``past_value``, and the outputs ``present_*``.

    Needs: shapes with known ranks. Leaves alone: scores of five axes, random dropout, and masks
    inside a softcap; the reason of each site says more.
    """

    makes: ClassVar[tuple[str, ...]] = ("Attention",)

    absorb_past: bool = True

    def sites(self, graph: Graph) -> Iterable[ir.Node]:
        """Every Softmax over the last axis whose result reaches a product of matrices."""
        for node in softmaxes_of_keys(graph):
            if reaches_product(node.outputs[0], "MatMul"):
                yield node

    def rewrite(self, graph: Graph, node: ir.Node) -> str:
        """Fuse the attention around one Softmax."""
        return _Rewrite(UnfusedAttention(node)).run(self.absorb_past)


class _Rewrite:
    """Writes one Attention before the product that ends the attention."""

    def __init__(self, found: UnfusedAttention) -> None:
        self.found = found
        self.new = Inserter(found.weights.product)

    def run(self, absorb_past: bool) -> str:
        """Put the Attention in the place of the site, and describe it."""
        found, new = self.found, self.new
        query, key, value = (heads.made(new) for heads in (found.query, found.key, found.value))
        mask = joined_mask(new, found.scores.terms, found.dtype, found.heads)
        if mask is not None:
            mask = fitted_mask(new, mask, query, key)
        past = concatenated_past(key, value, [query, mask]) if absorb_past else None
        mask, causal, kind = self._named(mask, query, key, past)
        inputs = [query, key, value, mask]
        if past is not None:
            inputs = [query, past.new_key, past.new_value, mask, past.key, past.value]
        elif mask is None:
            inputs.pop()
        outputs = 4 if found.qk_output is not None else 3 if past is not None else 1
        node = new.node("Attention", *inputs, outputs=outputs, **self._attributes(causal))
        node.name = found.softmax.name
        replaced = [past.keys, past.values] if past is not None else []
        if past is not None:
            past.replace(node.outputs[1], node.outputs[2])
        elif outputs == 4:
            node.outputs[1].name = node.outputs[2].name = ""
        if found.qk_output is not None and (maker := found.qk_output.producer()) is not None:
            replace_output(found.qk_output, self._with_axes(node.outputs[3], rank(found.qk_output)))
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
        past: ConcatenatedPast | None,
    ) -> tuple[ir.Value | None, bool, str]:
        """The mask if it is needed, whether the causal flag replaces it, and its kind."""
        if mask is None or (meant := meaning_of(mask)) is None:
            return mask, False, "" if mask is None else "added mask"
        shows_all = not meant.visible and not meant.bias
        causal = not shows_all and is_causal_flag(meant, query, key, past)
        if self.found.qk_output is not None or not (shows_all or causal):
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
        if found.qk_output is not None:
            attributes["qk_matmul_output_mode"] = found.qk_mode
        return attributes

    def _put(self, result: ir.Value) -> None:
        """Give the result [B, H, T, D] to the readers of the product, in their layout."""
        new, last, gates = self.new, self.found.weights.product, self.found.weights.gates
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

    def _became(self, mask: str, past: ConcatenatedPast | None) -> str:
        found = self.found
        heads, groups = found.query.dims[1], found.key.dims[1]
        parts = [
            f"Attention, {heads} heads",
            "" if same_dim(heads, groups) else f"{groups} of keys",
            mask,
            "softcap" if found.scores.softcap else "",
            "past" if past is not None else "",
            "gated" if found.weights.gates else "",
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
