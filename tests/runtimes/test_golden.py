"""A golden pair verifies a program whole, or verify says that it does not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tiny_sessions import reseal, unpacked

from omnigraph.artifact import MANIFEST, Artifact
from omnigraph.cli.main import main
from omnigraph.errors import ArtifactError, ContractError, InputError
from omnigraph.runtimes import load

Arrays = dict[str, np.ndarray]


@pytest.fixture
def directory(tiny_artifacts, tmp_path: Path) -> Path:
    return unpacked(tiny_artifacts["onnx"], tmp_path / "net")


def programs(directory: Path) -> dict:
    return json.loads((directory / MANIFEST).read_text())["programs"]


def change(directory: Path, edit: Callable[[Arrays], Arrays]) -> None:
    """Change the golden pair of "forward"."""
    artifact = Artifact(directory)
    file = artifact.programs["forward"].golden
    assert file is not None
    arrays = edit(artifact.arrays(file))
    np.savez(directory / file, **arrays)  # type: ignore[arg-type]
    reseal(directory)


@pytest.mark.parametrize(
    "edit",
    [
        lambda a: {k: v for k, v in a.items() if k != "output/logits"},
        lambda a: {k: v for k, v in a.items() if k != "input/input_ids"},
        lambda a: {**a, "output/other": a["output/logits"]},
        lambda a: {**a, "output/logits": a["output/logits"].astype(np.float64)},
        lambda a: {**a, "output/logits": a["output/logits"].astype("U8")},
        lambda a: {**a, "output/logits": a["output/logits"][0]},
        lambda a: {k: v[:0] for k, v in a.items()},
        lambda a: {},
    ],
    ids=["no output", "no input", "another", "dtype", "text", "rank", "no elements", "nothing"],
)
def test_a_golden_pair_that_verifies_nothing_is_refused(directory: Path, edit):
    change(directory, edit)
    with (
        load(directory, threads=1) as session,
        pytest.raises(ArtifactError, match=r"cannot verify it|not readable"),
    ):
        session.verify()
    assert main(["verify", str(directory)]) == 2


def test_a_program_without_a_golden_pair_fails_unless_it_is_passed_over(directory: Path, capsys):
    fields = programs(directory)
    fields["decode"]["golden"] = None
    reseal(directory, programs=fields)
    with load(directory, threads=1) as session:
        with pytest.raises(ContractError, match=r"found none for decode[\s\S]*--allow-missing"):
            session.verify()
        assert {check.program for check in session.verify(["forward"])} == {"forward"}
        assert {check.program for check in session.verify(allow_missing=True)} == {"forward"}
        with pytest.raises(InputError, match="no program 'encode'"):
            session.verify(["encode"])
    assert main(["verify", str(directory)]) == 1
    assert "found none for decode" in capsys.readouterr().err
    assert main(["verify", str(directory), "--allow-missing"]) == 0


@pytest.mark.parametrize("rms", [1e9, -1.0, 2.0, None, "1"])
def test_a_tolerance_that_everything_is_within_is_none(directory: Path, rms: object):
    fields = programs(directory)
    fields["forward"]["tolerance"]["rms"] = rms
    reseal(directory, programs=fields)
    with pytest.raises(ArtifactError, match=r"programs\.forward\.tolerance\.rms in the manifest"):
        load(directory)
