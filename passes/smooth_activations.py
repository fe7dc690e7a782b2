"""Moves outliers of activations into the weights, which have a scale for each channel."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from omnigraph.graph import Graph
from omnigraph.passes.analysis.quantization.float_precision import is_weight
from omnigraph.passes.analysis.quantization.linear_layers import (
    LinearLayer,
    bias_of,
    by_activation,
    linear_layer_of,
    linear_layers,
)
from omnigraph.passes.analysis.quantization.product_error import STRENGTHS, Product
from omnigraph.passes.analysis.quantization.statistics import Observation
from omnigraph.passes.analysis.quantization.stored_weights import initializer
from omnigraph.passes.calibrated_pass import Needs, QuantizingPass
from omnigraph.passes.insertion import Inserter
from omnigraph.passes.matching import input_at, made_by, rank
from omnigraph.passes.site_pass import Miss

_NORMS = ("LayerNormalization", "RMSNormalization")
#: Metadata of a value whose channels were scaled, so that a second run leaves it alone.
_SMOOTHED = "omnigraph.smoothed"
#: How many times less its products must lose for a node that divides an activation.
_PAYS = 1.25

#: A constant that scales an activation: the node that reads it, which input, which axis.
_Constant = tuple[ir.Node, int, int]


@dataclass(frozen=True)
class SmoothActivations(QuantizingPass):
    """Divide each channel of an activation by a factor, and multiply the weights' rows by it.

    Before, x having a few channels that are far larger than the others::

        x = LayerNormalization(h, scale, bias)
        y = MatMul(x, weight)

    After, with f = max|x|^strength / max|weight|^(1 - strength) for each channel::

        x = LayerNormalization(h, scale / f, bias / f)
        y = MatMul(x, weight * f)

    This is SmoothQuant (Xiao et al. 2023, section 4, equations 3 and 4). The division is free where
    the node before can absorb it: a norm, the other factor of a gated feed-forward, or the linear
    layer that computes the values of an attention. Elsewhere (in post-norm models, where the
    residual reads x too, or after GELU) it is a node of its own, which runtimes fuse into the
    rounding of x::

        y = MatMul(Mul(x, 1 / f), weight * f)

    Needs: statistics of each channel, and some positions. The strength of each activation is the
    one at which its products are forecast to lose least (`product_error`). Leaves alone:
    activations of which no strength improves the products, or not by so much that a node pays;
    weights that an embedding shares. Exact, but for the rounding of weights to float32. It changes
    the ranges of activations, so calibration runs after it.

    Args:
        facts, keep, scheme: see `QuantizingPass`; layers that stay in float are not smoothed.
        strength: how much of the difficulty moves into the weights, from 0 to 1; None chooses.
    """

    rounds: ClassVar[bool] = False

    strength: float | None = None

    def needs(self, graph: Graph) -> Needs:
        """The channels of every activation that will be quantized."""
        return Needs(super().needs(graph).observe)

    def sites(self, graph: Graph) -> Iterable[ir.Node]:
        """The first linear layer of each activation."""
        for value, group in by_activation(linear_layers(graph)):
            if _SMOOTHED not in value.metadata_props:
                yield group[0].node

    def rewrite(self, graph: Graph, node: ir.Node) -> str:
        """Smooth the activation of one linear layer, and the weights of all layers that read it."""
        first = linear_layer_of(node)
        assert first is not None
        value = first.activation
        group = self._smoothed(graph, first)
        constants, why = self._absorbing(value, group)
        weight = np.concatenate([linear.matrix for linear in group], axis=1)
        scheme = self.scheme_for(group[0].layer)
        assert scheme is not None
        tried = STRENGTHS if self.strength is None else (self.strength,)
        best = Product(self._seen(group[0]), weight).best(scheme, tried)
        if not best.gain > 1 or (constants is None and best.gain < _PAYS):
            raise Miss("its products lose no less with any strength that was tried")
        factors = best.factors
        if constants is None:
            value = _divide(graph, value, factors, group)
        for reader, place, axis in constants or ():
            _scale(graph, reader, place, 1 / factors, axis)
        for linear in group:
            _scale(graph, linear.node, 1, factors, 1 - linear.channel_axis)
        value.metadata_props[_SMOOTHED] = str(best.strength)
        how = f"by a node of its own, since {why}; " if constants is None else ""
        return (
            f"{how}channels divided by {factors.min():.2g} to {factors.max():.2g}, strength "
            f"{best.strength:.1f}: products lose {best.gain:.1f} times less"
        )

    def _smoothed(self, graph: Graph, first: LinearLayer) -> list[LinearLayer]:
        """The readers of an activation that are quantized and have a weight of their own."""
        found = [
            linear
            for linear in linear_layers(graph)
            if linear.activation is first.activation and linear.node.graph is first.node.graph
        ]
        schemes = {linear: self.scheme_for(linear.layer) for linear in found}
        quantized = [n for n, scheme in schemes.items() if scheme and scheme.needs_ranges]
        if not quantized:
            raise Miss("the layers that read it do not quantize it")
        own = [n for n in quantized if n.transpose is None and len(list(n.weight.uses())) == 1]
        if not own:
            raise Miss("the weight has other uses", quantized[0].node)
        return own

    def _absorbing(
        self, value: ir.Value, group: Sequence[LinearLayer]
    ) -> tuple[Sequence[_Constant] | None, str]:
        """The constants before an activation that can take its factors; or None, and why."""
        if value.is_graph_output():
            return None, "it is an output of the program"
        nodes = {linear.node for linear in group}
        if any(user not in nodes for user, _ in value.uses()):
            return None, "others read it too"
        try:
            return _scalable(value), ""
        except Miss as miss:
            return None, str(miss)

    def _seen(self, linear: LinearLayer) -> Observation:
        if self.known.statistics is None:
            raise Miss("nothing is known of the channels: there was no calibration")
        found = self.known.statistics.observations.get(linear.weight.name or "")
        if found is None or len(found.lows) != linear.contraction:
            raise Miss(f"the statistics have no channels of what {linear.weight.name!r} multiplies")
        return found


def _divide(
    graph: Graph, value: ir.Value, factors: np.ndarray, group: Sequence[LinearLayer]
) -> ir.Value:
    """A node that divides an activation by factors, for some of the layers that read it."""
    by = (1 / factors).astype(np.float32)
    name = f"{value.name}_smooth_{sha256(by.tobytes()).hexdigest()[:8]}"
    constant = graph.graph.initializers.get(name)
    if constant is None:
        constant = initializer(graph, ir.tensor(by, name=name))
    divided = Inserter(group[0].node).op("Mul", value, constant)
    divided.type, divided.shape = value.type, value.shape
    for linear in group:
        linear.node.replace_input_with(0, divided)
    return divided


def _scalable(value: ir.Value) -> Sequence[_Constant]:
    """The constants that scale each channel of an activation."""
    if (norm := made_by(value, *_NORMS)) is not None:
        return _of_norm(norm)
    if (gated := made_by(value, "Mul")) is not None:
        for factor in gated.inputs:
            if factor is not None and (found := _of_linear_layer(factor)) is not None:
                return found
        raise Miss("neither factor of the gate is a product with a weight of its own", gated)
    producer = value.producer()
    raise Miss("what makes the activation holds no scale for each channel", producer)


def _of_norm(norm: ir.Node) -> list[_Constant]:
    found = []
    for place in range(1, 3):
        constant = input_at(norm, place)
        if constant is None and place == 2:
            continue
        if constant is None or not is_weight(constant) or rank(constant) != 1:
            raise Miss("the norm has no constant scale for each channel", norm)
        found.append((norm, place, 0))
    return found


def _of_linear_layer(value: ir.Value) -> list[_Constant] | None:
    """The weight and bias of a linear layer whose result is read once, or None."""
    bias: list[_Constant] = []
    if len(list(value.uses())) != 1 or value.is_graph_output():
        return None
    node = value.producer()
    if node is not None and node.op_type == "Add":
        factors = [made_by(v, "MatMul") for v in node.inputs]
        node = next((f for f in factors if f is not None and bias_of(f) is not None), None)
    linear = linear_layer_of(node) if node is not None else None
    if linear is None or linear.transpose is not None or len(list(linear.weight.uses())) > 1:
        return None
    if (found := bias_of(linear.node)) is not None:
        bias = [(*found, 0)]
    elif linear.node.outputs[0] is not value:
        return None
    return [(linear.node, 1, linear.channel_axis), *bias]


def _scale(graph: Graph, node: ir.Node, place: int, factors: np.ndarray, axis: int) -> None:
    """Multiply the constant that a node reads by one factor for each index of an axis."""
    old = node.inputs[place]
    assert old is not None and old.const_value is not None and old.name is not None
    tensor = old.const_value
    shape = [1] * len(tensor.shape)
    shape[axis] = -1
    by = factors.reshape(shape)
    # The name contains the factors: a program with other factors gets a weight of its own.
    name = f"{old.name}_smooth_{sha256(by.tobytes()).hexdigest()[:8]}"
    if name in graph.graph.initializers:
        node.replace_input_with(place, graph.graph.initializers[name])
        return
    new = ir.LazyTensor(
        lambda: ir.tensor(tensor.numpy() * by, name=name),
        dtype=ir.DataType.FLOAT,
        shape=ir.Shape(tensor.shape),  # type: ignore[arg-type]
        name=name,
    )
    value = ir.Value(name=name, shape=old.shape, type=old.type, const_value=new)
    graph.graph.register_initializer(value)
    node.replace_input_with(place, value)
    if not old.uses() and not old.is_graph_output():
        graph.graph.initializers.pop(old.name)
