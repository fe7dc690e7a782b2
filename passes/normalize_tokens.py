"""Scales each token of an activation to one size, where a few tokens are far larger than others."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from omnigraph.graph import Graph
from omnigraph.passes.analysis.quantization.linear_layers import (
    LinearLayer,
    by_activation,
    linear_layer_of,
    linear_layers,
)
from omnigraph.passes.analysis.quantization.product_error import STRENGTHS, Product
from omnigraph.passes.analysis.quantization.statistics import Observation
from omnigraph.passes.analysis.quantization.stored_weights import initializer
from omnigraph.passes.calibrated_pass import Needs, QuantizingPass
from omnigraph.passes.insertion import Inserter
from omnigraph.passes.matching import replace_output
from omnigraph.passes.site_pass import Miss

#: A token of zeros is divided by this; it is far below what 8 bits of any token can tell.
_TINY = 1e-12
#: The products of normalized tokens must lose this part of what they lose now, at most.
_WORTH = 0.8
_SUFFIX = "_of_normalized"


@dataclass(frozen=True)
class NormalizeTokens(QuantizingPass):
    """Divide each token of an activation by its largest magnitude, and multiply the products by it.

    Before, x having a few tokens that are far larger than the others::

        y = MatMul(x, weight)

    After::

        m = Max(ReduceMax(Abs(x), axis=-1), 1e-12)
        y = Mul(MatMul(Div(x, m), weight), m)

    The one range that x then has fits every token: these are ranges by token, as ZeroQuant (Yao et
    al. 2022, section 4.2) computes them, of integers that every kernel takes.

    Needs: statistics of each channel, and some positions. Leaves alone: activations whose products
    are forecast to lose less than ``most`` (`product_error`), or not much less with this; Gemm,
    which adds its bias before the product could be multiplied. Exact, but for two roundings to
    float32. It changes ranges, so calibration runs after it.

    Args:
        facts, keep, scheme: see `QuantizingPass`; layers that stay in float are left alone.
        most: what the products of an activation may lose, relative, of each token alike.
    """

    rounds: ClassVar[bool] = False

    most: float = 0.03

    def needs(self, graph: Graph) -> Needs:
        """The channels of every activation that will be quantized."""
        return Needs(super().needs(graph).observe)

    def sites(self, graph: Graph) -> Iterable[ir.Node]:
        """The first linear layer of each activation."""
        for _, group in by_activation(linear_layers(graph)):
            yield group[0].node

    def rewrite(self, graph: Graph, node: ir.Node) -> str:
        """Normalize the activation of one linear layer, for all layers that quantize it."""
        first = linear_layer_of(node)
        assert first is not None
        group = [
            linear
            for linear in linear_layers(graph)
            if linear.activation is first.activation and linear.node.graph is first.node.graph
        ]
        group = [linear for linear in group if self._quantizes(linear)]
        if not group:
            raise Miss("the layers that read it do not quantize it")
        now, then = self._errors(group)
        if now <= self.most:
            raise Miss(f"its products lose no more than {self.most:.1%}")
        if then > _WORTH * now:
            raise Miss(f"its products would lose {then:.1%} with it, and lose {now:.1%} now")
        if any(linear.node.op_type != "MatMul" for linear in group):
            raise Miss("a Gemm adds its bias before the product could be multiplied")
        _normalize(graph, group)
        return f"products lose {then:.1%}, and lost {now:.1%}"

    def _quantizes(self, linear: LinearLayer) -> bool:
        scheme = self.scheme_for(linear.layer)
        return scheme is not None and scheme.needs_ranges

    def _errors(self, group: list[LinearLayer]) -> tuple[float, float]:
        """What the products lose as they are, smoothed, and what with normalized tokens."""
        if self.known.statistics is None:
            raise Miss("nothing is known of its tokens: there was no calibration")
        seen = self.known.statistics.observations.get(group[0].weight.name or "")
        if seen is None:
            raise Miss(f"the statistics have nothing of what {group[0].weight.name!r} multiplies")
        weight = np.concatenate([linear.matrix for linear in group], axis=1)
        scheme = self.scheme_for(group[0].layer)
        assert scheme is not None
        sizes = np.maximum(np.abs(seen.rows).max(axis=1, keepdims=True), _TINY)
        normalized = Observation.of(seen.rows / sizes)
        errors = []
        for observed in (seen, normalized):
            product = Product(observed, weight)
            plain = product.error(scheme.activations, scheme.weights, np.ones(len(weight)))
            errors.append(min(plain, product.best(scheme, STRENGTHS).error))
        return errors[0], errors[1]


def _normalize(graph: Graph, group: list[LinearLayer]) -> None:
    value, before = group[0].activation, Inserter(group[0].node)
    largest = before.op("ReduceMax", before.op("Abs", value), before.integers(-1), keepdims=1)
    size = before.op("Max", largest, before.number(_TINY, value))
    normalized = before.op("Div", value, size)
    for linear in group:
        _rename_weight(graph, linear)
        product = linear.node.outputs[0]
        linear.node.replace_input_with(0, normalized)
        after = ir.node("Mul", [product, size])
        after.metadata_props.update(linear.node.metadata_props)
        linear.node.append(after)
        result = after.outputs[0]
        result.type, result.shape = product.type, product.shape
        replace_output(product, result)
        after.replace_input_with(0, product)


def _rename_weight(graph: Graph, linear: LinearLayer) -> None:
    """Give a weight another name, since what is known of its activation is no longer true."""
    old = linear.weight
    assert old.const_value is not None and old.name is not None
    name, tensor = f"{old.name}{_SUFFIX}", old.const_value
    if name not in graph.graph.initializers:
        new = ir.LazyTensor(
            lambda: ir.tensor(tensor.numpy(), name=name),
            dtype=ir.DataType.FLOAT,
            shape=ir.Shape(tensor.shape),  # type: ignore[arg-type]
            name=name,
        )
        initializer(graph, new)
    reader = linear.transpose or linear.node
    reader.replace_input_with(0 if linear.transpose else 1, graph.graph.initializers[name])
    if not old.uses() and not old.is_graph_output():
        graph.graph.initializers.pop(old.name)
