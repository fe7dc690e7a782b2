"""Shortens blocks of weights until they fill their axis."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from omnigraph.graph import Graph
from omnigraph.passes.analysis.quantization.float_precision import is_weight
from omnigraph.passes.matching import axis_size, input_at, nodes_of
from omnigraph.passes.site_pass import Miss, SitePass


@dataclass(frozen=True)
class LegalizeRaggedBlocks(SitePass):
    """Give every block of a quantized weight the same length.

    Before, with 200 terms in blocks of 64, the last of 8::

        DequantizeLinear[block_size=64](values [200, N], scales [4, N])

    After, with each scale eight times, and the last one once::

        DequantizeLinear[block_size=8](values [200, N], scales [25, N])

    For targets that divide the size of the axis by the number of scales to get the length of a
    block, which gives a wrong length here. The new length is the greatest that divides both the
    axis and the old length.

    Needs: scales (and zero points) as initializers. Leaves alone: blocks that fill their axis, and
    an axis of one block. Exact.

    Args:
        longer: whether to shorten blocks that are longer than their axis too.
    """

    longer: bool = False

    def sites(self, graph: Graph) -> Iterable[ir.Node]:
        """Every DequantizeLinear whose last block is not full."""
        found = nodes_of(graph, "DequantizeLinear")
        return [node for node in found if ragged(node) or (self.longer and _is_longer(node))]

    def rewrite(self, graph: Graph, node: ir.Node) -> str:
        """Shorten the blocks of one weight."""
        axis, size, block = blocks_of(node)
        length = math.gcd(size, block)
        if length == 1:
            raise Miss(f"no length but 1 divides both its {size} terms and a block of {block}")
        tables = [v for v in node.inputs[1:] if v is not None]
        if not all(is_weight(value) for value in tables):
            raise Miss("its scales are not constant")
        for index, value in enumerate(node.inputs):
            if index > 0 and value is not None:
                longer = _repeated(graph, value, block // length, axis, size // length)
                node.replace_input_with(index, longer)
        for value in tables:
            if not value.uses() and not value.is_graph_output() and value.name is not None:
                graph.graph.initializers.pop(value.name, None)
        node.attributes["block_size"] = ir.AttrInt64("block_size", length)
        return f"blocks of {length}"


def blocks_of(node: ir.Node) -> tuple[int, int, int]:
    """The axis of the blocks of a DequantizeLinear or QuantizeLinear, its size, and their length.

    A length of 0 means no blocks, and a size of 0 that it is not known.
    """
    block = node.attributes.get_int("block_size", 0)
    data = input_at(node, 0)
    if block == 0 or data is None or data.shape is None:
        return 0, 0, block
    axis = node.attributes.get_int("axis", 1) % len(data.shape)
    return axis, axis_size(data, axis) or 0, block


def ragged(node: ir.Node) -> bool:
    """Whether a DequantizeLinear has several blocks, and the last one is not full."""
    _, size, block = blocks_of(node)
    return bool(block) and size > block and size % block != 0


def _is_longer(node: ir.Node) -> bool:
    """Whether a block is longer than its axis."""
    if node.attributes.get_int("block_size", 0) == 0:
        return False
    _, size, block = blocks_of(node)
    return block > size


def _repeated(graph: Graph, value: ir.Value, times: int, axis: int, count: int) -> ir.Value:
    """An initializer with each entry of an axis repeated: the first ``count`` entries of that."""
    name = f"{value.name}_by_{times}"
    if name not in graph.graph.initializers:
        tensor = value.const_value
        assert tensor is not None
        array = np.repeat(tensor.numpy(), times, axis).take(range(count), axis)
        graph.graph.register_initializer(
            ir.Value(
                name=name,
                type=ir.TensorType(tensor.dtype),
                shape=ir.Shape(array.shape),
                const_value=ir.tensor(array, dtype=tensor.dtype, name=name),
            )
        )
    return graph.graph.initializers[name]
