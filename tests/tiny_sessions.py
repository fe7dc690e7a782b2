"""Inputs of the tiny decoder, the comparison of its outputs, and changes to its artifact."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np

from omnigraph.artifact import MANIFEST, seal

LAYERS, HEADS, SIZE, VOCABULARY = 2, 4, 16, 256


def unpacked(path: Path, directory: Path) -> Path:
    with zipfile.ZipFile(path) as archive:
        archive.extractall(directory)
    return directory


def ids(batch: int, length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, VOCABULARY, (batch, length))


def past(batch: int, length: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(length)
    return {
        f"past_key_values.{layer}.{part}": rng.standard_normal((batch, HEADS, length, SIZE)).astype(
            np.float32
        )
        for layer in range(LAYERS)
        for part in ("key", "value")
    }


def same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-6, err_msg=name)


def reseal(directory: Path, **changes: object) -> None:
    """Make a changed directory an artifact that is whole, as whoever wrote it would have."""
    fields = json.loads((directory / MANIFEST).read_text())
    (directory / MANIFEST).unlink()
    seal(directory, {**fields, **changes})
