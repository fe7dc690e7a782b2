"""Builds the manifest of an artifact from the results of an export."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

import omnigraph
from omnigraph.artifact import ProgramEntry
from omnigraph.artifact.schema import may_be_empty
from omnigraph.contract.reference import Reference
from omnigraph.export_job import TargetProduct, TracedProgram
from omnigraph.frontends.resolve import ModelSource
from omnigraph.lowering import Target
from omnigraph.program import Dim, TensorSpec, dim_terms, evaluate_dim


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
    source: ModelSource,
    target: Target,
    product: TargetProduct,
    traced: Sequence[TracedProgram],
) -> dict[str, Any]:
    """The manifest but for its list of files: JSON-ready, and the same for the same export."""
    emission = product.emission
    dims: dict[str, list[int | None]] = {}
    for item in traced:
        for dim, allowed in item.dims.items():
            multiple = [allowed.multiple] if allowed.multiple > 1 else []
            dims[dim] = [allowed.min, allowed.max, *multiple]
    for item in traced:
        dims = {**_unbounded(item), **dims}
    programs = {
        item.name: {
            **ProgramEntry(
                tuple(_needed(spec, dims) for spec in item.inputs),
                item.outputs,
                emission.files[item.name],
                item.state,
                golden_name(item.name),
                product.bounds[item.name].to_dict(),
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
    return {
        "name": source.name,
        "target": target.name,
        "device": emission.device,
        "precision": product.precision,
        "options": dict(product.options),
        **({"quantization": dict(product.quantization)} if product.quantization else {}),
        "requires": dict(emission.requires),
        "programs": programs,
        "default_program": traced[0].name,
        "dimensions": dims,
        "model": source.to_dict(),
        **source.text.manifest(),
        "tools": _tool_versions(),
    }


def _needed(spec: TensorSpec, dims: Mapping[str, Sequence[int | None]]) -> TensorSpec:
    """An input, which may be left out only where that means what it says: a past is then empty."""
    if spec.role == "past" and not may_be_empty(spec.shape, dims):
        return replace(spec, default=None)
    return spec


def _unbounded(item: TracedProgram) -> dict[str, list[int | None]]:
    """A range for each name and each sum in the shapes of the inputs, from its least size on.

    All are in the manifest, so that one that is missing there is noticed.
    """
    found: dict[str, list[int | None]] = {}
    for size in (size for spec in item.inputs for size in spec.shape if isinstance(size, str)):
        terms = dim_terms(size)
        least = {term: item.dims.get(term, Dim()).min for term in terms if not term.isdigit()}
        found |= {term: [minimum, None] for term, minimum in least.items()}
        found[size] = [evaluate_dim(size, least), None]
    return found


def _tool_versions() -> dict[str, str]:
    import onnx
    import onnxscript
    import torch

    tools = {"omnigraph": omnigraph, "onnx": onnx, "onnx_ir": ir, "onnxscript": onnxscript}
    versions = {name: module.__version__ for name, module in tools.items()}
    return {**versions, "torch": torch.__version__.split("+")[0]}
