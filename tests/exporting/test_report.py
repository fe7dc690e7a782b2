"""What an export reports."""

from __future__ import annotations

from pathlib import Path

import omnigraph
from omnigraph.contract.tolerance import Deviation
from omnigraph.exporting.report import ExportReport


def test_its_repr_is_one_short_line():
    report = ExportReport(
        Path("net.omni"), "onnx", "fp32", 1234, {"model": 0.5}, [], {"forward": []}, {"forward": []}
    )
    assert report.deviation == Deviation(0.0, 0.0)
    assert repr(report) == (
        "ExportReport('net.omni', target='onnx', precision='fp32', bytes=1234, error=0.0e+00, "
        "programs=['forward'])"
    )
    assert report.to_dict()["left_out"] == {}


def test_bisect_is_one_of_the_names_of_the_package():
    assert "bisect" in omnigraph.__all__
    assert omnigraph.bisect.__module__ == "omnigraph.inspection.bisect"
