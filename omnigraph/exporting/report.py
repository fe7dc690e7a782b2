"""The report of an export: path, size, error against torch, and times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omnigraph.contract.comparison import NumberCheck
from omnigraph.contract.greedy_tokens import TokenAgreement
from omnigraph.contract.tolerance import Deviation
from omnigraph.ledger.attention import AttentionSite
from omnigraph.ledger.precision import LayerPrecision
from omnigraph.passes.base import PassRecord


@dataclass(frozen=True)
class ExportReport:
    """The artifact of one target, its error against torch, and the seconds of each step."""

    path: Path
    target: str
    precision: str
    bytes: int
    seconds: Mapping[str, float]
    checks: Sequence[NumberCheck]
    passes: Mapping[str, Sequence[PassRecord]]
    ledger: Mapping[str, Sequence[AttentionSite]]
    layers: Mapping[str, Sequence[LayerPrecision]] = field(default_factory=dict)
    quantization: Mapping[str, Any] = field(default_factory=dict)
    #: The limits of the model's own that a dimension has, in words.
    limits: tuple[str, ...] = ()
    #: Programs that one would expect and that were not made: why, by name.
    not_made: Mapping[str, str] = field(default_factory=dict)

    @property
    def programs(self) -> tuple[str, ...]:
        """The programs of the artifact."""
        return tuple(dict.fromkeys(check.program for check in self.checks))

    #: How many greedy tokens are torch's, for each program of a language model.
    greedy_tokens: Sequence[TokenAgreement] = ()

    @property
    def deviation(self) -> Deviation:
        """The worst deviation from torch over every program, output and input set."""
        worst = Deviation(0.0, 0.0)
        for check in self.checks:
            worst = worst.worst(check.deviation)
        return worst

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready fields."""
        return {
            "path": str(self.path),
            "target": self.target,
            "precision": self.precision,
            "bytes": self.bytes,
            "programs": list(self.programs),
            "not_made": dict(self.not_made),
            "seconds": {step: round(value, 3) for step, value in self.seconds.items()},
            "contract": [check.to_dict() for check in self.checks],
            "attention": {
                name: [site.to_dict() for site in sites] for name, sites in self.ledger.items()
            },
            "layers": {name: [row.to_dict() for row in rows] for name, rows in self.layers.items()},
            "quantization": dict(self.quantization),
            "limits": list(self.limits),
            "greedy_tokens": [agreement.to_dict() for agreement in self.greedy_tokens],
        }
