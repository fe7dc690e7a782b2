"""Builds the manifest of an artifact from the results of an export."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

import omnigraph
from omnigraph.artifact import ProgramEntry
from omnigraph.contract.reference import Reference
from omnigraph.export_job import TargetProduct, TracedProgram
from omnigraph.lowering import Target
from omnigraph.program import Dim, dim_terms, evaluate_dim


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
    """The manifest but for its list of files: JSON-ready, and the same for the same export."""
    emission = product.emission
    programs = {
        item.name: {
            **ProgramEntry(
                item.inputs,
                item.outputs,
                emission.files[item.name],
                item.state,
                golden_name(item.name),
                product.bounds[item.name].total.to_dict(),
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
        for dim, allowed in {**_unbounded(item), **item.dims}.items():
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


def _unbounded(item: TracedProgram) -> dict[str, Dim]:
    """A range for each name and each sum in the shapes of the inputs, from its least size on.

    All are in the manifest, so that one that is missing there is noticed.
    """
    found: dict[str, Dim] = {}
    for size in (size for spec in item.inputs for size in spec.shape if isinstance(size, str)):
        terms = dim_terms(size)
        least = {term: item.dims.get(term, Dim()).min for term in terms if not term.isdigit()}
        found |= {term: Dim(minimum) for term, minimum in least.items()}
        found[size] = Dim(evaluate_dim(size, least))
    return found


def _tool_versions() -> dict[str, str]:
    import onnx
    import onnxscript
    import torch

    tools = {"omnigraph": omnigraph, "onnx": onnx, "onnx_ir": ir, "onnxscript": onnxscript}
    versions = {name: module.__version__ for name, module in tools.items()}
    return {**versions, "torch": torch.__version__.split("+")[0]}
