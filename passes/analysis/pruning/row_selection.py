"""Reads which rows a node selects, and which rows of its inputs another node makes them from."""

from __future__ import annotations

from dataclasses import dataclass, replace

import onnx_ir as ir

from omnigraph.passes.insertion import Inserter
from omnigraph.passes.matching import axis_size, constant, input_at, rank, same_dim, standard
from omnigraph.passes.site_pass import Miss

_ELEMENTWISE = frozenset(
    "Abs Add And Cast Ceil Clip Cos Div Elu Equal Erf Exp Floor Gelu Greater GreaterOrEqual "
    "HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Less LessOrEqual Log Max Min Mish Mod "
    "Mul Neg Not Or Pow Reciprocal Relu Round Selu Sigmoid Sign Sin Softplus Softsign Sqrt Sub "
    "Sum Swish Tan Tanh ThresholdedRelu Where Xor".split()
)
_ALONG_AXIS = {"LayerNormalization": -1, "RMSNormalization": -1, "Softmax": -1, "LogSoftmax": -1}
_MASK, _PAST_KEY, _HEADS_APART = 3, 4, 4


@dataclass(frozen=True)
class Selection:
    """Rows that a node selects along one axis.

    Args:
        op_type: Slice, Gather, or GatherND of one row for each element of the batch.
        axis: counted from the front.
        which: starts, ends and steps; or the indices.
        drops_axis: whether the axis is dropped, as by a Gather of one number.
    """

    op_type: str
    axis: int
    which: tuple[ir.Value | tuple[int, ...] | None, ...]
    drops_axis: bool = False

    @property
    def batched(self) -> bool:
        """Whether each element of the batch, axis 0, has rows of its own."""
        return self.op_type == "GatherND"

    def along(self, axis: int) -> Selection:
        """The same rows along another axis, which is kept."""
        return replace(self, axis=axis, drops_axis=False)

    def node(self, value: ir.Value, like: ir.Node, before: Inserter) -> ir.Node:
        """A node that selects these rows of a value, as the node ``like`` does of another."""
        which = like.inputs[1:]
        if self.op_type == "GatherND":
            return before.node("GatherND", value, which[0], batch_dims=1)
        if self.op_type == "Gather":
            row = which[0]
            if (number := constant(row)) is not None:
                row = before.integers(*(int(n) for n in number.reshape(-1)))
            elif rank(row) == 0:
                row = before.op("Unsqueeze", row, before.integers(0))
            return before.node("Gather", value, row, axis=self.axis)
        starts, ends, axes, *steps = which
        same = selection_of(like)
        if same is None or same.axis != self.axis:
            axes = before.integers(self.axis)
        return before.node("Slice", value, starts, ends, axes, *steps)


def selection_of(node: ir.Node) -> Selection | None:
    """The rows that a node selects along one axis; None if it does not."""
    data = node.inputs[0] if node.inputs else None
    axes = rank(data)
    if axes is None:
        return None
    if standard(node, "Slice"):
        along = constant(input_at(node, 3))
        if along is None or along.size != 1:
            return None
        which = tuple(_comparable(input_at(node, index)) for index in (1, 2, 4))
        return Selection("Slice", int(along.reshape(-1)[0]) % axes, which)
    indices = input_at(node, 1)
    if standard(node, "Gather") and rank(indices) in (0, 1):
        axis = node.attributes.get_int("axis", 0) % axes
        return Selection("Gather", axis, (_comparable(indices),), rank(indices) == 0)
    if standard(node, "GatherND") and node.attributes.get_int("batch_dims", 0) == 1:
        one_row = rank(indices) == 3 and axis_size(indices, 1) == axis_size(indices, 2) == 1
        return Selection("GatherND", 1, (indices,)) if one_row else None
    return None


def _comparable(value: ir.Value | None) -> ir.Value | tuple[int, ...] | None:
    """A constant as its numbers, any other value as itself."""
    array = constant(value)
    return value if array is None else tuple(int(n) for n in array.reshape(-1))


def rows_of_inputs(node: ir.Node, selection: Selection) -> dict[int, int]:
    """The inputs of a node that have these rows, by position, each with its axis of rows.

    The node makes a row of its output from the same row of each of them.

    Raises:
        Miss: the node mixes rows, or may mix them.
    """
    rows = _rows(node, selection.axis)
    if selection.batched:
        batch = _rows(node, 0)
        for index, axis in rows.items():
            if axis != 1 or batch.get(index) != 0:
                raise Miss("the rows differ by element of the batch, and axes move here", node)
    return rows


def _rows(node: ir.Node, axis: int) -> dict[int, int]:
    if node.domain != "":
        raise Miss(f"it is not known whether {node.op_type} mixes rows", node)
    first, result = node.inputs[0] if node.inputs else None, node.outputs[0]
    axes = rank(result)
    if axes is None or rank(first) is None:
        raise Miss("shapes are not known", node)
    if node.op_type in _ELEMENTWISE:
        return _broadcast_rows(node, axis)
    if node.op_type in _ALONG_AXIS:
        start = node.attributes.get_int("axis", _ALONG_AXIS[node.op_type]) % axes
        if axis < start or (axis != start and node.op_type.endswith("Softmax")):
            return {0: axis}
    elif node.op_type == "MatMul":
        if rank(node.inputs[1]) == 2 and axis < axes - 1:
            return {0: axis}
    elif node.op_type == "Transpose":
        order = node.attributes.get_ints("perm") or tuple(reversed(range(axes)))
        return {0: order[axis]}
    elif node.op_type == "Reshape":
        shape = constant(node.inputs[1])
        copies = shape is not None and not shape[: axis + 1].any()
        if copies and not node.attributes.get_int("allowzero", 0):
            return {0: axis}
    elif node.op_type == "Attention":
        return _query_rows(node, axis)
    raise Miss(f"{node.op_type} mixes rows", node)


def _broadcast_rows(node: ir.Node, axis: int) -> dict[int, int]:
    """The inputs with rows, aligned at their last axes; one of size 1 is the same for all rows."""
    result, rows = node.outputs[0], {}
    for index, value in enumerate(node.inputs):
        axes, total = rank(value), rank(result)
        if value is None:
            continue
        if axes is None or total is None or value.shape is None or result.shape is None:
            raise Miss("shapes are not known", node)
        there = axis - (total - axes)
        if there < 0 or axis_size(value, there) == 1:
            continue
        if not same_dim(value.shape[there], result.shape[axis]):
            raise Miss("it is not known whether an input has a row for each", node)
        rows[index] = there
    if not rows:
        raise Miss("its inputs have one row for all", node)
    return rows


def _query_rows(node: ir.Node, axis: int) -> dict[int, int]:
    """A row of the queries, and its row of the mask, make a row of the output."""
    past = any(value is not None for value in node.inputs[_PAST_KEY:])
    causal = node.attributes.get_int("is_causal", 0)
    if axis != 2 or rank(node.inputs[0]) != _HEADS_APART or past or causal:
        raise Miss("only queries can be selected, of an Attention whose mask is written out", node)
    rows, mask = {0: axis}, input_at(node, _MASK)
    if mask is not None:
        axes = rank(mask)
        if axes is None or axes < 2 or mask.shape is None or node.outputs[0].shape is None:
            raise Miss("the shape of the mask is not known", node)
        if axis_size(mask, -2) != 1:
            rows[_MASK] = axes - 2
    return rows
