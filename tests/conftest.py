"""Artifacts that many tests share, exported once for each test process."""

from __future__ import annotations

from pathlib import Path

import pytest

import omnigraph


@pytest.fixture(scope="session")
def tiny_artifacts(tmp_path_factory) -> dict[str, Path]:
    """A tiny decoder as a single-file artifact of each target that runs on CPUs."""
    out = tmp_path_factory.mktemp("tiny")
    reports = omnigraph.export(
        "omninet",
        ["onnx", "openvino"],
        config="tiny",
        settings={"kind": "decoder", "positions": "rotary"},
        out=out,
    )
    return {report.target: report.path for report in reports}
