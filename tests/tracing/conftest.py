"""Every test of tracing draws the same numbers from torch; and the path of an artifact."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "net.omni"
