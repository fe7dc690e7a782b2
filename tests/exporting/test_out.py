"""``--out`` means one thing for every number of targets, and is refused before any work."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from artifact_files import export_to

import omnigraph
from omnigraph.errors import OmniGraphError
from omnigraph.exporting.options import ExportOptions
from omnigraph.exporting.plan import artifact_paths, check_out, plan_jobs


def paths(out: Path, targets: str) -> list[Path]:
    jobs = plan_jobs(targets, ExportOptions())
    check_out(jobs, out)
    return artifact_paths("net", jobs, out)


def test_a_path_is_one_file_or_one_folder(tmp_path: Path):
    for name in ("a.omni", "a", "new/a"):
        assert paths(tmp_path / name, "onnx") == [tmp_path / name]
    both = [tmp_path / f"a/net-{target}-fp32.omni" for target in ("onnx", "openvino")]
    assert paths(tmp_path / "a", "onnx,openvino") == both


@pytest.mark.parametrize("name", ["net-onnx-fp32.omni", "other.omni", "folder"])
def test_a_folder_of_artifacts_gets_one_for_each_target(tmp_path: Path, name: str):
    build = tmp_path / "build"
    export_to(build / name)
    (build / "notes.txt").write_text("mine")
    assert paths(build, "openvino") == [build / "net-openvino-fp32.omni"]
    assert len(paths(build, "onnx,openvino")) == 2
    if name == "net-onnx-fp32.omni":
        assert paths(build, "onnx") == [build / name]


def test_a_folder_that_is_an_artifact_is_replaced_by_one_and_takes_no_others(tmp_path: Path):
    export_to(tmp_path / "net")
    assert paths(tmp_path / "net", "onnx") == [tmp_path / "net"]
    with pytest.raises(OmniGraphError, match="do not fit into one artifact"):
        paths(tmp_path / "net", "onnx,openvino")
    with pytest.raises(OmniGraphError, match="do not fit into one file"):
        paths(tmp_path / "net.omni", "onnx,openvino")


def test_a_folder_of_other_things_is_refused_before_the_model_is_read(tmp_path: Path):
    photos = tmp_path / "photos"
    photos.mkdir()
    with zipfile.ZipFile(photos / "album.omni", "w") as archive:
        archive.writestr("one.jpg", b"a photo")
    (tmp_path / "net-onnx-fp32.omni").write_text("mine")
    for out in (photos, photos / "album.omni"):
        with pytest.raises(OmniGraphError, match="is not replaced"):
            omnigraph.export("no/such/model.py:net", "onnx", out=out)
    with pytest.raises(OmniGraphError, match="is not replaced"):
        paths(tmp_path, "onnx,openvino")
