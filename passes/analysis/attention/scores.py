"""Reads an attention's scores back to the product of queries and keys: masks, softcap, scale."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from omnigraph.passes.matching import axis_size, constant, made_by, rank, same_dim, scalar, standard
from omnigraph.passes.site_pass import Miss

#: Scores replaced by a number at or below this are hidden: exp(-1e4) is zero in every precision.
_HIDDEN = -1.0e4
#: The most nodes between the product and the softmax on one branch.
_FARTHEST = 24
#: Ops on the way of the scores, and the inputs that may be the scores.
_WAYS = {
    "Cast": (0,),
    "CastLike": (0,),
    "Identity": (0,),
    "Dropout": (0,),
    "Mul": (0, 1),
    "Div": (0,),
    "Add": (0, 1),
    "Sub": (0,),
    "Tanh": (0,),
    "Where": (1, 2),
    "Reshape": (0,),
    "Squeeze": (0,),
    "Unsqueeze": (0,),
}
#: Ops that change the type or the axes, and no number.
_SAME_NUMBERS = ("Cast", "CastLike", "Identity", "Reshape", "Unsqueeze", "Squeeze", "Expand")


@dataclass
class Term:
    """One mask of the scores: a value added to them, or a condition that hides some of them.

    Args:
        node: the Add, Sub or Where.
        value: the value added, or the condition.
        factor: the factor of the added value, from scales after it.
        fill: the number in the place of a hidden score; None where the value is added.
        shown: the condition where a score is visible.
        rank: the number of axes of the scores here.
    """

    node: ir.Node
    value: ir.Value
    factor: float = 1.0
    fill: float | None = None
    shown: bool = True
    rank: int = 4


@dataclass
class Scores:
    """``softmax_input = mask(cap(scale * queries @ keys))``, read from a Graph.

    Args:
        product: the MatMul of queries [.., T, D] and transposed keys [.., D, S].
        scale: the factor of the product.
        softcap: c of ``c * tanh(x / c)``; 0 for none.
        terms: the masks, the innermost first.
        nodes: the nodes that were read, from the softmax to the product.
        modes: the ``qk_matmul_output_mode`` of Attention-24 that gives each value on the way.
        heads: the number of heads, where a Reshape on the way splits or joins them.
        zeros: masks of zeros, which are no terms.
    """

    product: ir.Node
    scale: float = 1.0
    softcap: float = 0.0
    terms: list[Term] = field(default_factory=list)
    nodes: list[ir.Node] = field(default_factory=list)
    modes: dict[ir.Value, int] = field(default_factory=dict)
    heads: int | None = None
    zeros: list[ir.Value] = field(default_factory=list)


def read_scores(softmax: ir.Node) -> Scores:
    """Follow the scores of a Softmax back to the product of queries and keys.

    Raises:
        Miss: Attention-24 does not compute these scores.
    """
    value = softmax.inputs[0]
    assert value is not None
    factor, cap, scale_inside = 1.0, 0.0, 1.0
    terms: list[Term] = []
    zeros: list[ir.Value] = []
    nodes: list[ir.Node] = []
    ways: list[tuple[ir.Value, float, bool]] = []  # value, factor still to come, before the cap
    heads: int | None = None
    shifted = False
    while True:
        ways.append((value, scale_inside if cap else factor, bool(cap)))
        node = value.producer()
        if node is None or not (standard(node, "MatMul") or standard(node, *_WAYS)):
            raise Miss("the softmax is not of a product of queries and keys", node or softmax)
        nodes.append(node)
        if node.op_type == "MatMul":
            break
        if is_row_maximum(node):  # softmax does not see what is taken from a whole row
            nodes += [n for v in node.inputs[1:] if (n := made_by(v, "ReduceMax"))]
            value, shifted = _input(node, 0), True
        elif (scaled := _scaling(node)) is not None:
            value = scaled[0]
            if cap:
                scale_inside *= scaled[1]
            else:
                factor *= scaled[1]
        elif node.op_type == "Tanh":
            if cap:
                raise Miss("the scores have two softcaps", node)
            if factor <= 0:
                raise Miss("the softcap is not positive", node)
            cap, value = factor, _input(node, 0)
        elif node.op_type in ("Add", "Sub", "Where"):
            if cap:
                raise Miss("a mask stands inside the softcap", node)
            value, term = _masked(node, factor)
            if term.fill is None and number(term.value) == 0.0:
                zeros.append(term.value)
            else:
                terms.append(term)
        else:
            if node.op_type in ("Reshape", "Squeeze", "Unsqueeze"):
                heads = split_heads(node) or heads
            value = _input(node, 0)
    scale = cap * scale_inside if cap else factor
    if not (scale > 0 and math.isfinite(scale)):
        raise Miss("the scale is not a positive number", nodes[-1])
    scores = Scores(nodes[-1], scale, cap, terms[::-1], nodes, {}, heads, zeros)
    scores.modes = {} if shifted else _modes(scores, ways)
    return scores


def is_row_maximum(node: ir.Node) -> bool:
    """Whether a node subtracts from each row of scores the largest of the row."""
    if not standard(node, "Sub"):
        return False
    most = made_by(node.inputs[1], "ReduceMax")
    if most is None or most.inputs[0] is not node.inputs[0]:
        return False
    axes = constant(most.inputs[1]) if len(most.inputs) > 1 else None
    last = axes is not None and axes.tolist() in ([-1], [(rank(node.inputs[0]) or 0) - 1])
    return last and bool(most.attributes.get_int("keepdims", 1))


def _input(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    if value is None:
        raise Miss("an input is left out", node)
    return value


def _scaling(node: ir.Node) -> tuple[ir.Value, float] | None:
    """The scores and their factor, where a node multiplies or divides them by a number."""
    if node.op_type == "Div" and (by := number(node.inputs[1])) is not None and by != 0:
        return _input(node, 0), 1 / by
    if node.op_type == "Mul":
        for one, other in ((0, 1), (1, 0)):
            if (by := number(node.inputs[other])) is not None:
                return _input(node, one), by
    if node.op_type in ("Mul", "Div"):
        raise Miss("the scale is not a constant", node)
    return None


def _masked(node: ir.Node, factor: float) -> tuple[ir.Value, Term]:
    """The scores that a node masks, and its mask."""
    axes = rank(node.outputs[0]) or 4
    if node.op_type == "Where":
        condition = _input(node, 0)
        for kept, filled, shown in ((1, 2, True), (2, 1, False)):
            fill = number(node.inputs[filled])
            if fill is None:
                continue
            if fill * factor > _HIDDEN:
                raise Miss(f"masked scores are replaced by {fill:g}, which does not hide", node)
            fill = fill * factor
            return _input(node, kept), Term(node, condition, factor, fill, shown, axes)
        raise Miss("masked scores are replaced by what is not a constant", node)
    sides = (0, 1) if node.op_type == "Add" else (0,)
    best = min(sides, key=lambda side: distance(node.inputs[side]))
    mask = _input(node, 1 - best)
    sign = -1.0 if node.op_type == "Sub" else 1.0
    return _input(node, best), Term(node, mask, sign * factor, None, True, axes)


def distance(value: ir.Value | None, limit: int = _FARTHEST) -> float:
    """The number of nodes from a value back to the nearest MatMul, on the way of scores."""
    node = made_by(value, "MatMul", *_WAYS) if limit else None
    if node is None:
        return math.inf
    if node.op_type == "MatMul":
        return 0
    ways = [node.inputs[way] for way in _WAYS[node.op_type]]
    floats = [v for v in ways if v is None or v.dtype is None or v.dtype.is_floating_point()]
    return 1 + min((distance(v, limit - 1) for v in floats), default=math.inf)


def split_heads(node: ir.Node) -> int | None:
    """H of a Reshape between [B, H, T, S] and [B*H, T, S].

    Raises:
        Miss: it is another Reshape.
    """
    before, after = node.inputs[0], node.outputs[0]
    ranks = {rank(before), rank(after)}
    joined, split = (before, after) if rank(before) == 3 else (after, before)
    if joined is None or split is None or joined.shape is None or split.shape is None:
        raise Miss("the scores are reshaped from or to a shape that is not known", node)
    rows, columns = (same_dim(joined.shape[axis], split.shape[axis]) for axis in (-2, -1))
    if ranks == {4} and rows and columns and axis_size(before, 1) == axis_size(after, 1):
        return axis_size(after, 1)
    heads = axis_size(split, 1)
    if heads is not None:  # as many elements, so S is the same where all the others are
        columns = columns or is_product(joined.shape[0], split.shape[0], heads)
    if ranks == {3, 4} and rows and columns:
        return heads
    raise Miss("the scores are reshaped otherwise than to split heads", node)


def is_product(product: ir.SymbolicDim | int, one: ir.SymbolicDim | int, by: int) -> bool:
    """Whether a dimension is another one times a number; torch names it ``4*batch``."""
    if isinstance(product, int) or isinstance(one, int):
        return isinstance(product, int) and isinstance(one, int) and product == one * by
    return one.value is not None and product.value in (f"{by}*{one.value}", f"{one.value}*{by}")


def _modes(scores: Scores, ways: list[tuple[ir.Value, float, bool]]) -> dict[ir.Value, int]:
    """The output mode that gives each value that was read, where there is one."""
    modes: dict[ir.Value, int] = {}
    masks = {term.node.outputs[0] for term in scores.terms}
    masked = True
    for index, (value, factor, inside) in enumerate(ways):
        masked = masked and any(v in masks for v, _, _ in ways[index:])
        if masked:
            if not index and all(term.fill is None for term in scores.terms):
                modes[value] = 2
        elif inside:
            continue  # onnxruntime gives mode 0 after the softcap, against the standard
        elif factor == 1.0:
            modes[value] = 1 if scores.softcap else 0
    return modes


def number(value: ir.Value | None, depth: int = 8) -> float | None:
    """The number of which all elements of a value are, if it follows from constants and sizes."""
    if value is None:
        return None
    if (known := scalar(value)) is not None:
        return known
    node = value.producer()
    if node is None or node.domain != "" or depth == 0 or not node.inputs:
        return None
    first = node.inputs[0]
    if node.op_type in _SAME_NUMBERS:
        return number(first, depth - 1)
    if node.op_type == "Gather" and made_by(first, "Shape"):
        return _size(first, constant(node.inputs[1]))
    if node.op_type == "Shape":
        return _size(value, None)
    if node.op_type == "Slice" and made_by(first, "Shape"):
        return _sliced_size(node)
    if node.op_type == "ConstantOfShape":
        fill = node.attributes.get_tensor("value")
        return float(fill.numpy().reshape(-1)[0]) if fill is not None else 0.0
    numbers = [number(v, depth - 1) for v in node.inputs]
    if any(n is None for n in numbers):
        return None
    return _computed(node.op_type, [n for n in numbers if n is not None])


def _kept_sizes(shape: ir.Value | None) -> list[int | None]:
    """The elements of the output of a Shape; None for each that is not known."""
    node = made_by(shape, "Shape")
    axes = rank(node.inputs[0]) if node is not None else None
    if node is None or axes is None:
        return []
    start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", axes)
    return [axis_size(node.inputs[0], axis) for axis in range(axes)[start:end]]


def _size(shape: ir.Value | None, index: np.ndarray | None) -> float | None:
    """An element of the output of a Shape; without an index, the only one there is."""
    sizes = _kept_sizes(shape)
    if index is None:
        return sizes[0] if len(sizes) == 1 else None
    position = int(index.reshape(-1)[0]) if index.size == 1 else len(sizes)
    return sizes[position] if -len(sizes) <= position < len(sizes) else None


def _sliced_size(node: ir.Node) -> float | None:
    """The one size that a Slice takes from the output of a Shape."""
    starts, ends = constant(node.inputs[1]), constant(node.inputs[2])
    if starts is None or ends is None or starts.size != 1 or ends.size != 1:
        return None
    sizes = _kept_sizes(node.inputs[0])[int(starts.reshape(-1)[0]) : int(ends.reshape(-1)[0])]
    return sizes[0] if len(sizes) == 1 else None


def _computed(op_type: str, numbers: list[float]) -> float | None:
    try:
        match op_type, numbers:
            case "Sqrt", [x]:
                return math.sqrt(x)
            case "Reciprocal", [x]:
                return 1 / x
            case "Neg", [x]:
                return -x
            case "Mul", [x, y]:
                return x * y
            case "Div", [x, y]:
                return x / y
            case "Pow", [x, y]:
                return float(x**y)
    except (ValueError, ZeroDivisionError, OverflowError):
        return None
    return None
