"""Faults in weights: rows, columns, elements, heads, biases and norms."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from benchmarks.faults.fault import Fault, Place, has_role, module_of, readers, set_array
from omnigraph.graph import Graph

HEADS = 6
#: Changes the numbers of a weight [N, K]: output channels first.
Change = Callable[[np.ndarray], np.ndarray]
_EVERYWHERE = ("passes", "rounding", "lowering", "artifact")


@dataclass(frozen=True)
class Weight:
    """A weight with the output channels first, however it is stored."""

    graph: Graph
    value: ir.Value

    @property
    def turned(self) -> bool:
        """Whether the output channels are the last axis."""
        for node, position in self.value.uses():
            if node.op_type == "DequantizeLinear" and position == 0:
                axis, blocks = (node.attributes.get_int(n, 0) for n in ("axis", "block_size"))
                return bool(axis) != bool(blocks)  # the axis of blocks is the other one
        ops = [node.op_type for node in readers(self.value)]
        return not {"Transpose", "Gather"} & set(ops) and "Gemm" not in ops

    @property
    def scale(self) -> ir.Value | None:
        """The scales of a quantized weight."""
        return self._grid(1, "_scale")

    @property
    def zeros(self) -> ir.Value | None:
        """The zero points of a quantized weight."""
        return self._grid(2, "_zero_point")

    def _grid(self, index: int, suffix: str) -> ir.Value | None:
        """What the node that dequantizes a weight reads; for a table, by name."""
        for node, position in self.value.uses():
            if node.op_type == "DequantizeLinear" and position == 0:
                return node.inputs[index] if index < len(node.inputs) else None
        return self.graph.graph.initializers.get(f"{self.value.name}{suffix}")

    def numbers(self) -> np.ndarray:
        """The numbers [N, K], or the codes less their zero points."""
        assert self.value.const_value is not None
        array = self.value.const_value.numpy().astype(np.float32) - self._zero()
        return array.T if self.turned else array

    def change(self, change: Change) -> None:
        """Change the numbers; codes are rounded again."""
        array = change(self.numbers().copy())
        array = array.T if self.turned else array
        assert self.value.const_value is not None
        dtype = self.value.const_value.dtype
        array = array + self._zero()
        if dtype.is_integer():
            array = np.clip(np.rint(array), dtype.min, dtype.max)
        set_array(self.graph, self.value, array)

    def scale_rows(self, rows: slice, factor: float) -> None:
        """Multiply output channels by a factor: by their scales, where the weight has some."""
        if self.scale is None:
            self.change(lambda a: _times(a, rows, factor))
            return
        assert self.scale.const_value is not None
        scales = self.scale.const_value.numpy().copy()
        along_first = scales.ndim == 1 or not self.turned
        if along_first:
            scales[rows] = scales[rows] * scales.dtype.type(factor)
        else:
            scales[:, rows] = scales[:, rows] * scales.dtype.type(factor)
        set_array(self.graph, self.scale, scales)

    def _zero(self) -> np.ndarray:
        shape = self.value.const_value.shape.numpy() if self.value.const_value is not None else ()
        if self.zeros is None or self.zeros.const_value is None:
            return np.zeros(shape, np.float32)
        zeros = self.zeros.const_value.numpy().astype(np.float32)
        if zeros.ndim == 1:
            return np.broadcast_to(zeros if self.turned else zeros[:, None], shape)
        axis = 0 if self.turned else 1
        counts = {b: -(-shape[axis] // b) for b in (16, 32, 64, 128)}
        block = next(b for b, count in counts.items() if count == zeros.shape[axis])
        spread = np.repeat(zeros, block, axis=axis)
        return spread[: shape[0], : shape[1]]


def _times(array: np.ndarray, rows: slice, factor: float) -> np.ndarray:
    array[rows] *= factor
    return array


def weights(graph: Graph, role: str) -> Iterator[Weight]:
    """The weights of a role, of two axes."""
    for name, value in graph.graph.initializers.items():
        if name.endswith(("_scale", "_zero_point")) or value.shape is None or len(value.shape) != 2:
            continue
        if has_role(name, role) and value.const_value is not None and value.uses():
            yield Weight(graph, value)


def _where(weight: Weight) -> tuple[str, ...]:
    return tuple(dict.fromkeys(module_of(node) for node in readers(weight.value)))


def _changed(role: str, change: Change) -> Callable[[Graph], Iterator[Place]]:
    def places(graph: Graph) -> Iterator[Place]:
        for weight in weights(graph, role):
            yield Place(weight.value.name or "", _where(weight), lambda w=weight: w.change(change))

    return places


def _scaled(role: str, rows: slice, factor: float) -> Callable[[Graph], Iterator[Place]]:
    def places(graph: Graph) -> Iterator[Place]:
        for weight in weights(graph, role):
            yield Place(
                weight.value.name or "",
                _where(weight),
                lambda w=weight: w.scale_rows(rows, factor),
            )

    return places


# Changes of [N, K] -------------------------------------------------------------------------------


def _largest(array: np.ndarray) -> tuple[int, ...]:
    return np.unravel_index(int(np.abs(array).argmax()), array.shape)  # type: ignore[return-value]


def _lose_largest(array: np.ndarray) -> np.ndarray:
    array[_largest(array)] = 0
    return array


def _negate_largest(array: np.ndarray) -> np.ndarray:
    array[_largest(array)] *= -1
    return array


def _exchange_rows(array: np.ndarray) -> np.ndarray:
    array[[3, 4]] = array[[4, 3]]
    return array


def _lose_row(array: np.ndarray) -> np.ndarray:
    array[5] = 0
    return array


def _negate_row(array: np.ndarray) -> np.ndarray:
    array[7] *= -1
    return array


def _repeat_row(array: np.ndarray) -> np.ndarray:
    array[-1] = array[-2]
    return array


def _lose_inputs(array: np.ndarray) -> np.ndarray:
    array[:, -16:] = 0
    return array


def _turn(array: np.ndarray) -> np.ndarray:
    return array.T if array.shape[0] == array.shape[1] else array[::-1]


def _noise(array: np.ndarray) -> np.ndarray:
    drawn = np.random.default_rng(0).standard_normal(array.shape).astype(np.float32)
    return array + 0.05 * np.sqrt(np.mean(np.square(array))) * drawn


def _lose_head(array: np.ndarray) -> np.ndarray:
    size = array.shape[1] // HEADS
    array[:, size : 2 * size] = 0
    return array


def _exchange_heads(array: np.ndarray) -> np.ndarray:
    heads = array.reshape(HEADS, -1, array.shape[1])
    return heads[[0, 2, 1, 3, 4, 5]].reshape(array.shape)


def _exchange_input_heads(array: np.ndarray) -> np.ndarray:
    return _exchange_heads(array.T).T


def _column_2_percent(array: np.ndarray) -> np.ndarray:
    array[:, 11] *= 1.02
    return array


def _roll(array: np.ndarray) -> np.ndarray:
    return np.roll(array, 1, axis=0)


def _roll_inputs(array: np.ndarray) -> np.ndarray:
    return np.roll(array, 1, axis=1)


def _layers_exchanged(role: str) -> Callable[[Graph], Iterator[Place]]:
    def places(graph: Graph) -> Iterator[Place]:
        for one, other in zip(weights(graph, role), list(weights(graph, role))[1:], strict=False):
            if one.value.shape != other.value.shape:
                continue

            def plant(one: Weight = one, other: Weight = other) -> None:
                first, second = one.numbers().copy(), other.numbers().copy()
                one.change(lambda _: second)
                other.change(lambda _: first)

            yield Place(one.value.name or "", _where(one), plant)

    return places


# Biases and norms --------------------------------------------------------------------------------


def vectors(graph: Graph, role: str, end: str) -> Iterator[ir.Value]:
    """The biases of a role, or the weights of norms: initializers of one axis."""
    for name, value in graph.graph.initializers.items():
        last = name.rsplit(".", 1)[-1]
        one_axis = value.shape is not None and len(value.shape) == 1 and bool(value.uses())
        if one_axis and last.startswith(end) and has_role(name, role) and "scale" not in last:
            yield value


def _vector(role: str, end: str, change: Change) -> Callable[[Graph], Iterator[Place]]:
    def places(graph: Graph) -> Iterator[Place]:
        for value in vectors(graph, role, end):

            def plant(value: ir.Value = value) -> None:
                assert value.const_value is not None
                array = value.const_value.numpy().astype(np.float32)
                set_array(graph, value, change(array))

            modules = tuple(dict.fromkeys(module_of(node) for node in readers(value)))
            yield Place(value.name or "", modules, plant)

    return places


def _lost(array: np.ndarray) -> np.ndarray:
    return np.zeros_like(array)


def _ones(array: np.ndarray) -> np.ndarray:
    return np.ones_like(array)


def _doubled(array: np.ndarray) -> np.ndarray:
    return 2 * array


def _one_element(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array[int(np.abs(array).argmax())] *= 1.1
    return array


_ROWS = ("query", "key", "value", "projection", "up", "down", "table")
FAULTS: tuple[Fault, ...] = (
    *(
        Fault(f"2% on a row of the {role} weight", _scaled(role, slice(3, 4), 1.02), _EVERYWHERE)
        for role in _ROWS
    ),
    *(
        Fault(f"2% on the whole {role} weight", _scaled(role, slice(None), 1.02), _EVERYWHERE)
        for role in ("query", "up")
    ),
    Fault("10% on all queries", _scaled("query", slice(None), 1.1), _EVERYWHERE),
    Fault("2% on a column of the down weight", _changed("down", _column_2_percent), ("passes",)),
    Fault("2% on the joined weight's row", _scaled("joined", slice(3, 4), 1.02)),
    Fault("largest weight of value lost", _changed("value", _lose_largest), _EVERYWHERE),
    Fault("largest weight of up negated", _changed("up", _negate_largest), _EVERYWHERE),
    Fault("largest weight of table lost", _changed("table", _lose_largest), _EVERYWHERE),
    Fault("two rows of key exchanged", _changed("key", _exchange_rows), _EVERYWHERE),
    Fault("two rows of the table exchanged", _changed("table", _exchange_rows), _EVERYWHERE),
    Fault("a row of projection lost", _changed("projection", _lose_row), _EVERYWHERE),
    Fault("a row of the table lost", _changed("table", _lose_row), _EVERYWHERE),
    Fault("a row of down negated", _changed("down", _negate_row), _EVERYWHERE),
    Fault("last row of up repeated", _changed("up", _repeat_row)),
    Fault("last 16 inputs of down lost", _changed("down", _lose_inputs), _EVERYWHERE),
    Fault("query weight transposed", _changed("query", _turn)),
    Fault("projection weight transposed", _changed("projection", _turn), ("passes", "rounding")),
    Fault("5% noise on value weights", _changed("value", _noise), _EVERYWHERE),
    Fault("5% noise on up weights", _changed("up", _noise), _EVERYWHERE),
    Fault("up weights of two layers exchanged", _layers_exchanged("up")),
    Fault("rows of up shifted by one", _changed("up", _roll)),
    Fault("inputs of down shifted by one", _changed("down", _roll_inputs), ("rounding",)),
    Fault("rows of the table shifted by one", _changed("table", _roll)),
    Fault("rows of the position table shifted by one", _changed("positions", _roll)),
    Fault("a row of the position table lost", _changed("positions", _lose_row)),
    Fault("2% on a row of the position table", _scaled("positions", slice(2, 3), 1.02)),
    Fault("a head lost in projection", _changed("projection", _lose_head), _EVERYWHERE),
    Fault("heads exchanged in projection", _changed("projection", _exchange_input_heads)),
    Fault("heads exchanged in value", _changed("value", _exchange_heads), _EVERYWHERE),
    Fault("heads exchanged in query", _changed("query", _exchange_heads)),
    *(
        Fault(f"bias of {role} lost", _vector(role, "bias", _lost), ("passes", "artifact"))
        for role in ("query", "value", "projection", "up", "down", "norm")
    ),
    Fault("bias of key lost", _vector("key", "bias", _lost), ("passes",)),
    Fault("bias of down doubled", _vector("down", "bias", _doubled), ("passes", "lowering")),
    Fault("bias of up shifted by one", _vector("up", "bias", lambda a: np.roll(a, 1)), ("passes",)),
    Fault("10% on an element of the bias of value", _vector("value", "bias", _one_element)),
    Fault("weight of a norm lost", _vector("norm", "weight", _ones), ("passes", "lowering")),
    Fault("weight of a norm shifted by one", _vector("norm", "weight", lambda a: np.roll(a, 1))),
    Fault("10% on an element of a norm's weight", _vector("norm", "weight", _one_element)),
)
