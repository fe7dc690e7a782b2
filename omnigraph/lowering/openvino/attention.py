"""Removes nodes that OpenVINO's frontend puts around each attention without need.

The frontend pads the mask of an ONNX Attention to as many columns as there are keys, and replaces
NaN, the result of a row without keys, by zero. Both prevent fusions: the CPU plugin takes a
Transpose and a Reshape into the attention's kernel only where they follow it directly.

It also keeps keys and values that are inputs of the program out of that kernel: the plugin of
2026.4.1 takes their conversion to bf16 into it, and then reads memory that nothing has written
where there is one query and one key.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from omnigraph.graph import Graph
from omnigraph.passes.matching import input_at, nodes_of, same_dim

if TYPE_CHECKING:
    import openvino

_KEY, _VALUE, _MASK = 1, 2, 3
_MOVES = ("Transpose", "Reshape")


def simplify_attention(model: openvino.Model, graph: Graph) -> None:
    """Remove from ``model`` what the attentions of ``graph`` do not need.

    Args:
        model: OpenVINO's, changed in place.
        graph: the lowered Graph that the model was converted from.
    """
    whole = {node.name for node in nodes_of(graph, "Attention") if _has_all_columns(node)}
    for attention, select in list(_attentions(model)):
        if select.get_friendly_name() in whole:
            _drop_padding(attention)
        _sink(attention, select)
        _keep_apart(attention)


def _keep_apart(attention: Any) -> None:
    """Put a Reshape that changes nothing between an attention and keys or values that are given.

    It moves no numbers. The conversion to bf16 is done before it, by a kernel of its own.
    """
    from openvino import opset15

    for place in (_KEY, _VALUE):
        given = attention.input_value(place)
        if given.get_node().get_type_name() == "Parameter":
            same = opset15.reshape(given, opset15.constant([0, 0, -1, 0]), True)
            attention.input(place).replace_source_output(same.output(0))


def _has_all_columns(node: ir.Node) -> bool:
    """Whether the mask of an Attention has a column for every key, whatever the sizes."""
    key, mask = input_at(node, 1), input_at(node, _MASK)
    if key is None or mask is None or key.shape is None or mask.shape is None:
        return False
    return len(key.shape) == 4 and same_dim(key.shape[2], mask.shape[-1])


def _attentions(model: openvino.Model) -> Iterator[tuple[Any, Any]]:
    """Each attention, and the Select behind it that replaces NaN by zero."""
    for select in model.get_ordered_ops():
        if select.get_type_name() != "Select":
            continue
        test, attention = (select.input_value(place).get_node() for place in (0, 2))
        if attention.get_type_name() != "ScaledDotProductAttention":
            continue
        if test.get_type_name() == "IsNaN" and test.input_value(0) == select.input_value(2):
            yield attention, select


def _drop_padding(attention: Any) -> None:
    """Let an attention read its mask directly, where the frontend pads it by nothing."""
    if attention.get_input_size() > _MASK:
        pad = attention.input_value(_MASK).get_node()
        if pad.get_type_name() == "Pad":
            attention.input(_MASK).replace_source_output(pad.input_value(0))


def _sink(attention: Any, select: Any) -> None:
    """Move the test for NaN behind the Transpose and the Reshape, if nothing else reads it.

    The test is elementwise, so its result stays the same.
    """
    from openvino import opset15

    first = last = None
    value = select.output(0)
    while len(readers := list(value.get_target_inputs())) == 1:
        node = readers[0].get_node()
        if node.get_type_name() not in _MOVES or readers[0].get_index() != 0:
            break
        first, last, value = first or readers[0], node, node.output(0)
    if first is None or last is None:
        return
    readers = list(value.get_target_inputs())
    first.replace_source_output(attention.output(0))
    zero = select.input_value(1).get_node()
    if zero.get_type_name() == "ConvertLike":
        zero = zero.input_value(0).get_node()
    test = opset15.is_nan(value)
    zero = opset15.convert_like(zero.output(0), value)
    moved = opset15.select(test.output(0), zero.output(0), value)
    moved.set_friendly_name(select.get_friendly_name())
    for reader in readers:
        reader.replace_source_output(moved.output(0))
