"""Folders that people try first: exported whole, and right against transformers at other shapes."""

from __future__ import annotations

from pathlib import Path

import pytest
from hugging_face_folders import FOLDERS, save, worst_error, worst_step_error

import omnigraph
from omnigraph.errors import ContractError, TraceError
from omnigraph.frontends.resolve import resolve

#: Here always: two kinds of inputs, convolutions of waves, and windows in the past.
FAST = ("clip", "wav2vec2")
#: Its layers run a loop over the tokens, whose length the trace fixes.
REFUSED = "mamba"
#: Its buckets are ceilings of logarithms, and OpenVINO's logarithm differs from torch's in the last
#: bit: of the largest distance, 95, which a text of 96 tokens has, the bucket is another.
BUCKETS = "deberta-v2"
#: Rounding of fp32, of the depth of these models.
TOLERANCE = 4e-6


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in FAST else pytest.mark.slow)
        for name in FOLDERS
        if name != REFUSED
    ],
)
def test_a_folder_is_exported_and_right_at_other_shapes(tmp_path: Path, name: str):
    folder = tmp_path / name
    save(name, folder)
    source = resolve(folder)
    targets = ["onnx"] if name in FAST else ["onnx", "openvino"]
    ranges = {"sequence": (1, 95)} if name == BUCKETS else None
    out = tmp_path / "artifacts"
    reports = omnigraph.export(folder, targets, precision="fp32", dynamic=ranges, out=out)
    for report in reports:
        assert report.programs == tuple(program.name for program in source.programs)
        assert report.to_dict()["not_made"] == source.not_made
        with omnigraph.load(report.path) as session:
            assert worst_error(session, folder, source.programs[0]) < TOLERANCE
            if "decode" in report.programs:
                assert worst_step_error(session, folder, source.programs) < TOLERANCE


@pytest.mark.slow
def test_another_bucket_is_refused_with_what_to_do(tmp_path: Path):
    save(BUCKETS, tmp_path / BUCKETS)
    with pytest.raises(ContractError, match=r"(?s)'sequence': 96.*--dynamic without these sizes"):
        omnigraph.export(tmp_path / BUCKETS, "openvino", out=tmp_path / "net.omni")


@pytest.mark.slow
def test_a_loop_over_tokens_is_refused_by_its_dimension(tmp_path: Path):
    save(REFUSED, tmp_path / REFUSED)
    with pytest.raises(TraceError, match="fixed dimension 'sequence'"):
        omnigraph.export(tmp_path / REFUSED, "onnx", out=tmp_path / "net.omni")
