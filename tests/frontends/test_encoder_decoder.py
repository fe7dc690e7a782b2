"""`encode` and `decode` of encoder-decoder folders: the tokens that transformers generates."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from encoder_decoder_steps import Run, generated, greedy, in_torch, sources, uncached
from hugging_face_folders import save

import omnigraph
from omnigraph.frontends.resolve import resolve

#: Positions that are relative, learned, fixed, and counted without padding; texts and sounds.
NAMES = ("t5", "bart", "whisper", "pegasus", "m2m100", "marian", "mbart")
#: Exported here always.
FAST = ("t5", "whisper")
STEPS = 12
#: Rounding of fp32, of the depth of these models.
TOLERANCE = 4e-6
STEP_PROGRAMS = ("encode", "decode")

Folder = Callable[[str], Path]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    root = tmp_path_factory.mktemp("folders")

    def saved(name: str) -> Path:
        if not (root / name).exists():
            save(name, root / name)
        return root / name

    return saved


def assert_right(run: Run, path: Path) -> None:
    """The tokens are those of `generate`, and the logits those of the model without a cache."""
    kind = transformers.AutoConfig.from_pretrained(path).architectures[0]
    model = getattr(transformers, kind).from_pretrained(path).eval()
    source = sources(model)
    tokens, logits = greedy(run, source, STEPS)
    assert len(np.unique(tokens[:, 1:])) > 1
    np.testing.assert_array_equal(tokens, generated(model, source, STEPS))
    wanted = uncached(model, source, tokens[:, :-1])
    np.testing.assert_allclose(logits, wanted, rtol=0, atol=TOLERANCE * np.abs(wanted).max())


def export_and_load(path: Path, target: str, out: Path, **options: Any) -> Any:
    (report,) = omnigraph.export(path, target, out=out, programs=STEP_PROGRAMS, **options)
    assert report.programs == STEP_PROGRAMS
    return omnigraph.load(report.path)


@pytest.mark.parametrize("name", NAMES)
def test_steps_are_those_of_generate(folder: Folder, name: str):
    source = resolve(folder(name))
    assert [program.name for program in source.programs] == ["forward", *STEP_PROGRAMS]
    assert not source.not_made
    assert_right(in_torch(source.programs), folder(name))


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in NAMES]
)
def test_an_artifact_decodes_as_generate_does(folder: Folder, tmp_path: Path, name: str):
    with export_and_load(folder(name), "onnx", tmp_path / "net.omni") as net:
        assert_right(lambda program, inputs: net.run(inputs, program=program), folder(name))


@pytest.mark.slow
def test_openvino_decodes_as_generate_does(folder: Folder, tmp_path: Path):
    with export_and_load(folder("t5"), "openvino", tmp_path / "net.omni", precision="fp32") as net:
        assert_right(lambda program, inputs: net.run(inputs, program=program), folder("t5"))
