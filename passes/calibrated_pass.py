"""Passes that need facts from calibration: they declare which, and get them as a field."""

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
    """Known facts of a model's activations and weights; an immutable value.

    Args:
        statistics: of activations, by the name of the weight that each is multiplied with.
        rounded: weights that were rounded with compensation, by name and grid: targets store the
            same weight on different grids. All others are rounded to the nearest.
        choices: the scheme of each layer that has one of its own, by module path; None leaves the
            layer in float.
        errors: what each quantized layer is forecast to lose (`product_error`), by module path.
    """

    statistics: Statistics | None = None
    rounded: Mapping[tuple[str, WeightGrid], RoundedWeight] = field(
        default_factory=dict, hash=False, repr=False
    )
    choices: Mapping[str, Scheme | None] = field(default_factory=dict, hash=False)
    errors: Mapping[str, float] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Needs:
    """The facts that a pass needs of a Graph before it runs.

    Args:
        observe: linear layers whose activations must be observed.
        round: linear layers whose weights may be rounded with compensation, each with its grid.
    """

    observe: tuple[LinearLayer, ...] = ()
    round: tuple[tuple[LinearLayer, WeightGrid], ...] = ()


@dataclass(frozen=True)
class CalibratedPass(SitePass):
    """A pass over linear layers that uses facts from calibration.

    Args:
        facts: the known facts, or the path of a file that ``--save-calibration`` wrote.
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
        """The facts that the pass needs of this Graph; changes nothing."""

    @property
    def known(self) -> QuantizationFacts:
        """The facts; empty where none were given."""
        return self.facts if isinstance(self.facts, QuantizationFacts) else QuantizationFacts()

    def taken(self, graph: Graph) -> list[LinearLayer]:
        """The linear layers that are not kept in float by name."""
        return [found for found in linear_layers(graph) if not is_chosen(found.layer, self.keep)]


@dataclass(frozen=True)
class QuantizingPass(CalibratedPass):
    """A pass that quantizes by a scheme.

    Args:
        scheme: of each layer for which the facts choose no other.
    """

    scheme: Scheme = INT8

    def scheme_for(self, layer: str) -> Scheme | None:
        """The scheme of a layer; None where it stays in float."""
        if is_chosen(layer, self.keep):
            return None
        return self.known.choices.get(layer, self.scheme)

    def needs(self, graph: Graph) -> Needs:
        """Ranges of activations that are quantized, and integer weights to round."""
        planned = [(found, self.scheme_for(found.layer)) for found in self.taken(graph)]
        return Needs(
            tuple(found for found, scheme in planned if scheme and scheme.needs_ranges),
            tuple(
                (found, scheme.weights)
                for found, scheme in planned
                if scheme and scheme.weights.is_integer and found.transpose is None
            ),
        )
