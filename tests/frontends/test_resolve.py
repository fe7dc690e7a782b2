"""Models that others made: ONNX files, exported programs and Hugging Face folders."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import nn

import omnigraph
from omnigraph.cli.main import main
from omnigraph.contract.graph_check import GraphRunner, check_graph
from omnigraph.errors import OmniGraphError, TraceError, UsageError
from omnigraph.frontends.onnx_names import name_axes
from omnigraph.frontends.onnx_program import program_from_onnx
from omnigraph.frontends.resolve import resolve
from omnigraph.graph import MODULE_KEY, OPSET
from omnigraph.inspection.inspect import inspect
from omnigraph.program import Case, Dim, contract_cases
from omnigraph.tracing.trace import output_specs, reference_for, trace

WIDTH, HEADS, ROWS = 16, 2, 40


class Attention(nn.Module):
    """Attention as it is written without scaled_dot_product_attention."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        size = (*hidden.shape[:2], HEADS, WIDTH // HEADS)
        query, key, value = (
            part(hidden).view(size).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        scores = query @ key.transpose(-1, -2) / (WIDTH // HEADS) ** 0.5 + mask
        return self.out((scores.softmax(-1) @ value).transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.norm = Attention(), nn.LayerNorm(WIDTH)

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.norm(hidden + self.attention(hidden, mask))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(ROWS, WIDTH)
        self.layers = nn.ModuleList([Block(), Block()])

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        mask = (1 - attention_mask[:, None, None, :].float()) * -1e9
        hidden = self.embedding(input_ids)
        for layer in self.layers:
            hidden = layer(hidden, mask)
        return hidden


@pytest.fixture(scope="module")
def example() -> tuple[nn.Module, Mapping[str, torch.Tensor]]:
    torch.manual_seed(0)
    ids = torch.randint(0, ROWS, (2, 7))
    return Net().eval(), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.fixture(scope="module")
def files(tmp_path_factory, example) -> dict[str, Path]:
    """The same model as written by torch's exporter of today, and by the one before it."""
    folder = tmp_path_factory.mktemp("files")
    module, inputs = example
    logging.disable(logging.CRITICAL)
    batch, length = torch.export.Dim("batch_size"), torch.export.Dim("sequence_length")
    shapes = ({0: batch, 1: length}, {0: batch, 1: length})
    for opset in (18, 23):
        torch.onnx.export(
            module,
            tuple(inputs.values()),
            folder / f"new{opset}.onnx",
            dynamo=True,
            opset_version=opset,
            input_names=list(inputs),
            output_names=["hidden"],
            dynamic_shapes=shapes,
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
    exported = torch.export.export(module, tuple(inputs.values()), dynamic_shapes=shapes)
    torch.export.save(exported, folder / "net.pt2")
    logging.disable(logging.NOTSET)
    return {path.name: path for path in folder.iterdir()}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["new18.onnx", "new23.onnx", "old17.onnx", "old11.onnx"])
def test_an_onnx_file_of_any_exporter_becomes_an_artifact_of_each_target(
    tmp_path: Path, files, example, name: str
):
    reports = omnigraph.export(str(files[name]), "onnx,openvino", out=tmp_path)
    assert [r.path.name for r in reports] == [
        f"{files[name].stem}-{target}-fp32.omni" for target in ("onnx", "openvino")
    ]
    # Compared with the file by the export itself; here with the torch model that it was made of.
    module, _ = example
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


def test_the_reference_is_the_file_as_it_is_and_weights_stay_on_disk(files, example):
    program = program_from_onnx(files["new18.onnx"])
    reference = reference_for(program, contract_cases(program)[2])
    module, _ = example
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


def test_a_file_that_is_no_model_and_one_that_is_not_there(tmp_path: Path):
    for name in ("net.onnx", "net.pt2"):
        with pytest.raises(UsageError, match=f"There is no file .*{name}"):
            resolve(str(tmp_path / name))
        (tmp_path / name).write_bytes(b"not a model at all")
        with pytest.raises(UsageError, match="that can be read"):
            resolve(str(tmp_path / name))
    with pytest.raises(UsageError, match="has no settings"):
        resolve(str(tmp_path / "net.onnx"), settings={"a": "1"})
    with pytest.raises(UsageError, match="expected a folder with a config"):
        resolve(tmp_path)


def test_an_exported_program_keeps_its_modules_and_its_dimensions(tmp_path: Path, files):
    (program,) = resolve(str(files["net.pt2"])).programs
    assert [(s.name, s.shape) for s in program.inputs] == [
        ("input_ids", ("batch", "sequence")),
        ("attention_mask", ("batch", "sequence")),
    ]
    graph = trace(program)
    assert "layers.0.attention.query.weight" in graph.graph.initializers
    softmax = [n.metadata_props[MODULE_KEY] for n in graph.graph if n.op_type == "Softmax"]
    assert softmax == ["layers.0.attention", "layers.1.attention"]
    reports = omnigraph.export(str(files["net.pt2"]), "onnx,openvino", out=tmp_path)
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


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Random tiny models as save_pretrained writes them."""
    import transformers as hf

    torch.manual_seed(0)
    small = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "vocab_size": 50,
    }
    models = {
        "bert": hf.BertForSequenceClassification(
            hf.BertConfig(**small, max_position_embeddings=70)
        ),
        "llama": hf.LlamaForCausalLM(hf.LlamaConfig(**small, num_key_value_heads=1)),
        "gpt2": hf.GPT2LMHeadModel(
            hf.GPT2Config(
                n_embd=16, n_layer=2, n_head=2, vocab_size=50, n_positions=70,
                bos_token_id=1, eos_token_id=2,
            )
        ),
        "bart": hf.BartForConditionalGeneration(
            hf.BartConfig(
                vocab_size=50, d_model=16, encoder_layers=1, decoder_layers=1,
                encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32,
                decoder_ffn_dim=32, max_position_embeddings=70,
            )
        ),
        "t5": hf.T5ForConditionalGeneration(
            hf.T5Config(d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, vocab_size=50)
        ),
        "vit": hf.ViTForImageClassification(
            hf.ViTConfig(
                hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
                image_size=16, patch_size=8,
            )
        ),
    }  # fmt: skip
    root = tmp_path_factory.mktemp("folders")
    for name, model in models.items():
        model.eval().save_pretrained(root / name)
    return {name: root / name for name in models}


@pytest.mark.parametrize(
    ("name", "inputs", "outputs"),
    [
        ("bert", {"input_ids", "attention_mask"}, {"logits"}),
        ("vit", {"pixel_values"}, {"logits"}),
        *(
            pytest.param(
                name,
                {"input_ids", "attention_mask", "decoder_input_ids", "decoder_attention_mask"},
                {"logits"},
                marks=pytest.mark.slow,
            )
            for name in ("bart", "t5")  # T5 hides with the lowest number, whole rows of padding too
        ),
    ],
)
def test_a_folder_gives_its_model_with_its_head(
    tmp_path: Path, folders, name: str, inputs: set[str], outputs: set[str]
):
    reports = omnigraph.export(folders[name], "onnx,openvino", out=tmp_path)
    for report in reports:
        (program,) = inspect(report.path)["programs"].values()
        assert {spec["name"] for spec in program["inputs"]} == inputs
        assert {spec["name"] for spec in program["outputs"]} == outputs


@pytest.mark.parametrize("name", ["gpt2", pytest.param("llama", marks=pytest.mark.slow)])
def test_a_causal_model_decodes_as_it_runs_at_once(tmp_path: Path, folders, name: str):
    (report,) = omnigraph.export(folders[name], "onnx", out=tmp_path / "net.omni")
    ids = np.array([[4, 8, 15, 16, 23, 42]])
    with omnigraph.load(report.path) as net:
        whole = net.run(input_ids=ids, program="forward")["logits"]
        first = net.run(input_ids=ids[:, :4], program="decode")
        past = {k.replace("present", "past"): v for k, v in first.items() if k != "logits"}
        then = net.run({"input_ids": ids[:, 4:], **past}, program="decode")
    np.testing.assert_allclose(first["logits"], whole[:, :4], atol=1e-5)
    np.testing.assert_allclose(then["logits"], whole[:, 4:], atol=1e-5)


def test_learned_positions_bound_the_lengths(folders):
    bert = resolve(folders["bert"]).programs[0]
    assert bert.dims["sequence"] == Dim(1, 70)
    assert resolve(folders["bert"]).config["architectures"] == ["BertForSequenceClassification"]
    forward, decode = resolve(folders["gpt2"]).programs
    assert (forward.dims["sequence"], decode.dims["past"]) == (Dim(1, 70), Dim(0, 69))
    assert decode.dims["past + sequence"] == Dim(1, 70)


def test_a_folder_whose_model_is_not_all_there_is_refused(tmp_path: Path, folders):
    from safetensors.numpy import load_file, save_file

    with pytest.raises(UsageError, match="has no setting 'layers'"):
        resolve(folders["bert"], settings={"layers": "1"})
    copy = Path(shutil.copytree(folders["bert"], tmp_path / "copy"))
    weights = load_file(copy / "model.safetensors")
    del weights["classifier.weight"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UsageError, match=r"lacks weights of .*classifier.weight"):
        resolve(copy)
    (copy / "model.safetensors").unlink()
    with pytest.raises(UsageError, match=r"cannot be loaded from its model.safetensors"):
        resolve(copy)
    config = (copy / "config.json").read_text().replace("BertForSequence", "HertzForSequence")
    (copy / "config.json").write_text(config)
    with pytest.raises(UsageError, match=r"found HertzForSequenceClassification"):
        resolve(copy)


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


@pytest.mark.parametrize("stored", [torch.float32, torch.float16])
def test_a_folder_that_omninet_saved_is_a_model(tmp_path: Path, stored: torch.dtype):
    from omnigraph.models import OmniNet, OmniNetConfig

    config = OmniNetConfig.from_overrides({"kind": "decoder"}, name="tiny")
    OmniNet.from_seed(config, 3).to(stored).save(tmp_path / "mine")
    source = resolve(tmp_path / "mine")
    assert source.name == "mine" and source.config["kind"] == "decoder"
    assert [program.name for program in source.programs] == ["forward", "decode"]
    weights = dict(OmniNet.load(tmp_path / "mine").named_parameters())
    for name, parameter in source.programs[0].module.named_parameters():
        original = weights[name.split("module.")[-1].removeprefix("model.")]
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, original.float())


def test_a_damaged_folder_of_omninet_is_refused(tmp_path: Path):
    from omnigraph.models import OmniNet, OmniNetConfig

    OmniNet.from_seed(OmniNetConfig.from_overrides({}, name="tiny"), 3).save(tmp_path)
    with pytest.raises(UsageError, match="has no settings"):
        resolve(tmp_path, settings={"positions": "alibi"})
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(
        config.replace('"num_layers"', '"num_layers_": 2,"num_layers"')
    )
    with pytest.raises(UsageError, match="num_layers_"):
        resolve(tmp_path)
    (tmp_path / "config.json").write_text(config)
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(UsageError, match="cannot be read"):
        resolve(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UsageError, match=r"expected a file model.safetensors"):
        resolve(tmp_path)
