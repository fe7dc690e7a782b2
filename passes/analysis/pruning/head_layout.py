"""The heads of one Attention node: how many, on which axis, and its inputs with fewer of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from omnigraph.passes.analysis.pruning.axis_slice import AxisSlice
from omnigraph.passes.analysis.pruning.slicer import AxisSlicer
from omnigraph.passes.matching import axis_size, input_at, rank
from omnigraph.passes.site_pass import Miss

#: Node metadata of an Attention that lost heads: the numbers of the heads left, as in the model.
HEADS_KEY = "omnigraph.heads"

_QUERY, _KEY, _VALUE, _MASK, _PAST_KEY, _PAST_VALUE = range(6)


@dataclass(frozen=True)
class HeadLayout:
    """How many heads an Attention has, and whether they are an axis of their own.

    Args:
        queries: the number of query heads.
        keys: the number of key and value heads; queries / keys query heads in a row share each.
        split: True for tensors [B, H, T, D], False for [B, T, H * D].
    """

    node: ir.Node
    queries: int
    keys: int
    split: bool

    @classmethod
    def of(cls, node: ir.Node) -> HeadLayout:
        """Read the layout from the attributes, or from the shapes.

        Raises:
            Miss: the numbers of heads are not known.
        """
        split = "q_num_heads" not in node.attributes
        queries: int | None
        keys: int | None
        if split:
            queries, keys = axis_size(node.inputs[_QUERY], 1), axis_size(node.inputs[_KEY], 1)
        else:
            queries = node.attributes.get_int("q_num_heads", 0)
            keys = node.attributes.get_int("kv_num_heads", 0)
        axes = 4 if split else 3
        known = all(rank(node.inputs[i]) == axes for i in (_QUERY, _KEY, _VALUE))
        if not queries or not keys or not known or queries % keys:
            raise Miss("the number of heads is not known")
        return cls(node, queries, keys, split)

    def output_axis(self) -> tuple[int, np.ndarray]:
        """The output's axis of heads, and the head of each element of that axis.

        Raises:
            Miss: the width of a head is not known.
        """
        if self.split:
            return 1, np.arange(self.queries)
        return 2, np.repeat(np.arange(self.queries), self._width(_VALUE, self.keys))

    def keep(self, gone: set[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The query heads and key heads that stay when those in ``gone`` are to go.

        Each key head that stays has equally many query heads: the node has no other form.
        """
        size = self.queries // self.keys
        groups = [range(key * size, (key + 1) * size) for key in range(self.keys)]
        most = max(sum(head not in gone for head in group) for group in groups)
        query: list[int] = []
        key: list[int] = []
        for number, group in enumerate(groups):
            staying_first = sorted(group, key=lambda head: (head in gone, head))
            if staying_first[0] not in gone:
                key.append(number)
                query += sorted(staying_first[:most])
        return tuple(query), tuple(key)

    def sliced_inputs(
        self, slicer: AxisSlicer, query: tuple[int, ...], key: tuple[int, ...]
    ) -> list[ir.Value | None]:
        """The inputs with these heads alone; they are made, and not in the Graph yet.

        Raises:
            Miss: one of them cannot be sliced.
        """
        inputs = list(self.node.inputs)
        for place, kept, heads in (
            (_QUERY, query, self.queries),
            (_KEY, key, self.keys),
            (_VALUE, key, self.keys),
        ):
            value = inputs[place]
            assert value is not None
            if self.split:
                inputs[place] = slicer.sliced(value, AxisSlice(1, kept))
            else:
                width = self._width(place, heads)
                features = tuple(head * width + i for head in kept for i in range(width))
                inputs[place] = slicer.sliced(value, AxisSlice(2, features))
        for place in (_PAST_KEY, _PAST_VALUE):
            if (past := input_at(self.node, place)) is not None:
                inputs[place] = slicer.sliced(past, AxisSlice(1, key))
        if (mask := input_at(self.node, _MASK)) is not None:
            inputs[_MASK] = self._sliced_mask(slicer, mask, query)
        return inputs

    def set_kept(self, query: tuple[int, ...], key: tuple[int, ...]) -> None:
        """Write into the node how many heads it has now, and their numbers in the model."""
        numbers = kept_numbers(self.node, self.queries)
        self.node.metadata_props[HEADS_KEY] = ",".join(str(numbers[place]) for place in query)
        if not self.split:
            for name, heads in (("q_num_heads", query), ("kv_num_heads", key)):
                self.node.attributes[name] = ir.AttrInt64(name, len(heads))

    def _sliced_mask(self, slicer: AxisSlicer, mask: ir.Value, query: tuple[int, ...]) -> ir.Value:
        axis = (rank(mask) or 0) - 3
        if axis < 0:
            return mask
        heads = axis_size(mask, axis)
        if heads not in (1, self.queries):
            raise Miss("the mask does not say how many heads it has")
        return (
            mask
            if heads == 1
            else slicer.sliced_or_gathered(mask, AxisSlice(axis, query), self.node)
        )

    def _width(self, place: int, heads: int) -> int:
        size = axis_size(self.node.inputs[place], 2)
        if not size or size % heads:
            raise Miss("the width of a head is not known")
        return size // heads


def kept_numbers(node: ir.Node, heads: int) -> tuple[int, ...]:
    """The number that each head of an Attention has in the model."""
    text = node.metadata_props.get(HEADS_KEY)
    return tuple(range(heads)) if text is None else tuple(map(int, text.split(",")))
