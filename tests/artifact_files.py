"""A small artifact of made-up files, for tests of what is around the vendor's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from omnigraph.artifact import MANIFEST, publish, seal, staging
from omnigraph.artifact.sealing import integrity_of


def manifest() -> dict[str, Any]:
    """A manifest of one program, without its list of files."""
    tensor = {"dtype": "float32", "shape": ["batch", "past + length", 4]}
    program = {
        "inputs": [{"name": "x", **tensor}, {"name": "mask", **tensor, "default": 1}],
        "outputs": [{"name": "y", **tensor}],
        "files": {"model": "a.onnx", "weights": "deep/w.bin"},
        "state": [["x", "y"]],
    }
    return {
        "name": "n",
        "target": "onnx",
        "device": "cpu",
        "precision": "fp32",
        "programs": {"forward": program},
        "default_program": "forward",
        "dimensions": {
            "batch": [1, None],
            "past": [0, 9],
            "length": [1, 9],
            "past + length": [1, 12],
        },
    }


def fill(directory: Path, content: bytes = b"graph") -> Path:
    """Write and seal the files of an artifact."""
    (directory / "deep").mkdir(parents=True)
    (directory / "a.onnx").write_bytes(content)
    (directory / "deep/w.bin").write_bytes(bytes(range(256)) * 40)
    seal(directory, manifest())
    return directory


def export_to(out: Path, content: bytes = b"graph") -> None:
    """Publish an artifact as an export does."""
    with staging(out) as directory:
        publish(fill(directory, content), out)


def rewrite(directory: Path, fields: Any) -> None:
    """Write a manifest whose hash is right, whatever else is wrong."""
    if isinstance(fields, dict):
        fields = {**fields, "integrity": integrity_of(fields)}
    (directory / MANIFEST).write_text(json.dumps(fields))
