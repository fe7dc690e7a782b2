"""What the manifest of an export says of its dimensions is what a Session keeps to."""

from __future__ import annotations

import numpy as np
import pytest

import omnigraph
from omnigraph.errors import InputError


def test_a_past_that_cannot_be_empty_must_be_given(tmp_path):
    (report,) = omnigraph.export(
        "omninet",
        "onnx",
        config="tiny",
        settings={"kind": "decoder", "num_layers": "1"},
        programs=["decode"],
        dynamic={"past": omnigraph.Dim(1, 8)},
        out=tmp_path / "net",
    )
    with omnigraph.load(report.path, verify=True, threads=1) as net:
        ranges = net.artifact.manifest["dimensions"]
        assert ranges["past"] == [1, 8] and ranges["past + sequence"][0] in (1, 2)
        with pytest.raises(InputError, match="past_key_values"):
            net.run(input_ids=np.array([[1, 2]]))
