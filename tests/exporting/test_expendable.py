"""Programs that an export need not have: left out where they cannot be traced, with the reason."""

from __future__ import annotations

from pathlib import Path

import pytest
from expendable_programs import programs

import omnigraph
from omnigraph.cli.main import main
from omnigraph.errors import TraceError
from omnigraph.inspection.inspect import describe_text, inspect

REASON = "it cannot be traced, and --programs step says more: "


def test_it_is_left_out_with_a_reason(tmp_path: Path):
    (report,) = omnigraph.export(programs(), "onnx", out=tmp_path / "net.omni")
    assert report.programs == ("forward",)
    assert report.to_dict()["not_made"]["step"].startswith(REASON)
    found = inspect(tmp_path / "net.omni")
    assert found["model"]["not_made"] == report.to_dict()["not_made"]
    assert f"no program step: {REASON}" in describe_text(found)


def test_a_model_is_inspected_without_it():
    found = inspect(programs())
    assert [*found["programs"]] == ["forward"]
    assert found["model"]["not_made"]["step"].startswith(REASON)


def test_it_is_not_expendable_where_it_is_asked_for(tmp_path: Path):
    with pytest.raises(TraceError, match=r"[Pp]rogram 'step'"):
        omnigraph.export(programs(), "onnx", programs=["step"], out=tmp_path / "net.omni")
    with pytest.raises(TraceError):
        omnigraph.export(programs(expendable=False), "onnx", out=tmp_path / "net.omni")
    assert not (tmp_path / "net.omni").exists()


def test_the_command_says_what_is_not_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "net.omni"
    assert (
        main(["export", "expendable_programs:programs", "--target", "onnx", "--out", str(out)]) == 0
    )
    assert f"not made: step: {REASON}" in capsys.readouterr().err
