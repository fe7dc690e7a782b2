"""The golden pairs of an artifact come out in a Session, or it is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_sessions import LAYERS, reseal

from omnigraph.artifact import MANIFEST, Artifact
from omnigraph.errors import (
    ArtifactError,
    ContractError,
)
from omnigraph.runtimes import load


def change_golden(directory: Path, program: str, output: str, change) -> None:
    """Change one golden output."""
    artifact = Artifact(directory)
    file = artifact.programs[program].golden
    assert file is not None
    arrays = artifact.arrays(file)
    arrays[f"output/{output}"] = change(arrays[f"output/{output}"])
    np.savez(directory / file, **arrays)
    reseal(directory)


def one_wrong(array: np.ndarray) -> np.ndarray:
    changed = array.copy()
    changed.flat[changed.size // 2] += 1.0
    return changed


def test_the_golden_pairs_come_out_here(path: Path):
    with load(path, threads=1, verify=True) as session:
        checks = session.verify()
        assert {check.program for check in checks} == {"forward", "decode"}
        names = {(check.program, check.output) for check in checks}
        assert ("decode", "present_key_values.1.value") in names
        assert len(checks) == 2 + 2 * LAYERS
        assert all(check.passed for check in checks)
        assert max(check.deviation.rms for check in checks) > 0  # it is another computation
        assert {check.program for check in session.verify(["decode"])} == {"decode"}


@pytest.mark.parametrize(
    ("program", "output", "change"),
    [
        ("forward", "logits", one_wrong),
        ("decode", "present_key_values.1.key", one_wrong),
        ("decode", "logits", lambda a: np.full_like(a, np.nan)),
        ("forward", "logits", lambda a: a[:, :-1]),
    ],
    ids=["one element", "one element of the state", "not a number", "another shape"],
)
def test_a_golden_output_that_does_not_come_out_is_refused(
    directory: Path, program: str, output: str, change
):
    change_golden(directory, program, output, change)
    with pytest.raises(ContractError) as caught:
        load(directory, threads=1, verify=True)
    message = str(caught.value)
    assert "does not keep its contract on this machine" in message
    assert f"program {program!r}, output {output!r}: error " in message
    assert "\nhint: " in message
    assert caught.value.exit_status == 1
    with load(directory, threads=1) as session:  # only when it is asked for
        failed = [check for check in session.verify() if not check.passed]
        assert [(check.program, check.output) for check in failed] == [(program, output)]


def test_an_artifact_without_golden_pairs_cannot_be_verified(directory: Path):
    programs = json.loads((directory / MANIFEST).read_text())["programs"]
    programs["decode"]["golden"] = None
    reseal(directory, programs=programs)
    with pytest.raises(ContractError, match=r"found none for decode[\s\S]*hint: "):
        load(directory, threads=1, verify=True)


def test_a_changed_artifact_is_not_loaded(directory: Path):
    file = Artifact(directory).programs["forward"].golden
    assert file is not None
    data = bytearray((directory / file).read_bytes())
    data[len(data) // 2] ^= 1
    (directory / file).write_bytes(data)
    with pytest.raises(ArtifactError, match="sha256 differs"):
        load(directory)
