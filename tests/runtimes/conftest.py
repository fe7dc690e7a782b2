"""The tiny decoder on each target that runs on CPUs: its artifact, whole and open."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_sessions import unpacked

from omnigraph.runtimes import load
from omnigraph.runtimes.base import Session


@pytest.fixture(params=["onnx", "openvino"])
def target(request) -> str:
    return request.param


@pytest.fixture
def path(target: str, tiny_artifacts) -> Path:
    return tiny_artifacts[target]


@pytest.fixture
def session(path: Path) -> Iterator[Session]:
    with load(path, threads=1) as opened:
        yield opened


@pytest.fixture
def directory(path: Path, tmp_path: Path) -> Path:
    """The artifact as a directory that a test may change."""
    return unpacked(path, tmp_path / "net")
