"""Gives Attention its projections with heads side by side, without transposes around it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import onnx_ir as ir

from omnigraph.graph import Graph
from omnigraph.passes.insertion import Inserter
from omnigraph.passes.matching import (
    axis_size,
    constant,
    input_at,
    made_by,
    nodes_of,
    only_use,
    rank,
    remove_unused,
    replace_output,
    same_dim,
    standard,
)
from omnigraph.passes.site_pass import Miss, SitePass

_SWAP = (0, 2, 1, 3)


@dataclass(frozen=True)
class JoinAttentionHeads(SitePass):
    """Give an Attention its inputs as [B, T, H * D], without splitting heads before it.

    Before::

        q = Transpose(Reshape(x, [0, 0, H, D]), perm=[0, 2, 1, 3])       and k, v in the same way
        y = Reshape(Transpose(Attention(q, k, v, mask), perm=[0, 2, 1, 3]), [0, 0, H * D])

    After (Attention-24, inputs of three axes)::

        y = Attention[q_num_heads=H, kv_num_heads=H](x, x_k, x_v, mask)

    A RotaryEmbedding between the two stays, with ``num_heads``. Mask, past and attributes stay as
    they are. The kernel of onnxruntime then splits heads itself, in fewer steps.

    Needs: shapes. Leaves alone: keys and values whose heads are an axis already, such as those of a
    past that is concatenated outside; an Attention with a fixed number of queries above
    ``longest``, where that kernel is slower (``omnigraph/lowering/onnx/kernels.py``).

    Args:
        longest: the most queries for which the kernel is faster; a length that is not fixed counts
            as fewer.
    """

    longest: int = 512

    def sites(self, graph: Graph) -> Iterable[ir.Node]:
        """Every Attention of four axes."""
        for node in nodes_of(graph, "Attention"):
            if "q_num_heads" not in node.attributes:
                yield node

    def rewrite(self, graph: Graph, node: ir.Node) -> str:
        """Make one Attention one of three axes."""
        queries = axis_size(node.inputs[0], 2)
        if queries is not None and queries > self.longest:
            raise Miss(f"{queries} queries are more than it pays for, {self.longest}")
        joined = join_heads(node)
        return f"Attention of three axes, {joined.attributes.get_int('q_num_heads')} heads"


def join_heads(node: ir.Node) -> ir.Node:
    """Replace an Attention of four axes by one of three, and return the new node.

    Raises:
        Miss: heads are not split just before it, or not joined just after it; nothing changed.
    """
    if len(node.outputs) > 3 and (node.outputs[3].uses() or node.outputs[3].is_graph_output()):
        raise Miss("its scores are read")
    joined = [_joined(value, name) for value, name in zip(node.inputs, _NAMES, strict=False)]
    result = _joined_result(node)
    heads = [axis_size(node.inputs[index], 1) for index in (0, 1)]
    if None in heads:
        raise Miss("the number of heads is not known")
    before = Inserter(node)
    inputs = [_without_split(*pair, before) for pair in joined]
    attributes = {name: a.value for name, a in node.attributes.items()}
    new = before.node(
        "Attention",
        *inputs,
        *node.inputs[len(_NAMES) :],
        outputs=len(node.outputs),
        q_num_heads=heads[0],
        kv_num_heads=heads[1],
        **attributes,
    )
    new.name = node.name
    new.metadata_props.update(node.metadata_props)
    for old, fresh in zip(node.outputs[1:], new.outputs[1:], strict=True):
        fresh.type, fresh.shape = old.type, old.shape
        replace_output(old, fresh)
    split = [value.producer() for value in node.inputs[: len(_NAMES)] if value is not None]
    new.outputs[0].type, new.outputs[0].shape = result.type, result.shape
    last = result.producer()
    replace_output(result, new.outputs[0])
    assert last is not None
    remove_unused(last)
    for producer in split:
        if producer is not None:
            remove_unused(producer)
    return new


_NAMES = ("queries", "keys", "values")


def _joined(value: ir.Value | None, name: str) -> tuple[ir.Value, ir.Node | None, int]:
    """The value before its heads were split, a rotation on the way, and the number of heads."""
    rotation = made_by(value, "RotaryEmbedding")
    if rotation is not None:
        if only_use(rotation.outputs[0]) is None:
            raise Miss(f"the rotated {name} are used elsewhere, with their heads apart", rotation)
        value = rotation.inputs[0]
    swap = made_by(value, "Transpose")
    split = made_by(swap.inputs[0], "Reshape") if swap is not None else None
    if swap is None or split is None or swap.attributes.get_ints("perm") != _SWAP:
        raise Miss(f"the {name} are not split from [B, T, H * D] just before")
    whole, parts = split.inputs[0], split.outputs[0]
    heads, size, width = axis_size(parts, 2), axis_size(parts, 3), axis_size(whole, -1)
    if whole is None or rank(whole) != 3 or rank(parts) != 4 or not heads or not size:
        raise Miss(f"the {name} are not split from three axes of known sizes", split)
    if width != heads * size or not _leads_alike(split, whole, parts):
        raise Miss(f"the {name} are not split along their last axis alone", split)
    return whole, rotation, heads


def _joined_result(node: ir.Node) -> ir.Value:
    """The result as [B, T, H * D].

    Raises:
        Miss: something reads the result with its heads apart.
    """
    swap = only_use(node.outputs[0])
    if not standard(swap, "Transpose") or swap is None or swap.attributes.get_ints("perm") != _SWAP:
        raise Miss("its heads are not joined just after")
    join = only_use(swap.outputs[0])
    if not standard(join, "Reshape") or join is None:
        raise Miss("its heads are not joined just after", swap)
    parts, whole = swap.outputs[0], join.outputs[0]
    heads, size = axis_size(node.outputs[0], 1), axis_size(node.outputs[0], 3)
    if rank(whole) != 3 or not heads or not size or axis_size(whole, 2) != heads * size:
        raise Miss("its heads are not joined into one axis", join)
    if not _leads_alike(join, parts, whole):
        raise Miss("its heads are not joined along their last axes alone", join)
    return whole


def _leads_alike(reshape: ir.Node, before: ir.Value, after: ir.Value) -> bool:
    """Whether a Reshape keeps the first two axes as they are."""
    shape = constant(reshape.inputs[1])
    copies = shape is not None and not shape[:2].any()
    if copies and not reshape.attributes.get_int("allowzero", 0):
        return True
    if before.shape is None or after.shape is None:
        return False
    return all(same_dim(before.shape[axis], after.shape[axis]) for axis in (0, 1))


def _without_split(
    whole: ir.Value, rotation: ir.Node | None, heads: int, before: Inserter
) -> ir.Value:
    if rotation is None:
        return whole
    attributes = {name: a.value for name, a in rotation.attributes.items()} | {"num_heads": heads}
    inputs = [input_at(rotation, index) for index in range(1, len(rotation.inputs))]
    new = before.node("RotaryEmbedding", whole, *inputs, **attributes)
    new.name = rotation.name
    new.metadata_props.update(rotation.metadata_props)
    new.outputs[0].type, new.outputs[0].shape = whole.type, whole.shape
    return new.outputs[0]
