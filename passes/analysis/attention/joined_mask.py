"""Joins the masks of an unfused attention to the one mask that Attention takes."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from omnigraph.passes.analysis.attention.heads import Dim, split_axis
from omnigraph.passes.analysis.attention.scores import Term
from omnigraph.passes.insertion import Inserter
from omnigraph.passes.matching import axis_size, constant, made_by, rank, same_dim
from omnigraph.passes.site_pass import Miss

#: Ops that pass the lowest number of a mask on unchanged, with the inputs that may bring it.
_CARRIERS = {
    "Where": (1, 2),
    "Add": (0, 1),
    "Mul": (0, 1),
    "Expand": (0,),
    "Unsqueeze": (0,),
    "Squeeze": (0,),
    "Reshape": (0,),
    "Slice": (0,),
    "Transpose": (0,),
    "Identity": (0,),
    "Cast": (0,),
    "CastLike": (0,),
    "Concat": (0, 1),
    "Gather": (0,),
}


def check_terms(terms: list[Term], dtype: ir.DataType, zeroed: list[tuple[ir.Value, bool]]) -> None:
    """Refuse masks that one mask cannot replace, before anything is changed.

    Where a score was replaced by a large finite number, that number is now added to it. In a row
    with visible keys, the attention weight of a hidden key is zero both ways. In a row with all
    keys hidden, all attention weights are equal: for that, the sum of the number and any score
    must be the number, as it is with the lowest of a type with 8 bits of exponent.

    Args:
        zeroed: the condition of each Where that zeroes attention weights afterwards. A term with
            the same condition becomes -inf, so that a row with all keys hidden is zero.

    Raises:
        Miss: naming the mask and why.
    """
    for condition, shown in zeroed:
        matching = [t for t in terms if t.fill is not None and _same_condition(t, condition, shown)]
        if not matching:
            raise Miss("attention weights are zeroed by a condition that is not the mask's")
        for term in matching:
            term.fill = -math.inf
    for term in terms:
        if term.fill is None:
            if plain_dtype(term.value, dtype) is None:
                raise Miss("the mask is added in another precision than the queries'", term.node)
        elif math.isfinite(term.fill):
            if dtype == ir.DataType.FLOAT16:
                raise Miss("scores in fp16 are replaced by a finite number", term.node)
            if len(terms) > 1 and term.fill > float(_lowest(dtype)) / 2:
                raise Miss(f"scores are replaced by {term.fill:g} beside another mask", term.node)


def plain_dtype(value: ir.Value, dtype: ir.DataType) -> ir.Value | None:
    """The value if it has the dtype; else the source of its casts, if that has it; else None."""
    while value.dtype != dtype:
        node = made_by(value, "Cast", "CastLike")
        if node is None or node.inputs[0] is None:
            return None
        value = node.inputs[0]
    return value


def _same_condition(term: Term, condition: ir.Value, shown: bool) -> bool:
    one, truth = _without_not(term.value, term.shown)
    other, when = _without_not(condition, shown)
    return one is other and truth == when


def _without_not(value: ir.Value, truth: bool) -> tuple[ir.Value, bool]:
    while (node := made_by(value, "Not")) is not None and node.inputs[0] is not None:
        value, truth = node.inputs[0], not truth
    return value, truth


def _lowest(dtype: ir.DataType) -> np.generic:
    """The lowest number of a type but one, because onnxruntime zeroes rows of the lowest."""
    import ml_dtypes

    kind = dtype.numpy()
    lowest = np.array(ml_dtypes.finfo(kind).min, kind)
    return np.nextafter(lowest, np.array(0, kind))


def joined_mask(
    new: Inserter, terms: list[Term], dtype: ir.DataType, heads: int | None
) -> ir.Value | None:
    """One mask [.., T, S] with the effect of all terms; None for no terms.

    Args:
        terms: checked by `check_terms`, the innermost first.
        heads: H where scores of three axes are [B*H, T, S]; None where they are [B, T, S].
    """
    mask: ir.Value | None = None
    for term in terms:
        value = term.value if term.fill is not None else plain_dtype(term.value, dtype)
        assert value is not None
        value = _in_layout(new, value, term.rank, heads)
        if term.fill is None:
            added = above_lowest(new, value)
            if term.factor != 1.0:
                added = new.op("Mul", added, new.number(term.factor, added))
            if mask is None:
                mask = added
            elif mask.dtype == ir.DataType.BOOL:
                mask = new.op("Where", mask, added, new.number(-math.inf, added))
            else:
                mask = new.op("Add", mask, added)
            continue
        visible = value if term.shown else new.op("Not", value)
        if term.fill == -math.inf and (mask is None or mask.dtype == ir.DataType.BOOL):
            mask = visible if mask is None else new.op("And", mask, visible)
            continue
        fill = new.constant(np.array(_filling(term.fill, dtype)))
        if mask is None:
            mask = new.constant(np.zeros((), dtype.numpy()))
        elif mask.dtype == ir.DataType.BOOL:
            zero = new.constant(np.zeros((), dtype.numpy()))
            least = new.constant(np.array(-math.inf, dtype.numpy()))
            mask = new.op("Where", mask, zero, least)
        mask = new.op("Where", visible, mask, fill)
    return mask


def _filling(fill: float | None, dtype: ir.DataType) -> np.generic:
    assert fill is not None
    return dtype.numpy().type(fill) if math.isinf(fill) else _lowest(dtype)


def _in_layout(new: Inserter, value: ir.Value, axes: int, heads: int | None) -> ir.Value:
    """A mask of scores of 3 or 4 axes as one of scores [B, H, T, S]."""
    own = rank(value)
    if axes != 3 or own != 3 or axis_size(value, 0) == 1:
        return value
    return (
        new.op("Unsqueeze", value, new.integers(1))
        if heads is None
        else split_axis(new, value, heads)
    )


def fitted_mask(new: Inserter, mask: ir.Value, queries: ir.Value, keys: ir.Value) -> ir.Value:
    """A mask of two or four axes with a row for each query and a column for each key.

    By the standard, keys beyond a shorter last axis are hidden. onnxruntime does not broadcast a
    mask over queries.
    """
    if rank(mask) == 3:
        mask = new.op("Unsqueeze", mask, new.integers(0))
    assert queries.shape is not None and keys.shape is not None
    sizes = (queries.shape[2], keys.shape[2])
    own = list(mask.shape)[-2:] if mask.shape is not None else []
    if len(own) == 2 and all(_fits(a, b) for a, b in zip(own, sizes, strict=True)):
        return mask
    lengths = [new.op("Shape", v, start=2, end=3) for v in (queries, keys)]
    wide = new.op("Expand", mask, new.op("Concat", *lengths, axis=0))
    if mask.shape is not None:
        wide.shape = ir.Shape([*list(mask.shape)[:-2], *sizes])
    return wide


def _fits(own: Dim, size: Dim) -> bool:
    if isinstance(own, int) or own.value is None:
        return same_dim(own, size)
    return True


def above_lowest(new: Inserter, mask: ir.Value) -> ir.Value:
    """A mask with the lowest number but one in the place of the lowest number."""
    return _copied(new, mask, {}, 16)


def _copied(
    new: Inserter, value: ir.Value, copies: dict[ir.Value, ir.Value], depth: int
) -> ir.Value:
    if value in copies:
        return copies[value]
    array = constant(value)
    copies[value] = value
    if array is not None:
        if (dtype := ir.DataType.from_numpy(array.dtype)).is_floating_point():
            copies[value] = _raised(new, value, array, dtype)
        return copies[value]
    node = value.producer()
    if node is None or node.domain != "" or depth == 0 or node.op_type not in _CARRIERS:
        return value
    inputs = list(node.inputs)
    for index in range(len(inputs)) if node.op_type == "Concat" else _CARRIERS[node.op_type]:
        carried = inputs[index]
        # Constants of torch's exporter have no dtype written down.
        if carried is not None and (carried.dtype is None or carried.dtype.is_floating_point()):
            inputs[index] = _copied(new, carried, copies, depth - 1)
    if any(a is not b for a, b in zip(inputs, node.inputs, strict=True)):
        attributes = {name: attribute.value for name, attribute in node.attributes.items()}
        copies[value] = new.op(node.op_type, *inputs, **attributes)
        copies[value].shape = copies[value].shape or value.shape
    return copies[value]


def _raised(new: Inserter, value: ir.Value, array: np.ndarray, dtype: ir.DataType) -> ir.Value:
    import ml_dtypes

    lowest = ml_dtypes.finfo(array.dtype).min
    if not (array == lowest).any():
        return value
    return new.constant(np.where(array == lowest, _lowest(dtype), array).astype(array.dtype))
