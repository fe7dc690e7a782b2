"""The mean error that rounded weights give an output is taken out of its bias."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from omnigraph.graph import Graph
from omnigraph.passes.analysis.quantization.linear_layers import (
    bias_of,
    linear_layer_of,
    linear_layers,
)
from omnigraph.passes.analysis.quantization.scheme import FourBits
from omnigraph.passes.analysis.quantization.statistics import Statistics
from omnigraph.passes.analysis.quantization.weight_rounding import RoundedWeight, round_weight
from omnigraph.passes.insert_qdq import InsertQdq
from omnigraph.passes.site_pass import Miss, SitePass

#: Metadata of a bias that was corrected, so that a second run leaves it alone.
_CORRECTED = "omnigraph.bias_corrected"


@dataclass(frozen=True)
class CorrectBiases(SitePass):
    """Add to each bias what the rounding of the weights will take from the mean of the output.

    Before::

        y = Add(MatMul(x, weight), bias)

    After, rounded being the weight as `InsertQdq` will store it::

        y = Add(MatMul(x, weight), bias + mean(x) · (weight - rounded))

    This is bias correction (Nagel et al. 2019, section 4.2), with the mean that calibration saw.

    Needs: statistics with the mean of each channel; it runs before `InsertQdq`, of whose options
    these are a part. Leaves alone: products without a constant bias, and those that stay in float.
    Changes numbers on purpose: until the weights are rounded, by as much as they will be.
    """

    rounds: ClassVar[bool] = True

    target: str = "onnx"
    device: str = "cpu"
    precision: str = "int8"
    statistics: Statistics | str | None = None
    keep: tuple[str, ...] = ()
    choices: Mapping[str, str] = field(default_factory=dict, hash=False)
    four_bits: FourBits = field(default_factory=FourBits)
    rounded: Mapping[str, RoundedWeight] = field(default_factory=dict, hash=False, repr=False)

    def __post_init__(self) -> None:
        if isinstance(self.statistics, str):
            object.__setattr__(self, "statistics", Statistics.load(self.statistics))

    def sites(self, graph: Graph) -> Iterable[ir.Node]:
        """Every product with a constant weight whose bias was not corrected before."""
        for linear in linear_layers(graph):
            held = bias_of(linear.node)
            bias = held[0].inputs[held[1]] if held is not None else None
            if bias is None or _CORRECTED not in bias.metadata_props:
                yield linear.node

    def rewrite(self, graph: Graph, node: ir.Node) -> str:
        """Correct the bias of one product."""
        linear, held = linear_layer_of(node), bias_of(node)
        assert linear is not None
        if held is None:
            raise Miss("it has no constant bias")
        plan = InsertQdq(
            self.target,
            self.device,
            self.precision,
            None,
            self.keep,
            self.choices,
            self.four_bits,
        )
        scheme = plan.scheme_for(linear.layer)
        if scheme is None:
            raise Miss("the layer is kept in float")
        if not isinstance(self.statistics, Statistics):
            raise Miss("nothing is known of the mean of what it multiplies: no calibration")
        seen = self.statistics.observations.get(linear.weight.name or "")
        if seen is None or len(seen.means) != linear.contraction:
            raise Miss(f"the statistics have no means of what {linear.weight.name!r} multiplies")
        assert linear.weight.const_value is not None
        weight = linear.weight.const_value.numpy()
        if linear.channel_axis == 0:
            weight = weight.T
        known = self.rounded.get(linear.weight.name or "")
        if known is None or known.grid != scheme.weights:
            known = round_weight(weight, scheme.weights)
        shift = seen.means @ (weight - known.widened())
        reader, place = held
        old = reader.inputs[place]
        assert old is not None and old.const_value is not None and old.name is not None
        bias = old.const_value.numpy() + shift.astype(np.float32)
        name = f"{old.name}_corrected"
        while name in graph.graph.initializers:
            name += "_"
        value = ir.Value(
            name=name, shape=old.shape, type=old.type, const_value=ir.tensor(bias, name=name)
        )
        value.metadata_props[_CORRECTED] = "1"
        graph.graph.register_initializer(value)
        reader.replace_input_with(place, value)
        if not old.uses() and not old.is_graph_output():
            graph.graph.initializers.pop(old.name)
        return f"bias shifted by up to {np.abs(shift).max():.1e}"
