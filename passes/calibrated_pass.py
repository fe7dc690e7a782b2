"""Passes that need facts about a model: they say which, and are given them."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass, field

from omnigraph.graph import Graph
from omnigraph.passes.analysis.quantization.linear_layers import (
    LinearLayer,
    is_chosen,
    linear_layers,
)
from omnigraph.passes.analysis.quantization.scheme import INT8, Scheme
from omnigraph.passes.analysis.quantization.statistics import Statistics
from omnigraph.passes.analysis.quantization.weight_rounding import RoundedWeight, WeightGrid
from omnigraph.passes.site_pass import SitePass


@dataclass(frozen=True)
class QuantizationFacts:
    """What is known of a model's activations and weights; an immutable value.

    Args:
        statistics: what calibration observed, by the name of the weight that it meets.
        rounded: weights that were rounded with compensation, by name. The others are rounded to
            the nearest.
        choices: the scheme of each layer that has one of its own, by module path; None leaves the
            layer in float.
    """

    statistics: Statistics | None = None
    rounded: Mapping[str, RoundedWeight] = field(default_factory=dict, hash=False, repr=False)
    choices: Mapping[str, Scheme | None] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Needs:
    """What a pass must know of a Graph before it runs.

    Args:
        observe: linear layers whose activation must be observed.
        round: linear layers whose weight may be rounded with compensation, each with its grid.
    """

    observe: tuple[LinearLayer, ...] = ()
    round: tuple[tuple[LinearLayer, WeightGrid], ...] = ()


@dataclass(frozen=True)
class CalibratedPass(SitePass):
    """A pass over linear layers that uses facts from calibration.

    Args:
        facts: what is known, or the path of a file that ``--save-calibration`` wrote.
        keep: layers that stay in float: module paths, with ``*`` for any text.
    """

    facts: QuantizationFacts | str | None = None
    keep: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.facts, str):
            facts = QuantizationFacts(Statistics.load(self.facts))
            object.__setattr__(self, "facts", facts)

    @abc.abstractmethod
    def needs(self, graph: Graph) -> Needs:
        """What must be known of this Graph; changes nothing."""

    @property
    def known(self) -> QuantizationFacts:
        """The facts; empty where none were given."""
        return self.facts if isinstance(self.facts, QuantizationFacts) else QuantizationFacts()

    def taken(self, graph: Graph) -> list[LinearLayer]:
        """The linear layers that are not kept in float by name."""
        return [found for found in linear_layers(graph) if not is_chosen(found.layer, self.keep)]


@dataclass(frozen=True)
class QuantizingPass(CalibratedPass):
    """A pass that follows a scheme of quantization.

    Args:
        scheme: how layers are quantized that the facts choose no other scheme for.
    """

    scheme: Scheme = INT8

    def scheme_for(self, layer: str) -> Scheme | None:
        """How a layer is quantized; None where it stays in float."""
        if is_chosen(layer, self.keep):
            return None
        return self.known.choices.get(layer, self.scheme)

    def needs(self, graph: Graph) -> Needs:
        """Ranges of what is quantized before it is multiplied; weights of integers."""
        planned = [(found, self.scheme_for(found.layer)) for found in self.taken(graph)]
        return Needs(
            tuple(found for found, scheme in planned if scheme and scheme.needs_ranges),
            tuple(
                (found, scheme.weights)
                for found, scheme in planned
                if scheme and scheme.weights.is_integer and found.transpose is None
            ),
        )
