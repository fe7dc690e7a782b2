"""An artifact runs with the versions of the vendor's runtime that its manifest allows."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_sessions import reseal

from omnigraph.artifact import Artifact
from omnigraph.errors import ArtifactError, DeviceError
from omnigraph.runtimes import load
from omnigraph.runtimes.versions import satisfies

PACKAGE = {"onnx": "onnxruntime", "openvino": "openvino"}


@pytest.mark.parametrize(
    ("found", "required", "right"),
    [
        ("1.32.0", ">=1.23", True),
        ("1.23", ">=1.23.0", True),
        ("1.9.1", ">=1.23", False),
        ("2026.4.1-22982-e213a147257-releases/2026/4", ">=2026.4,<2027", True),
        ("2027.0.0-1-abc", ">=2026.4,<2027", False),
        ("2026.3.9", ">=2026.4,<2027", False),
        ("1.7.1.116", "==1.7.1.116", True),
        ("1.7.1.117", "==1.7.1.116", False),
        ("1.7", "!=1.7.0", False),
        ("2.0rc1", "> 1.9, <= 2", True),
        ("anything", "", True),
    ],
)
def test_a_version_is_within_all_bounds_or_not(found: str, required: str, right: bool, path: Path):
    assert satisfies(found, required, Artifact(path)) == right


@pytest.mark.parametrize("required", [">=9999", "<1", ">=0.1,<0.2", "==0.0.1"])
def test_another_version_is_refused(directory: Path, target: str, required: str):
    reseal(directory, requires={PACKAGE[target]: required})
    with pytest.raises(DeviceError) as caught:
        load(directory)
    message = str(caught.value)
    assert f"needs another version of {PACKAGE[target]}: expected {required}, found" in message
    assert f"hint: pip install '{PACKAGE[target]}{required}'" in message


@pytest.mark.parametrize("required", ["latest", ">=1.x", "~1", "^2"])
def test_what_is_no_version_is_refused(directory: Path, target: str, required: str):
    reseal(directory, requires={PACKAGE[target]: required})
    with pytest.raises(ArtifactError, match="asks for a version that cannot be read"):
        load(directory)
