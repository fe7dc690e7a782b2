"""What an export has in hand between its steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from omnigraph.contract.reference import Reference
from omnigraph.contract.tolerance import Tolerance
from omnigraph.graph import Graph
from omnigraph.ledger.attention import AttentionSite
from omnigraph.ledger.precision import LayerPrecision
from omnigraph.lowering import Emission
from omnigraph.passes.base import PassRecord
from omnigraph.program import Dim, TensorSpec


@dataclass
class TracedProgram:
    """One program after tracing: its Graph (until the last target took it) and its reference."""

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
    #: Activations that the model itself rounds to codes.
    codes: int = 0


@dataclass
class TargetProduct:
    """One target's staged files, and what was done to get there."""

    precision: str
    options: Mapping[str, str]
    emission: Emission
    records: dict[str, list[PassRecord]]
    ops: dict[str, dict[str, int]]
    tolerances: dict[str, Tolerance]
    ledger: dict[str, list[AttentionSite]] = field(default_factory=dict)
    layers: dict[str, list[LayerPrecision]] = field(default_factory=dict)
    quantization: Mapping[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
