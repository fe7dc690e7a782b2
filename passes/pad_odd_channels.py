"""Pads linear layers with an odd number of output channels, and slices the padding off again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from omnigraph.graph import Graph
from omnigraph.passes.analysis.quantization.float_precision import is_weight
from omnigraph.passes.insertion import Inserter, infer_outputs
from omnigraph.passes.matching import (
    axis_size,
    input_at,
    made_by,
    nodes_of,
    rank,
    replace_output,
    standard,
)
from omnigraph.passes.site_pass import Miss, SitePass


@dataclass(frozen=True)
class PadOddChannels(SitePass):
    """Pad the output channels of a large linear layer to a multiple of 8, where they are odd.

    Before, with a vocabulary of 50,257 that embeddings and logits share::

        logits = MatMul(x, Transpose(table [50257, C]))

    After::

        logits = Slice(MatMul(x, Transpose(table [50264, C])), 0, 50257)

    For targets whose kernels need aligned rows: they would keep a padded copy of the weight beside
    the one that embeddings read. The added rows are zeros, also in a quantized weight, where their
    scales are 1. Exact.

    Needs: weights as initializers, and ids of embeddings that count from the front, as those of
    torch do. Leaves alone: weights that anything but a linear layer, a lookup of rows or a
    DequantizeLinear reads; a Gemm with a bias.

    Args:
        least: layers with fewer channels are left alone, because their weights are small.
        multiple: the padded number of channels is a multiple of this.
    """

    least: int = 256
    multiple: int = 8

    def sites(self, graph: Graph) -> Iterable[ir.Node]:
        """Every linear layer with an odd number of channels, at least ``least``."""
        return [node for node in nodes_of(graph, "MatMul", "Gemm") if self._is_odd(node)]

    def _is_odd(self, node: ir.Node) -> bool:
        channels = axis_size(input_at(node, 1), _channel_axis(node))
        return channels is not None and channels >= self.least and channels % 2 == 1

    def rewrite(self, graph: Graph, node: ir.Node) -> str:
        """Pad the weight of one linear layer, and slice the result of every layer that reads it."""
        weight, axis = _weight_of(node)
        readers = list(_readers(weight, axis))
        channels = axis_size(weight, axis)
        assert channels is not None
        more = -channels % self.multiple
        for value, (along, filling) in _tables(weight, axis, readers).items():
            _pad(value, along, more, filling)
        for reader in readers:
            if standard(reader, "MatMul", "Gemm"):
                _slice_channels(reader, channels)
            elif not standard(reader, "Gather"):
                infer_outputs(reader)
        return f"{channels + more} channels, of which {channels} are kept"


def _channel_axis(node: ir.Node) -> int:
    """The axis of output channels in the second factor of a product."""
    return 0 if node.attributes.get_int("transB", 0) else 1


def _weight_of(node: ir.Node) -> tuple[ir.Value, int]:
    """The weight of a product, before it is dequantized or transposed, and its axis of channels.

    Raises:
        Miss: the second factor is no weight of two axes.
    """
    value, axis = node.inputs[1], _channel_axis(node)
    if (transpose := made_by(value, "Transpose")) is not None:
        value, axis = transpose.inputs[0], 1 - axis
    if (widened := made_by(value, "DequantizeLinear")) is not None:
        value = widened.inputs[0]
    if value is None or not is_weight(value) or rank(value) != 2 or value.is_graph_output():
        raise Miss("its second factor is no weight of two axes")
    return value, axis


def _readers(value: ir.Value, axis: int) -> Iterator[ir.Node]:
    """All nodes from a weight to its products and lookups, these included.

    Raises:
        Miss: one of them would compute something else with the added channels.
    """
    for user, index in value.uses():
        yield user
        if standard(user, "Transpose") and rank(user.outputs[0]) == 2:
            yield from _readers(user.outputs[0], 1 - axis)
        elif standard(user, "DequantizeLinear") and index == 0:
            yield from _readers(user.outputs[0], axis)
        elif standard(user, "Gather") and index == 0:
            if user.attributes.get_int("axis", 0) != axis:
                raise Miss("its weight is looked up along another axis", user)
        elif standard(user, "MatMul", "Gemm") and index == 1:
            if _channel_axis(user) != axis:
                raise Miss("its weight is multiplied along its channels elsewhere", user)
            if input_at(user, 2) is not None:
                raise Miss("it has a bias", user)
        else:
            raise Miss("its weight is read by other than products and lookups", user)


def _tables(weight: ir.Value, axis: int, readers: list[ir.Node]) -> dict[ir.Value, tuple[int, int]]:
    """The initializers to pad (weight, scales, zero points), each with its axis and the filling."""
    found = {weight: (axis, 0)}
    for node in readers:
        if not standard(node, "DequantizeLinear"):
            continue
        for index, filling in ((1, 1), (2, 0)):
            value = input_at(node, index)
            if value is None or (value.shape is not None and value.shape.numpy() in ((), (1,))):
                continue  # one for all of them
            blocks = node.attributes.get_int("block_size", 0)
            scaled = node.attributes.get_int("axis", 1) % 2
            if not is_weight(value) or (blocks == 0 and scaled != axis):
                raise Miss("its scales are not those of its channels", node)
            found[value] = (axis if blocks else 0, filling)
    if any(not (user in readers or _is_lookup(user)) for v in found for user, _ in v.uses()):
        raise Miss("other weights have the same scales")
    return found


def _is_lookup(node: ir.Node) -> bool:
    """Whether a node looks up rows; its ids never reach the added ones."""
    return standard(node, "Gather") and node.attributes.get_int("axis", 0) == 0


def _pad(value: ir.Value, axis: int, more: int, filling: int) -> None:
    """Replace an initializer by a longer one of the same name, padded when it is read."""
    tensor, shape = value.const_value, value.shape
    assert tensor is not None and shape is not None
    widths = [(0, more if i == axis else 0) for i in range(len(shape))]
    longer = [d + after for d, (_, after) in zip(tensor.shape.numpy(), widths, strict=True)]

    def padded() -> ir.TensorProtocol:
        array = tensor.numpy()
        filled = np.full(longer, filling, array.dtype)
        filled[tuple(slice(0, size) for size in array.shape)] = array
        return ir.tensor(filled, dtype=tensor.dtype, name=value.name)

    value.const_value = ir.LazyTensor(
        padded, dtype=tensor.dtype, shape=ir.Shape(longer), name=value.name
    )
    value.shape = ir.Shape(longer)


def _slice_channels(product: ir.Node, channels: int) -> None:
    """Replace a product by a Slice of its first channels."""
    before = Inserter(product)
    attributes = {name: attribute.value for name, attribute in product.attributes.items()}
    whole = before.op(product.op_type, *product.inputs[:2], **attributes)
    axes = rank(product.outputs[0])
    last = -1 if axes is None else axes - 1
    bounds = [before.integers(number) for number in (0, channels, last)]
    kept = before.op("Slice", whole, *bounds)
    replace_output(product.outputs[0], kept)
    assert product.graph is not None
    product.graph.remove(product, safe=True)
