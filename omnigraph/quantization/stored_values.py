"""Weights before and after a pass that rounds them: by name, and within what rounding explains.

A pass that rounds may replace a float constant by a half type, or by integers with scales. What it
stored is compared by value, element by element, so a row that no input happens to read is compared
too. The bounds follow from the grid: half a step between two numbers of it, and beyond its ends the
distance to them; for a half type the unit roundoff (IEEE 754-2019, table 3.5). The root mean square
of the error of each scale's values is at most half the step of a grid that clips nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from omnigraph.errors import ContractError
from omnigraph.graph import Graph
from omnigraph.passes.analysis.quantization.weight_rounding import RoundedWeight, WeightGrid
from omnigraph.passes.correct_biases import CORRECTED_SUFFIX
from omnigraph.passes.matching import standard, through

_HALVES = {ir.DataType.FLOAT16: "fp16", ir.DataType.BFLOAT16: "bf16"}
_WIDE = ir.DataType.FLOAT
_INTEGERS = ("_int8", "_uint8", "_int4", "_uint4", "_float8e4m3fn")
#: What passes that round add to the name of a constant.
_SUFFIXES = ("", "_fp16", "_bf16", CORRECTED_SUFFIX, *_INTEGERS)
#: For sums in float32 inside a bound.
_SLACK = 1.001


@dataclass(frozen=True)
class StoredValue:
    """How a Graph stores what another has as a float32 constant.

    Args:
        value: the constant as it is stored: float32, a half type, float8 or integers.
        scales: of float8 and integers, along ``axis``; one for each ``block`` where there is one.
        zeros: zero points in the shape of ``scales``, where not all are zero.
    """

    value: ir.Value
    scales: ir.Value | None = None
    zeros: ir.Value | None = None
    axis: int = 0
    block: int | None = None

    @property
    def is_corrected(self) -> bool:
        """Whether it is a bias that was moved on purpose."""
        return (self.value.name or "").rstrip("_").endswith(CORRECTED_SUFFIX)

    @property
    def grid(self) -> WeightGrid:
        """The type, and the terms for each scale."""
        assert self.value.dtype is not None
        return WeightGrid(self.value.dtype, self.block)

    def numpy(self) -> np.ndarray:
        """The float32 numbers that a runtime computes with."""
        wide = _array(self.value).astype(np.float32)
        if self.zeros is not None:
            wide = wide - self.spread(_array(self.zeros).astype(np.float32), wide.shape)
        if self.scales is not None:
            wide = wide * self.spread(_array(self.scales).astype(np.float32), wide.shape)
        return wide

    def spread(self, grid: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Scales or zero points, in a shape that broadcasts over the values."""
        if grid.ndim == 0 or grid.size == 1:
            return grid.reshape(())
        axis = self.axis % len(shape)
        if self.block is not None:
            whole = np.repeat(grid, self.block, axis=axis)
            return np.take(whole, np.arange(shape[axis]), axis=axis)
        return grid.reshape([-1 if a == axis else 1 for a in range(len(shape))])

    def stand_in(self, value: ir.Value, graph: Graph) -> ir.Value:
        """The same numbers as a value of another Graph, which has float32 constant ``value``."""
        first, name = graph.graph[0], f"{value.name}_as_{self.value.name}"
        inputs: list[ir.Value] = []
        for part in (self.value, self.scales, self.zeros):
            if part is not None:
                tensor = _tensor(part)
                copy = ir.Value(
                    name=f"{name}_{len(inputs)}",
                    shape=ir.Shape(tensor.shape),  # type: ignore[arg-type]
                    type=ir.TensorType(tensor.dtype),
                    const_value=tensor,
                )
                graph.graph.register_initializer(copy)
                inputs.append(copy)
        if self.value.dtype == _WIDE:
            return inputs[0]
        if self.scales is None:
            node = ir.node("Cast", inputs, {"to": _WIDE})
        else:
            block = {"block_size": self.block} if self.block else {}
            node = ir.node("DequantizeLinear", inputs, {"axis": self.axis, **block})
        node.metadata_props.update(first.metadata_props)
        node.outputs[0].type, node.outputs[0].shape = ir.TensorType(_WIDE), value.shape
        first.prepend(node)
        return node.outputs[0]


def stored_values(before: Graph, after: Graph) -> list[tuple[ir.Value, list[StoredValue]]]:
    """The float32 constants of a Graph that another Graph has changed, or in other types."""
    known = {value.name: value for value in constants(after)}
    found = []
    for value in constants(before):
        if value.dtype == _WIDE and (stored := _stored(value, known)):
            found.append((value, stored))
    return found


def constants(graph: Graph) -> Iterator[ir.Value]:
    """Every initializer of a Graph, and every value of a Constant."""
    yield from graph.graph.initializers.values()
    for node in ir.traversal.RecursiveGraphIterator(graph.graph):
        if standard(node, "Constant") and node.outputs[0].const_value is not None:
            yield node.outputs[0]


def substitute(graph: Graph, after: Graph) -> None:
    """Let a float Graph compute with its constants as another Graph stores them."""
    nodes = {node.name: node for node in ir.traversal.RecursiveGraphIterator(after.graph)}
    for value, stored in stored_values(graph, after):
        replaced: dict[int, ir.Value] = {}
        for user, index in tuple(value.uses()):
            chosen = _read_by(nodes.get(user.name), index, value, stored)
            if chosen is None:
                continue
            if chosen not in replaced:
                replaced[chosen] = stored[chosen].stand_in(value, graph)
            user.replace_input_with(index, replaced[chosen])


def _read_by(
    node: ir.Node | None, index: int, value: ir.Value, stored: list[StoredValue]
) -> int | None:
    """Which of the stored forms a node of the other Graph reads; None is the constant itself."""
    read = node.inputs[index] if node is not None and index < len(node.inputs) else None
    source = through(read, "Cast", "Transpose", "DequantizeLinear")
    if source is not None and source.const_value is _tensor(value):
        return None
    for position, form in enumerate(stored):
        if form.value is source:
            return position
    looked_up = [any(standard(user, "Gather") for user, _ in form.value.uses()) for form in stored]
    return looked_up.index(True) if True in looked_up else 0


def _stored(value: ir.Value, known: dict[str | None, ir.Value]) -> list[StoredValue]:
    found = []
    suffixes = list(_SUFFIXES)
    again = f"{CORRECTED_SUFFIX}_"
    while f"{value.name}{again}" in known:  # a bias that several layers share
        suffixes.append(again)
        again += "_"
    for suffix in suffixes:
        twin = known.get(f"{value.name}{suffix}")
        if twin is None or twin.const_value is _tensor(value):
            continue
        if twin.dtype == _WIDE or twin.dtype in _HALVES:
            found.append(StoredValue(twin))
        elif (scales := known.get(f"{twin.name}_scale")) is not None:
            found.append(_quantized(twin, scales, known.get(f"{twin.name}_zero_point")))
    return found


def _quantized(twin: ir.Value, scales: ir.Value, zeros: ir.Value | None) -> StoredValue:
    for user, index in twin.uses():
        if index == 0 and standard(user, "DequantizeLinear"):
            axis = user.attributes.get_int("axis", 1)
            block = user.attributes.get_int("block_size", 0)
            given = user.inputs[2] if len(user.inputs) > 2 else None
            assert user.inputs[1] is not None
            return StoredValue(twin, user.inputs[1], given, axis, block or None)
    return StoredValue(twin, scales, zeros)


def _tensor(value: ir.Value) -> ir.TensorProtocol:
    tensor = value.const_value
    assert tensor is not None
    return tensor


def _array(value: ir.Value) -> np.ndarray:
    return _tensor(value).numpy()


# Bounds -------------------------------------------------------------------------------------------


def check_stored(
    value: ir.Value, stored: StoredValue, stage: str, compensated: RoundedWeight | None = None
) -> None:
    """Refuse a stored constant that is further from the float one than its rounding explains.

    Args:
        compensated: the weight as it was rounded with compensation, which is what must be stored.

    Raises:
        ContractError: naming the constant, and the element that is furthest beyond its bound.
    """
    wide, found = np.asarray(_array(value), np.float32), stored.numpy()
    meant = compensated is not None
    if compensated is not None:
        wide = compensated.dequantized()
        wide = wide if stored.axis % 2 == _axis(compensated) else wide.T
    finite = np.isfinite(wide)
    error = np.abs(np.where(finite, found, 0) - np.where(finite, wide, 0))
    excess = error - (1e-6 * np.abs(wide) if meant else _bound(wide, stored))
    if excess.size and not float(excess.max()) <= 0:
        place = tuple(int(i) for i in np.unravel_index(int(np.argmax(excess)), excess.shape))
        raise ContractError(
            f"Weight {value.name!r} is not what rounding leaves of it, after {stage}",
            expected=f"an error of at most {float(error[place] - excess[place]):.2e} at {place}",
            found=f"{float(error[place]):.2e}, of {float(wide[place]):.3e}",
            hint="the pass that stored it rounds it wrongly, or stored another",
        )
    if not meant and stored.scales is not None and stored.value.dtype != ir.DataType.FLOAT8E4M3FN:
        _check_size_of_errors(value, wide, error, stored, stage)


def _axis(rounded: RoundedWeight) -> int:
    """The axis of the scales of a weight [K, N]: of its channels, or of its blocks of terms."""
    return 1 if rounded.grid.block is None else 0


def _bound(wide: np.ndarray, stored: StoredValue) -> np.ndarray:
    dtype = stored.value.dtype
    assert dtype is not None
    size = np.abs(wide)
    if dtype in _HALVES:
        info = ml_dtypes.finfo(dtype.numpy())
        least, most = float(info.smallest_subnormal), float(info.max)
        # A scale is never rounded to 0, so that half a step may be a whole one.
        beyond = np.where(np.isfinite(size), np.maximum(size - most, 0), 0)
        # What lies beyond the range becomes its end, or the number before it.
        units = np.where(beyond > 0, 1.0, 0.5)
        return np.minimum(size, most) * float(info.eps) * units * _SLACK + least + beyond
    if dtype == _WIDE:
        return np.zeros_like(size)
    assert stored.scales is not None
    step = stored.spread(_array(stored.scales).astype(np.float32), wide.shape)
    if dtype == ir.DataType.FLOAT8E4M3FN:
        return size * 2.0**-4 * _SLACK + step * 2.0**-10
    zeros: Any = 0.0
    if stored.zeros is not None:
        zeros = stored.spread(_array(stored.zeros).astype(np.float32), wide.shape)
    low, high = _levels(dtype)
    beyond = np.maximum(step * (low - zeros) - wide, wide - step * (high - zeros))
    return step / 2 * _SLACK + np.maximum(beyond, 0) + size * 1e-6


def _levels(dtype: ir.DataType) -> tuple[int, int]:
    bits = dtype.bitwidth
    return (
        (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if dtype.is_signed() else (0, (1 << bits) - 1)
    )


def _check_size_of_errors(
    value: ir.Value, wide: np.ndarray, error: np.ndarray, stored: StoredValue, stage: str
) -> None:
    """Refuse scales that are not those of the values: all errors together are too large."""
    dtype = stored.value.dtype
    assert dtype is not None
    low, high = _levels(dtype)
    least = np.minimum(_grouped(wide, stored, np.minimum), 0)
    most = np.maximum(_grouped(wide, stored, np.maximum), 0)
    unclipped = (most - least) / (high - low)
    if stored.zeros is None:
        unclipped = np.maximum(most, -least) / (high if dtype.is_signed() else high - low)
    squares = _grouped(np.square(error, dtype=np.float32), stored, np.add)
    counts = _grouped(np.ones_like(wide), stored, np.add)
    rms = np.sqrt(squares / counts)
    wrong = rms > unclipped / 2 * _SLACK + 1e-30
    if wrong.any():
        where = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise ContractError(
            f"The scales of weight {value.name!r} are not those of its values, after {stage}",
            expected=f"errors of {float((unclipped / 2)[where]):.2e} rms at most at {where}",
            found=f"{float(rms[where]):.2e}",
            hint="a scale or a zero point is off, or belongs to another channel",
        )


def _grouped(array: np.ndarray, stored: StoredValue, reduce: np.ufunc) -> np.ndarray:
    """An array reduced to one number for each scale."""
    assert stored.scales is not None and stored.scales.const_value is not None
    if stored.scales.const_value.size == 1:
        return np.atleast_1d(reduce.reduce(array, axis=None))
    axis = stored.axis % array.ndim
    if stored.block is not None:
        starts = np.arange(0, array.shape[axis], stored.block)
        return reduce.reduceat(array, starts, axis=axis)
    others = tuple(a for a in range(array.ndim) if a != axis)
    return np.atleast_1d(reduce.reduce(array, axis=others))
