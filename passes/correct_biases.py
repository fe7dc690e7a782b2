"""Corrects biases by the mean error that the rounding of weights causes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from omnigraph.graph import Graph
from omnigraph.passes.analysis.quantization.linear_layers import (
    LinearLayer,
    bias_of,
    linear_layer_of,
    linear_layers,
)
from omnigraph.passes.analysis.quantization.scheme import Scheme
from omnigraph.passes.analysis.quantization.stored_weights import initializer
from omnigraph.passes.analysis.quantization.weight_rounding import round_weight
from omnigraph.passes.calibrated_pass import QuantizingPass
from omnigraph.passes.site_pass import Miss

#: Metadata of a bias that was corrected, so that a second run leaves it alone.
_CORRECTED = "omnigraph.bias_corrected"
#: What is added to the name of a corrected bias.
CORRECTED_SUFFIX = "_corrected"


@dataclass(frozen=True)
class CorrectBiases(QuantizingPass):
    """Add to each bias the mean output that the rounding of the weights will take away.

    Before::

        y = Add(MatMul(x, weight), bias)

    After, with the weight as `InsertQdq` will round it::

        y = Add(MatMul(x, weight), bias + mean(x) · (weight - rounded))

    This is bias correction (Nagel et al. 2019, section 4.2), with the mean from calibration.

    Needs: statistics with the mean of each channel; it runs before `InsertQdq`, with the same
    scheme, facts and kept layers. Leaves alone: linear layers without a constant bias, and those
    that stay in float. Changes numbers on purpose, by the rounding error that it corrects.
    """

    rounds: ClassVar[bool] = True

    def sites(self, graph: Graph) -> Iterable[ir.Node]:
        """Every linear layer whose bias was not corrected before."""
        for linear in linear_layers(graph):
            found = bias_of(linear.node)
            bias = found[0].inputs[found[1]] if found is not None else None
            if bias is None or _CORRECTED not in bias.metadata_props:
                yield linear.node

    def rewrite(self, graph: Graph, node: ir.Node) -> str:
        """Correct the bias of one linear layer."""
        linear, found = linear_layer_of(node), bias_of(node)
        assert linear is not None
        if found is None:
            raise Miss("it has no constant bias")
        scheme = self.scheme_for(linear.layer)
        if scheme is None:
            raise Miss("the layer is kept in float")
        shift = self._means(linear) @ self._rounding_error(linear, scheme)
        reader, place = found
        old = reader.inputs[place]
        assert old is not None and old.const_value is not None and old.name is not None
        bias = old.const_value.numpy() + shift.astype(np.float32)
        reader.replace_input_with(place, _corrected(graph, old, bias))
        if not old.uses() and not old.is_graph_output():
            graph.graph.initializers.pop(old.name)
        return f"bias shifted by up to {np.abs(shift).max():.1e}"

    def _means(self, linear: LinearLayer) -> np.ndarray:
        """[K], the mean of each channel of a layer's activation."""
        if self.known.statistics is None:
            raise Miss("nothing is known of the mean of what it multiplies: no calibration")
        seen = self.known.statistics.observations.get(linear.weight.name or "")
        if seen is None or len(seen.means) != linear.contraction:
            raise Miss(f"the statistics have no means of what {linear.weight.name!r} multiplies")
        return seen.means

    def _rounding_error(self, linear: LinearLayer, scheme: Scheme) -> np.ndarray:
        """[K, N], the weight minus its rounded values."""
        weight = linear.matrix
        rounded = self.known.rounded.get((linear.weight.name or "", scheme.weights))
        if rounded is None:
            rounded = round_weight(weight, scheme.weights)
        return weight - rounded.dequantized()


def _corrected(graph: Graph, old: ir.Value, bias: np.ndarray) -> ir.Value:
    """The initializer of a corrected bias; one for all uses of a layer."""
    name = f"{old.name}{CORRECTED_SUFFIX}"
    while (before := graph.graph.initializers.get(name)) is not None:
        if before.const_value is not None and np.array_equal(before.const_value.numpy(), bias):
            return before
        name += "_"
    value = initializer(graph, ir.tensor(bias, name=name))
    value.metadata_props[_CORRECTED] = "1"
    return value
