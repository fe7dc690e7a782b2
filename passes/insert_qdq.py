"""Quantizes linear layers and embeddings: integer weights, and Q/DQ around activations."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from omnigraph.graph import Graph
from omnigraph.passes.analysis.quantization.linear_layers import (
    LinearLayer,
    layer_of,
    linear_layer_of,
    linear_layers,
    table_of,
    tables,
)
from omnigraph.passes.analysis.quantization.scheme import ActivationGrid, Scheme
from omnigraph.passes.analysis.quantization.statistics import Observation
from omnigraph.passes.analysis.quantization.stored_weights import (
    StoredWeight,
    dequantized,
    initializer,
    look_up,
    store,
    stored_before,
)
from omnigraph.passes.analysis.quantization.weight_rounding import (
    RoundedWeight,
    WeightGrid,
    fit_grid,
    on_grid,
)
from omnigraph.passes.calibrated_pass import QuantizingPass
from omnigraph.passes.insertion import Inserter
from omnigraph.passes.matching import standard
from omnigraph.passes.site_pass import Miss

_FLOAT8_MAX = 448.0


@dataclass(frozen=True)
class InsertQdq(QuantizingPass):
    """Store the weights of linear layers as integers, and quantize their activations.

    Before::

        y = MatMul(x, weight float32)

    After, where the scheme quantizes activations by ranges from calibration::

        x_ = DequantizeLinear(QuantizeLinear(x))        one pair for all layers of x
        y  = MatMul(x_, DequantizeLinear(weight int8, a scale for each output channel))

    A dynamic scheme computes scale and zero point of x at run time, by DynamicQuantizeLinear. A
    weight-only scheme leaves x as it is. An embedding looks up rows of integers, and dequantizes
    only those rows. The weight is an initializer of integers, stored once where embeddings and
    logits share it. Norms, softmax, masks and position biases stay in float.

    Needs: weights as initializers; ranges of the activations where the scheme quantizes them.
    Leaves alone: layers whose range is not known; layers in ``keep``; a MatMul of two activations.
    Rounds: every weight and activation that it quantizes, to its grid.

    Args:
        facts, keep: see `CalibratedPass`.
        scheme: types, symmetry and groups; see `QuantizingPass`.
    """

    rounds: ClassVar[bool] = True

    def sites(self, graph: Graph) -> Iterable[ir.Node]:
        """Every linear layer, and every lookup in an embedding."""
        found = {linear.node for linear in linear_layers(graph)}
        found |= {gather for table in tables(graph) for gather in table.gathers}
        return [n for n in ir.traversal.RecursiveGraphIterator(graph.graph) if n in found]

    def rewrite(self, graph: Graph, node: ir.Node) -> str:
        """Quantize one linear layer or one lookup."""
        scheme = self.scheme_for(layer_of(node))
        if scheme is None:
            raise Miss("the layer is kept in float")
        if (linear := linear_layer_of(node)) is not None:
            return self._linear_layer(graph, linear, scheme)
        return self._lookup(graph, node, scheme)

    def _linear_layer(self, graph: Graph, linear: LinearLayer, scheme: Scheme) -> str:
        if linear.contraction < scheme.least_terms:
            raise Miss(f"its sums have only {linear.contraction} terms")
        grid = scheme.weights
        if linear.transpose is not None:
            grid = self._shared_grid(linear, scheme)
        observation = self._observation(linear, scheme)
        if scheme.activations is not None:
            quantized = _quantize_activation(graph, linear, scheme.activations, observation)
            linear.node.replace_input_with(0, quantized)
        weight = self._weight(graph, linear.weight, linear.channel_axis, grid)
        before = Inserter(linear.transpose or linear.node)
        axis = linear.channel_axis if grid.block is None else 1 - linear.channel_axis
        wide = dequantized(before, weight, axis, grid.block)
        if linear.transpose is not None:
            wide = before.op("Transpose", wide, perm=[1, 0])
        linear.node.replace_input_with(1, wide)
        _drop_unused(graph, linear.weight, linear.transpose)
        return str(replace(scheme, weights=grid))

    def _observation(self, linear: LinearLayer, scheme: Scheme) -> Observation | None:
        """The range of a layer's activation; None where the scheme needs none."""
        if scheme.activations is None or scheme.activations.dynamic:
            return None
        if self.known.statistics is None:
            raise Miss(
                "nothing is known of the range of what it multiplies: there was no calibration"
            )
        found = self.known.statistics.observations.get(linear.weight.name or "")
        if found is None:
            raise Miss(f"the statistics have nothing of what {linear.weight.name!r} multiplies")
        return found

    def _shared_grid(self, linear: LinearLayer, scheme: Scheme) -> WeightGrid:
        """The grid of a weight that an embedding also uses."""
        for user, index in linear.weight.uses():
            if index == 0 and standard(user, "Gather"):
                looked_up = self.scheme_for(layer_of(user))
                if looked_up is None or looked_up.tables is None:
                    raise Miss("it shares its weight with an embedding that stays in float", user)
                return looked_up.tables
        # The lookup was rewritten before: its table is already on this grid.
        return scheme.tables or scheme.weights

    def _lookup(self, graph: Graph, node: ir.Node, scheme: Scheme) -> str:
        if scheme.tables is None:
            raise Miss("this target looks embeddings up in float")
        table, grid = table_of(node), scheme.tables
        assert table is not None
        for user, _ in table.uses():
            shared = _reader(user)
            if shared is not None and self.scheme_for(layer_of(shared)) is None:
                raise Miss("it shares its table with a product that stays in float", shared)
        weight = self._weight(graph, table, 0, grid)
        look_up(node, weight)
        _drop_unused(graph, table, None)
        return f"Gather of {grid.dtype.name.lower()} rows"

    def _weight(
        self, graph: Graph, weight: ir.Value, channel_axis: int, grid: WeightGrid
    ) -> StoredWeight:
        """The integers and scales of a weight; stored at the first call."""
        name = f"{weight.name}_{grid.dtype.name.lower()}"
        if (known := stored_before(graph, name)) is not None:
            return known
        assert weight.const_value is not None and weight.name is not None
        rounded = self.known.rounded.get((weight.name, grid))
        return _store(graph, weight.const_value, name, channel_axis, grid, rounded)


def _store(
    graph: Graph,
    tensor: ir.TensorProtocol,
    name: str,
    channel_axis: int,
    grid: WeightGrid,
    rounded: RoundedWeight | None,
) -> StoredWeight:
    """Store a weight: its scales now, its integers as a tensor that is computed on writing."""

    def terms_first() -> np.ndarray:
        array = tensor.numpy()
        return array if channel_axis == 1 else array.T

    def as_stored(array: np.ndarray) -> np.ndarray:
        """[K, N] in the initializer's order of axes."""
        return np.ascontiguousarray(array if channel_axis == 1 or array.ndim == 1 else array.T)

    scales, zeros = (
        (rounded.scales, rounded.zeros) if rounded is not None else fit_grid(terms_first(), grid)
    )

    def quantized() -> ir.TensorProtocol:
        found = (
            rounded.quantized
            if rounded is not None
            else on_grid(terms_first(), scales, zeros, grid)
        )
        return ir.tensor(as_stored(found).astype(grid.dtype.numpy()), dtype=grid.dtype, name=name)

    shape = ir.Shape(tensor.shape)  # type: ignore[arg-type]
    lazy = ir.LazyTensor(quantized, dtype=grid.dtype, shape=shape, name=name)
    zero_points = None
    if zeros is not None:
        zero_points = ir.tensor(as_stored(zeros).astype(grid.dtype.numpy()), dtype=grid.dtype)
    return store(graph, lazy, ir.tensor(as_stored(scales)), zero_points)


def _quantize_activation(
    graph: Graph, linear: LinearLayer, grid: ActivationGrid, observation: Observation | None
) -> ir.Value:
    """A layer's activation, quantized and dequantized: one value for all layers on this grid."""
    value, before = linear.activation, Inserter(linear.node)
    if (known := _quantized_before(value, linear.node, grid)) is not None:
        return known
    if grid.dynamic:
        made = before.node("DynamicQuantizeLinear", value, outputs=3).outputs
        inputs = tuple(made)
    else:
        assert observation is not None
        scale, zero = activation_grid(observation, grid)
        dtype = grid.dtype
        inputs_ = (
            _named(graph, f"{value.name}_scale", ir.tensor(np.float32(scale))),
            _named(
                graph,
                f"{value.name}_zero_point",
                ir.tensor(np.array(zero, dtype.numpy()), dtype=dtype),
            ),
        )
        inputs = (before.op("QuantizeLinear", value, *inputs_), *inputs_)
    wide = before.op("DequantizeLinear", *inputs)
    wide.type, wide.shape = ir.TensorType(ir.DataType.FLOAT), value.shape
    return wide


def activation_grid(observation: Observation, grid: ActivationGrid) -> tuple[float, int]:
    """Scale and zero point for a range, extended so that it contains zero."""
    low, high = min(observation.low, 0.0), max(observation.high, 0.0)
    most = max(-low, high)
    if grid.dtype == ir.DataType.FLOAT8E4M3FN:
        return (most or 1.0) / _FLOAT8_MAX, 0
    if grid.symmetric:
        return (most or 1.0) / 127, 0
    scale = (high - low or 1.0) / 255
    least = 0 if grid.dtype == ir.DataType.UINT8 else -128
    return scale, int(np.clip(round(least - low / scale), least, least + 255))


def _quantized_before(value: ir.Value, reader: ir.Node, grid: ActivationGrid) -> ir.Value | None:
    """The dequantized value that another layer of this graph already reads, or None."""
    for user, index in value.uses():
        if index != 0 or user.graph is not reader.graph:
            continue
        op = "DynamicQuantizeLinear" if grid.dynamic else "QuantizeLinear"
        if not standard(user, op) or user.outputs[0].dtype != grid.dtype:
            continue
        for reading, _ in user.outputs[0].uses():
            if standard(reading, "DequantizeLinear"):
                return reading.outputs[0]
    return None


def _named(graph: Graph, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    """An initializer of this name, or of the first free ``name_2``, ``name_3``, …"""
    taken, number = name, 1
    while taken in graph.graph.initializers:
        number += 1
        taken = f"{name}_{number}"
    tensor.name = taken
    return initializer(graph, tensor)


def _reader(user: ir.Node) -> ir.Node | None:
    """The linear layer that reads a table, directly or through a Transpose."""
    if linear_layer_of(user) is not None:
        return user
    if standard(user, "Transpose"):
        return next((n for n, _ in user.outputs[0].uses() if linear_layer_of(n) is not None), None)
    return None


def _drop_unused(graph: Graph, weight: ir.Value, transpose: ir.Node | None) -> None:
    """Remove a float weight that nothing reads any more, and its Transpose."""
    if transpose is not None and transpose.graph is not None and not transpose.outputs[0].uses():
        transpose.graph.remove(transpose, safe=True)
    if not weight.uses() and not weight.is_graph_output() and weight.name is not None:
        graph.graph.initializers.pop(weight.name, None)
