"""What an export has in hand between its steps, and the manifest that it makes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

import omnigraph
from omnigraph.artifact import ProgramEntry
from omnigraph.contract.comparison import Reference
from omnigraph.contract.tolerance import Tolerance
from omnigraph.ledger.attention import AttentionSite
from omnigraph.ledger.precision import LayerPrecision
from omnigraph.lowering import Emission, Target
from omnigraph.passes.base import Graph, PassRecord
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


def golden_name(program: str) -> str:
    """The file of a program's golden inputs and outputs in an artifact."""
    return f"golden/{program}.npz"


def write_golden(path: Path, golden: Reference) -> None:
    """Write inputs and outputs as one ``.npz``, the same bytes for the same arrays."""
    path.parent.mkdir(exist_ok=True)
    arrays = {f"input/{name}": array for name, array in golden.feeds.items()}
    arrays |= {f"output/{name}": array for name, array in golden.outputs.items()}
    with open(path, "wb") as stream:
        np.savez(stream, **arrays)  # type: ignore[arg-type]


def build_manifest(
    name: str,
    config: Mapping[str, Any],
    target: Target,
    product: TargetProduct,
    traced: Sequence[TracedProgram],
) -> dict[str, Any]:
    """Everything about an artifact but its files: JSON-ready, and the same for the same export."""
    emission = product.emission
    programs = {
        item.name: {
            **ProgramEntry(
                item.inputs,
                item.outputs,
                emission.files[item.name],
                item.state,
                golden_name(item.name),
                product.tolerances[item.name].to_dict(),
                emission.details.get(item.name, {}),
            ).to_dict(),
            "ops": product.ops[item.name],
            "passes": [
                {"name": record.name, "changes": record.changes}
                for record in product.records[item.name]
                if record.modified
            ],
            "attention": [site.to_dict() for site in product.ledger.get(item.name, ())],
            "layers": [row.to_dict() for row in product.layers.get(item.name, ())],
        }
        for item in traced
    }
    dims: dict[str, list[int | None]] = {}
    for item in traced:
        for dim, allowed in item.dims.items():
            dims[dim] = [allowed.min, allowed.max]
    return {
        "name": name,
        "target": target.name,
        "device": emission.device,
        "precision": product.precision,
        "options": dict(product.options),
        **({"quantization": dict(product.quantization)} if product.quantization else {}),
        "requires": dict(emission.requires),
        "programs": programs,
        "default_program": traced[0].name,
        "dimensions": dims,
        "model": {"config": dict(config)},
        "tools": _tool_versions(),
    }


def _tool_versions() -> dict[str, str]:
    import onnx
    import onnxscript
    import torch

    tools = {"omnigraph": omnigraph, "onnx": onnx, "onnx_ir": ir, "onnxscript": onnxscript}
    versions = {name: module.__version__ for name, module in tools.items()}
    return {**versions, "torch": torch.__version__.split("+")[0]}
