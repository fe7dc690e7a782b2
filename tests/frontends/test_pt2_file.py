"""Exported programs of torch: their modules, their dimensions, and how they are called."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from plain_transformer import example, open_shapes
from torch import nn

import omnigraph
from omnigraph.errors import UsageError
from omnigraph.frontends.resolve import resolve
from omnigraph.graph import MODULE_KEY
from omnigraph.input_sets import contract_cases
from omnigraph.program import Dim
from omnigraph.tracing.trace import reference_for, trace


def test_an_exported_program_keeps_its_modules_and_its_dimensions(tmp_path: Path):
    module, inputs = example()
    exported = torch.export.export(module, tuple(inputs.values()), dynamic_shapes=open_shapes())
    path = tmp_path / "net.pt2"
    torch.export.save(exported, path)
    (program,) = resolve(str(path)).programs
    assert [(s.name, s.shape) for s in program.inputs] == [
        ("input_ids", ("batch", "sequence")),
        ("attention_mask", ("batch", "sequence")),
    ]
    graph = trace(program)
    assert "layers.0.attention.query.weight" in graph.graph.initializers
    softmax = [n.metadata_props[MODULE_KEY] for n in graph.graph if n.op_type == "Softmax"]
    assert softmax == ["layers.0.attention", "layers.1.attention"]
    reports = omnigraph.export(str(path), "onnx,openvino", out=tmp_path)
    assert [report.path.name for report in reports] == [
        "net-onnx-fp32.omni",
        "net-openvino-fp32.omni",
    ]


class Weighted(nn.Module):
    """A module of a dictionary, a keyword and a number, which returns a dictionary."""

    def forward(self, parts: dict[str, torch.Tensor], power: int, *, bias: torch.Tensor):
        return {"sum": parts["left"] ** power + parts["right"] + bias, "double": 2 * parts["left"]}


def test_an_exported_program_is_called_by_the_names_of_its_tensors(tmp_path: Path):
    left, right, bias = torch.randn(3, 4), torch.randn(3, 4), torch.randn(4)
    batch = torch.export.Dim("batch", min=2, max=16)
    exported = torch.export.export(
        Weighted(),
        ({"left": left, "right": right}, 2),
        {"bias": bias},
        dynamic_shapes={
            "parts": {"left": {0: batch}, "right": {0: batch}},
            "power": None,
            "bias": None,
        },
    )
    torch.export.save(exported, tmp_path / "weighted.pt2")
    (program,) = resolve(tmp_path / "weighted.pt2").programs
    assert [(s.name, s.shape) for s in program.inputs] == [
        ("parts_left", ("batch", 4)),
        ("parts_right", ("batch", 4)),
        ("bias", (4,)),
    ]
    assert (program.dims["batch"], program.outputs) == (Dim(2, 16), ("sum", "double"))
    reference = reference_for(program, contract_cases(program)[2])
    feeds = reference.feeds
    expected = feeds["parts_left"] ** 2 + feeds["parts_right"] + feeds["bias"]
    np.testing.assert_allclose(reference.outputs["sum"], expected, rtol=1e-6)
    omnigraph.export(program, "onnx", out=tmp_path / "weighted.omni")


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def changed(path: Path, entry: str, change: Callable[[bytes], bytes]) -> Path:
    """A copy of an archive in which one entry is changed."""
    copy = path.with_name(f"changed-{path.name}")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(copy, "w") as new:
        found = [info for info in old.infolist() if info.filename.endswith(entry)]
        assert found, entry
        for info in old.infolist():
            data = old.read(info)
            new.writestr(info, change(data) if info in found else data)
    return copy


@pytest.fixture
def plain_file(tmp_path: Path) -> Path:
    exported = torch.export.export(
        nn.Linear(4, 4), (torch.randn(3, 4),), dynamic_shapes=({0: torch.export.Dim("batch")},)
    )
    torch.export.save(exported, tmp_path / "plain.pt2")
    return tmp_path / "plain.pt2"


def pickled(value: object) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def test_a_file_that_would_run_code_is_refused_before_it_does(tmp_path: Path, plain_file: Path):
    mark = tmp_path / "mark"
    call = f"__import__('pathlib').Path({str(mark)!r}).touch()"
    config = "data/weights/model_weights_config.json"

    def use_pickle(data: bytes) -> bytes:
        return data.replace(b'"use_pickle": false', b'"use_pickle": true')

    def sized(expression: str) -> Callable[[bytes], bytes]:
        text = json.dumps(expression).encode()
        return lambda data: re.sub(rb'"expr_str": "[^"]*"', b'"expr_str": ' + text, data)

    def spelled_otherwise(change: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
        return lambda data: change(data).replace(b"expr_str", rb"expr\u005fstr")

    cases = [
        ("sample_inputs/model.pt", lambda _: pickled(((Touch(mark),), {})), "a pickle of"),
        ("weights/weight_0", lambda _: pickled(Touch(mark)), None),
        ("models/model.json", sized(call), "a size that is no expression"),
        ("models/model.json", sized(f"sympify({call!r})"), "a size that is no expression"),
        ("models/model.json", sized("Symbol.__base__"), "a size that is no expression"),
        ("models/model.json", spelled_otherwise(sized(call)), "a size that is no expression"),
        (
            "models/model.json",
            lambda data: data.replace(b"{", rb'{"__enu\u006d__": 1,', 1),
            "the name of a module to import",
        ),
        (
            "models/model.json",
            lambda data: data.replace(b"{", rb'{"in_spec": "{\"__enu\\u006d__\": 1}",', 1),
            "the name of a module to import",
        ),
        (
            "models/model.json",
            lambda data: data.replace(b"{", b'{"__enum__": 1,', 1),
            "the name of a module to import",
        ),
    ]
    for entry, change, reason in cases:
        path = changed(plain_file, entry, change)
        if reason is None:
            path, reason = changed(path, config, use_pickle), "a pickle of"
        with pytest.raises(UsageError, match=f"would run code of its own.*found {reason}"):
            resolve(path)
    named = changed(plain_file, "sample_inputs/model.pt", lambda _: pickled(((Touch(mark),), {})))
    data = named.read_bytes().replace(b"sample_inputs/model.pt", b"sample_inputs/model.PT")
    named.write_bytes(data)
    with pytest.raises(UsageError, match="would run code of its own"):
        resolve(named)  # torch's reader finds the entry by the name in lower case
    assert not mark.exists()
    assert resolve(plain_file).programs[0].outputs == ("output",)
