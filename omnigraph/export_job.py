"""The values that pass between the steps of an export."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from omnigraph.contract.comparison import Bounds
from omnigraph.contract.graph_check import (
    longest_contraction,
    rounded_activations,
    rounding_depth,
)
from omnigraph.contract.greedy_tokens import GreedyTokens
from omnigraph.contract.reference import Reference
from omnigraph.graph import Graph
from omnigraph.ledger.attention import AttentionSite
from omnigraph.ledger.precision import LayerPrecision
from omnigraph.lowering import Emission
from omnigraph.passes.analysis.index.input_ranges import with_ranges
from omnigraph.passes.base import PassRecord
from omnigraph.program import Dim, Program, TensorSpec


@dataclass
class TracedProgram:
    """One traced program: its Graph (until the last target takes it) and its references."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    dims: Mapping[str, Dim]
    state: tuple[tuple[str, str], ...]
    references: list[Reference]
    golden: Reference
    depth: int
    contraction: int
    graph: Graph | None
    #: How many activations the model itself quantizes.
    rounded_activations: int = 0
    #: What the model's own limits are, in words.
    limits: tuple[str, ...] = ()
    #: The greedy tokens of a language model.
    greedy: GreedyTokens = field(default_factory=GreedyTokens)

    def copy_graph(self) -> Graph:
        """A copy of the Graph as traced."""
        assert self.graph is not None
        return self.graph.clone()

    def take_graph(self) -> Graph:
        """The Graph as traced; it can be taken once."""
        assert self.graph is not None
        graph, self.graph = self.graph, None
        return graph


def traced_program(
    program: Program,
    graph: Graph,
    outputs: tuple[TensorSpec, ...],
    state: tuple[tuple[str, str], ...],
    references: Sequence[Reference],
) -> TracedProgram:
    """A traced program, with the ranges of its inputs, and the depth and longest sum of its Graph.

    Args:
        outputs: of the Graph.
        state: pairs (input, output) of the Graph's state.
        references: of the contract's input sets; the golden one is the last.
    """
    return TracedProgram(
        program.name,
        with_ranges(graph, program.inputs, negative_rows=program.to_graph is not None),
        outputs,
        program.dims,
        state,
        list(references[:-1]),
        references[-1],
        rounding_depth(graph),
        longest_contraction(graph),
        graph,
        rounded_activations(graph),
        program.limits,
    )


@dataclass
class TargetProduct:
    """One target's compiled programs, and how they were made."""

    precision: str
    options: Mapping[str, str]
    emission: Emission
    records: dict[str, list[PassRecord]]
    ops: dict[str, dict[str, int]]
    bounds: dict[str, Bounds]
    ledger: dict[str, list[AttentionSite]] = field(default_factory=dict)
    layers: dict[str, list[LayerPrecision]] = field(default_factory=dict)
    quantization: Mapping[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    #: For each program, by name of a node or of its outputs, the node for a person.
    places: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    #: What is reported of the quantization, but not stored, since it differs from run to run.
    measured: Mapping[str, Any] = field(default_factory=dict)
