"""ONNX files that others made: their dimensions, modules, weights, and what is refused."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from plain_transformer import ROWS, WIDTH, example, open_shapes

import omnigraph
from omnigraph.cli.main import main
from omnigraph.contract.graph_check import GraphRunner, check_graph
from omnigraph.errors import OmniGraphError, TraceError, UsageError
from omnigraph.frontends.onnx_names import name_axes
from omnigraph.frontends.onnx_program import program_from_onnx
from omnigraph.frontends.resolve import resolve
from omnigraph.graph import MODULE_KEY, OPSET
from omnigraph.input_sets import contract_cases
from omnigraph.inspection.inspect import inspect
from omnigraph.program import Case, Dim
from omnigraph.tracing.trace import output_specs, reference_for, trace


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """The same model as written by torch's exporter of today, and by the one before it."""
    folder = tmp_path_factory.mktemp("files")
    module, inputs = example()
    logging.disable(logging.CRITICAL)
    for opset in (18, 23):
        torch.onnx.export(
            module,
            tuple(inputs.values()),
            folder / f"new{opset}.onnx",
            dynamo=True,
            opset_version=opset,
            input_names=list(inputs),
            output_names=["hidden"],
            dynamic_shapes=open_shapes(),
            external_data=True,
            verbose=False,
        )
    for opset in (11, 17):
        torch.onnx.export(
            module,
            tuple(inputs.values()),
            str(folder / f"old{opset}.onnx"),
            dynamo=False,
            opset_version=opset,
            input_names=list(inputs),
            output_names=["hidden"],
            dynamic_axes={name: {0: "b", 1: "t"} for name in inputs},
        )
    logging.disable(logging.NOTSET)
    return {path.name: path for path in folder.iterdir()}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["new18.onnx", "new23.onnx", "old17.onnx", "old11.onnx"])
def test_an_onnx_file_of_any_exporter_becomes_an_artifact_of_each_target(
    tmp_path: Path, files, name: str
):
    reports = omnigraph.export(str(files[name]), "onnx,openvino", out=tmp_path)
    assert [r.path.name for r in reports] == [
        f"{files[name].stem}-{target}-fp32.omni" for target in ("onnx", "openvino")
    ]
    # Compared with the file by the export itself; here with the torch model that it was made of.
    module, _ = example()
    ids = np.array([[3, 1, 4, 1, 5]])
    mask = np.array([[1, 1, 1, 0, 0]])
    with torch.no_grad():
        expected = module(torch.from_numpy(ids), torch.from_numpy(mask)).numpy()
    for report in reports:
        with omnigraph.load(report.path, verify=True) as session:
            found = session.run(input_ids=ids, attention_mask=mask)["hidden"]
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", ["new18.onnx", "new23.onnx", "old17.onnx", "old11.onnx"])
def test_nodes_keep_the_module_that_the_exporter_wrote_down(files, name: str):
    graph = trace(program_from_onnx(files[name]))
    check_graph(graph, "reading")
    assert graph.opset_imports == {"": OPSET}
    softmax = [n for n in graph.graph if n.op_type == "Softmax"]
    assert [n.metadata_props[MODULE_KEY] for n in softmax] == [
        "layers.0.attention",
        "layers.1.attention",
    ]
    found = {n.metadata_props[MODULE_KEY] for n in graph.graph}
    assert {"embedding", "layers.1.attention.query", "layers.0.norm"} <= found


@pytest.mark.parametrize("name", ["new18.onnx", "old17.onnx"])
def test_dimensions_get_our_names_and_ids_come_from_the_table_they_index(files, name: str):
    program = program_from_onnx(files[name])
    assert [(s.name, s.dtype, s.shape) for s in program.inputs] == [
        ("input_ids", "int64", ("batch", "sequence")),
        ("attention_mask", "int64", ("batch", "sequence")),
    ]
    (output,) = output_specs(trace(program))
    assert (output.name, output.shape) == ("hidden", ("batch", "sequence", WIDTH))
    drawn = program.make_inputs(Case("drawn", {"batch": 40, "sequence": 40}, "left"))
    assert (int(drawn["input_ids"].min()), int(drawn["input_ids"].max())) == (0, ROWS - 1)
    assert drawn["attention_mask"][-1].tolist() == [0] * 20 + [1] * 20


def test_a_dimension_of_a_file_can_be_fixed(tmp_path: Path, files):
    (report,) = omnigraph.export(
        str(files["old17.onnx"]),
        "onnx",
        dynamic={"batch": Dim(1, 1), "sequence": Dim(4, 9)},
        out=tmp_path / "net.omni",
    )
    inputs = inspect(report.path)["programs"]["forward"]["inputs"]
    assert [spec["shape"] for spec in inputs] == [[1, "sequence"]] * 2


def test_the_reference_is_the_file_as_it_is_and_weights_stay_on_disk(files):
    program = program_from_onnx(files["new18.onnx"])
    reference = reference_for(program, contract_cases(program)[2])
    module, _ = example()
    with torch.no_grad():
        expected = module(**{k: torch.from_numpy(v) for k, v in reference.feeds.items()}).numpy()
    np.testing.assert_allclose(reference.outputs["hidden"], expected, rtol=0, atol=1e-5)
    weights = trace(program).graph.initializers
    assert isinstance(weights["embedding.weight"].const_value, ir.ExternalTensor)


def test_a_graph_that_is_not_the_file_is_refused(tmp_path: Path, files, monkeypatch):
    from omnigraph.frontends import onnx_module

    right = onnx_module.graph_of_file

    def wrong(*args):
        graph = right(*args)
        scale = next(n for n in graph.graph if n.op_type == "Softmax")
        scale.op_type = "LogSoftmax"
        return graph

    monkeypatch.setattr(onnx_module, "graph_of_file", wrong)
    with pytest.raises(TraceError, match="not what the model computes"):
        omnigraph.export(str(files["new23.onnx"]), "onnx", out=tmp_path / "net.omni")
    assert not (tmp_path / "net.omni").exists()


def test_a_decoder_step_has_its_past_as_state(tmp_path: Path, traced):
    step = traced("decode", kind="decoder", positions="rotary")
    ir.save(step.graph, tmp_path / "step.onnx", external_data="step.data")
    program = program_from_onnx(tmp_path / "step.onnx")
    assert program.state == step.program.state
    assert {s.name: s.shape for s in program.inputs} == {
        s.name: s.shape for s in step.program.inputs
    }
    assert program.dims["past"] == Dim(0)
    (report,) = omnigraph.export(program, "onnx", out=tmp_path / "step.omni")
    assert {c.output for c in report.checks} == set(program.outputs)


def write(path: Path, text: str, **weights: np.ndarray) -> Path:
    """An ONNX file from its text, with weights by name."""
    model = onnx.parser.parse_model(text)
    for name, array in weights.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    onnx.save(model, path)
    return path


def test_functions_are_inlined_old_initializers_are_no_inputs_and_nameless_axes_get_names(
    tmp_path: Path,
):
    path = write(
        tmp_path / "net.onnx",
        """
        <ir_version: 8, opset_import: ["": 16, "mine": 1]>
        net (float[?, 3, width] pixels, float[3] shift) => (float[?, 3, other] y)
        {
            scaled = mine.Twice(pixels)
            moved = Transpose<perm = [0, 2, 1]>(scaled)
            added = Add(moved, shift)
            y = Transpose<perm = [0, 2, 1]>(added)
        }
        <domain: "mine", opset_import: ["": 16]>
        Twice (x) => (y) { y = Add(x, x) }
        """,
        shift=np.array([1, 2, 3], np.float32),
    )
    program = program_from_onnx(path)
    assert [(s.name, s.shape) for s in program.inputs] == [("pixels", ("batch", 3, "width"))]
    graph = trace(program)
    assert [n.op_type for n in graph.graph] == ["Add", "Transpose", "Add", "Transpose"]
    assert output_specs(graph)[0].shape == ("batch", 3, "width")
    reference = reference_for(program, contract_cases(program)[1])
    found = GraphRunner(graph).run(reference.feeds)
    np.testing.assert_array_equal(found["y"], reference.outputs["y"])


@pytest.mark.parametrize("total", ["total_sequence_length", "past_sequence_length + seq_len"])
def test_dimensions_are_spelled_as_other_exporters_spell_them(total: str):
    shapes = {
        "past_key_values.0.key": ("batch_size", 2, "past_sequence_length", 4),
        "input_ids": ("batch_size", "seq_len"),
        "attention_mask": ("batch_size", total),
        "pixels": ("wide", 7),
        "tiles": ("2 * wide", 7),
        "position_ids": (None, None),
    }
    inputs = [ir.Input(name, ir.Shape(shape)) for name, shape in shapes.items()]
    axes, _ = name_axes(ir.Model(ir.Graph(inputs, [], nodes=[]), ir_version=10))
    assert axes == {
        "past_key_values.0.key": {0: "batch", 2: "past"},
        "input_ids": {0: "batch", 1: "sequence"},
        "attention_mask": {0: "batch", 1: "past + sequence"},
        "pixels": {0: "wide"},
        "tiles": {0: "dim_tiles_0"},
        "position_ids": {0: "batch", 1: "sequence"},
    }


def test_examples_that_cannot_be_guessed_can_be_given(tmp_path: Path):
    path = write(
        tmp_path / "net.onnx",
        """
        <ir_version: 10, opset_import: ["": 24]>
        net (float[batch, 4] x, int64[batch, 2] places) => (float[batch, 2] y)
        {
            limited = Sub(places, hundred)
            y = GatherElements<axis = 1>(x, limited)
        }
        """,
        hundred=np.array(100, np.int64),
    )
    with pytest.raises(TraceError, match="does not run in onnxruntime") as raised:
        program_from_onnx(path)
    assert "inputs={...}" in str(raised.value)
    places = np.array([[100, 103], [101, 102]])
    (report,) = omnigraph.export(path, "onnx", inputs={"places": places}, out=tmp_path / "net.omni")
    assert report.path.exists()
    with pytest.raises(UsageError, match=r"has no input 'place'.*expected x, places"):
        resolve(path, inputs={"place": places})


IDENTITY = """
<ir_version: 10, opset_import: ["": {opset}, "com.microsoft": 1]>
net ({kind}[batch, 4] x) => ({kind}[batch, 4] y) {{ y = {op}(x) }}
"""


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"op": "com.microsoft.Gelu"}, r"Node Gelu .*domain 'com.microsoft'.*com.microsoft::Gelu"),
        ({"kind": "float16"}, r"Input 'x' of .*half precision: expected float32.*float16"),
        ({"op": "Cast<to=1>", "opset": 25}, r"Node Cast .*too new.*at most 24"),
    ],
)
def test_what_a_file_cannot_hold_is_named(tmp_path: Path, fields, message: str):
    text = IDENTITY.format(**{"op": "Relu", "kind": "float", "opset": 24, **fields})
    path = write(tmp_path / "net.onnx", text)
    with pytest.raises(OmniGraphError, match=message) as raised:
        trace(program_from_onnx(path))
    assert "hint:" in str(raised.value)


def test_a_later_opset_that_changed_none_of_its_ops_is_taken(tmp_path: Path):
    path = write(tmp_path / "net.onnx", IDENTITY.format(op="Relu", kind="float", opset=25))
    assert trace(program_from_onnx(path)).opset_imports[""] == OPSET


def test_weights_that_are_missing_cut_short_or_outside_are_named(tmp_path: Path, files):
    name = "new18.onnx"
    path = Path(shutil.copy(files[name], tmp_path / name))
    with pytest.raises(UsageError, match=r"is not in new18.onnx.data.*no such file"):
        resolve(path)
    data = files["new18.onnx.data"].read_bytes()
    (tmp_path / "new18.onnx.data").write_bytes(data[:100])
    with pytest.raises(UsageError, match=r"at least \d+ bytes.*found 100 bytes"):
        resolve(path)
    inner = tmp_path / "inner"
    inner.mkdir()
    model = onnx.load(files[name], load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../new18.onnx.data"
    onnx.save(model, inner / name)
    with pytest.raises(UsageError, match="outside the folder"):
        resolve(inner / name)


@pytest.mark.parametrize("least", [0, 64])  # onnxruntime itself needs axes in the file
@pytest.mark.parametrize("target", ["onnx", "openvino"])
@pytest.mark.parametrize("name", ["new18.onnx", "new23.onnx", "old17.onnx"])
def test_tensors_of_a_few_bytes_may_be_external(
    tmp_path: Path, files, name: str, target: str, least: int
):
    model = onnx.load(files[name])
    path = tmp_path / "net.onnx"
    where = {"save_as_external_data": True, "location": "net.onnx.data"}
    onnx.save_model(model, path, **where, size_threshold=least)
    small = onnx.load(path, load_external_data=False).graph.initializer
    assert any(t.data_location and np.prod(t.dims) * 4 < 1024 for t in small)
    (report,) = omnigraph.export(path, target, out=tmp_path / "net.omni")
    assert {check.output for check in report.checks} == {"hidden"}


def test_the_command_line_takes_files_and_says_so(files, capsys):
    assert main(["inspect", str(files["new23.onnx"])]) == 0
    shown = capsys.readouterr().out
    assert "hidden" in shown and "Softmax" in shown
    with pytest.raises(SystemExit):
        main(["export", "--help"])
    told = capsys.readouterr().out
    assert all(form in told for form in ("FOLDER", "model.onnx", "model.pt2", "file.py:factory"))
    assert main(["export", "nothing", "--target", "onnx"]) == 2
    assert "model.pt2 or model.onnx" in capsys.readouterr().err
