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
class Remarks:
    """What an export says of its model beside numbers.

    Args:
        limits: the limits of the model's own that a dimension has, in words.
        not_made: programs that one would expect and that were not made: why, by name.
        left_out: what each program's module returned beside tensors: path and type.
    """

    limits: tuple[str, ...] = ()
    not_made: Mapping[str, str] = field(default_factory=dict)
    left_out: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The remarks as JSON-ready fields."""
        return {
            "limits": list(self.limits),
            "not_made": dict(self.not_made),
            "left_out": {name: list(texts) for name, texts in self.left_out.items()},
        }


@dataclass(frozen=True)
class ExportReport:
    """The artifact of one target, its error against torch, and the seconds of each step.

    Args:
        path: of the artifact.
        precision: the one that was asked for; that of the floats, where nothing was quantized.
        bytes: the size of all files.
        seconds: of each step.
        checks: each output of each program in each input set, compared with torch.
        passes: what each pass did, by program.
        ledger: what each attention became, by program.
        layers: the precision of each layer, by program.
        quantization: calibration data, budget and plan; empty where nothing was quantized.
        greedy_tokens: how many are torch's, for each program of a language model.
        remarks: on the model.
    """

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
    greedy_tokens: Sequence[TokenAgreement] = ()
    remarks: Remarks = field(default_factory=Remarks)

    @property
    def programs(self) -> tuple[str, ...]:
        """The programs of the artifact."""
        return tuple(dict.fromkeys(check.program for check in self.checks))

    def __repr__(self) -> str:
        return (
            f"ExportReport({str(self.path)!r}, target={self.target!r}, "
            f"precision={self.precision!r}, bytes={self.bytes}, "
            f"error={self.deviation.rms:.1e}, programs={list(self.passes)})"
        )

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
            "seconds": {step: round(value, 3) for step, value in self.seconds.items()},
            "contract": [check.to_dict() for check in self.checks],
            "attention": {
                name: [site.to_dict() for site in sites] for name, sites in self.ledger.items()
            },
            "layers": {name: [row.to_dict() for row in rows] for name, rows in self.layers.items()},
            "quantization": dict(self.quantization),
            "greedy_tokens": [agreement.to_dict() for agreement in self.greedy_tokens],
            **self.remarks.to_dict(),
        }
