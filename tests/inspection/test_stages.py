"""A model's graph after any pass, what a pass changed, and what it found at each site."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from omnigraph.cli.main import main
from omnigraph.errors import UsageError
from omnigraph.exporting.options import ExportOptions
from omnigraph.inspection.inspect import inspect
from omnigraph.inspection.stages import Subject, explain, stages
from omnigraph.ledger.graph_text import graph_diff, graph_text
from omnigraph.testing import graph_from_text

MODEL = """g (float[batch,sequence,64] x, bool[batch,1,sequence,sequence] mask)
    => (float[batch,sequence,64] y)
    { b = Shape<start=0, end=1>(x)  t = Shape<start=1, end=2>(x)
      four = Constant<value_ints=[4]>()  size = Constant<value_ints=[16]>()
      shape = Concat<axis=0>(b, t, four, size)  h = Reshape(x, shape)
      q = Transpose<perm=[0,2,1,3]>(h)  a = Attention(q, q, q, mask)
      c = Transpose<perm=[0,2,1,3]>(a)  all = Constant<value_ints=[64]>()
      whole = Concat<axis=0>(b, t, all)  y = Reshape(c, whole) }"""


@pytest.fixture
def model(tmp_path: Path) -> str:
    path = tmp_path / "model.onnx"
    onnx.save(onnx.parser.parse_model(f'<ir_version: 11, opset_import: ["": 24]> {MODEL}'), path)
    return str(path)


def test_text_of_a_graph_has_types_constants_and_modules():
    graph = graph_from_text(
        """g (float[N,3] x) => (float[N,3] y)
        { two = Constant<value_float=2.5>()  a = Mul(x, two)  y = Softmax<axis=-1>(a) }"""
    )
    text = graph_text(graph).replace("two: float[] = Constant() {value_float=2.5}    # model\n", "")
    assert text.splitlines()[0] == "input   x: float[N, 3]"
    assert text.splitlines()[-2:] == [
        "y: float[N, 3] = Softmax(a) {axis=-1}    # model",
        "output  y: float[N, 3]",
    ]


def test_text_shows_subgraphs_and_small_initializers():
    graph = graph_from_text(
        """g (bool c, float[2] x) => (float[2] y) <float[2] w = {1, 2.5}>
        { y = If <then_branch = t () => (float[2] a) { a = Add(x, w) },
                  else_branch = e () => (float[2] b) { b = Neg(x) }> (c) }"""
    )
    text = graph_text(graph)
    assert "  then_branch:\n    a: " in text
    assert "= Add(x, [1, 2.5])" in text


def test_equal_graphs_have_no_diff():
    graph = graph_from_text("g (float[N] x) => (float[N] y) { y = Relu(x) }")
    assert graph_diff(graph_text(graph), graph_text(graph.clone()), ("a", "b")) == ""


def test_the_graph_before_and_after_a_pass(model: str):
    (stage,) = stages(Subject(model), "fold-reshape-shapes")
    changed = [line for line in stage.diff.splitlines() if line[0] in "-+"]
    assert changed[:2] == ["--- forward before fold-reshape-shapes",
                           "+++ forward after fold-reshape-shapes"]  # fmt: skip
    removed = [line for line in changed[2:] if line[0] == "-"]
    added = [line for line in changed[2:] if line[0] == "+"]
    assert len(removed) == len(added) == 2
    assert "Reshape(x, [0, 0, 4, 16])" in added[0]
    assert "Reshape(c, [0, 0, 64])" in added[1]


def test_the_traced_graph_and_a_pass_outside_the_pipeline(model: str):
    (stage,) = stages(Subject(model), "trace")
    assert stage.before == stage.after
    assert "= Attention(" in stage.after
    (stage,) = stages(Subject(model), "decompose-attention:largest_head=8")
    assert "= Softmax(" in stage.after
    assert "= Attention(" not in stage.after


def test_the_graph_after_a_stage_of_the_pipeline(model: str):
    subject = Subject(model, target="tensorrt")
    (traced,), (canonical,) = stages(subject, "trace"), stages(subject, "canonical")
    assert canonical.before == traced.after and canonical.name == "canonical"
    assert "Reshape(x, [0, 0, 4, 16])" in canonical.after
    (kernels,) = stages(subject, "kernels")
    assert "float16[" in kernels.after and "float16[" not in kernels.before
    # Nothing is quantized in floats: a stage without passes changes nothing.
    (quantized,) = stages(subject, "quantized")
    assert quantized.before == quantized.after == kernels.before


def test_options_of_the_target_and_auto_are_not_the_model_s(model: str):
    options = ExportOptions(precision="auto", settings={"compute": "sm89"})
    (stage,) = stages(Subject(model, "tensorrt", options), "kernels")
    assert "float16[" in stage.after


def test_explain_gives_a_reason_for_each_site_left_alone(model: str):
    (finding,) = explain(Subject(model), "decompose-attention")["forward"].findings
    assert finding.reason == "a fused kernel takes it"
    (finding,) = explain(Subject(model), "decompose-attention:largest_head=8")["forward"].findings
    assert finding.reason is None
    assert "heads of 16, outside 1 to 8" in (finding.became or "")


def test_no_site_has_a_reason(model: str, capsys):
    found = explain(Subject(model), "fuse-attention")["forward"]
    assert not found.findings
    assert "it looks at every Softmax over the last axis" in found.no_sites
    assert "the exporter gave 1 node Attention already" in found.no_sites
    assert main(["explain", model, "--pass", "fuse-gelu"]) == 0
    text = capsys.readouterr().out
    assert "program forward: 0 of 0 sites of fuse-gelu\nit looks at every Erf" in text
    assert main(["explain", model, "--pass", "fuse-gelu", "--json"]) == 0
    fields = json.loads(capsys.readouterr().out)
    assert fields["programs"] == {"forward": []}
    assert "there is none" in fields["no_sites"]["forward"]


def test_after_takes_the_names_that_inspect_prints(model: str, tmp_path: Path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from dataclasses import dataclass\n"
        "from omnigraph.passes.base import Pass\n"
        "@dataclass(frozen=True)\n"
        "class NoteProducer(Pass):\n"
        "    producer: str = 'me'\n"
        "    def apply(self, graph):\n"
        "        changed = graph.producer_name != self.producer\n"
        "        graph.producer_name = self.producer\n"
        "        return changed\n"
    )
    options = ExportOptions(passes=f"{path}:NoteProducer:producer=you")
    printed = [p["name"] for p in inspect(model, options=options)["programs"]["forward"]["passes"]]
    assert "note-producer" in printed
    for name in printed:
        (stage,) = stages(Subject(model, options=options), name)
        assert stage.name == name


def test_a_pass_without_sites_is_not_explained(model: str):
    with pytest.raises(UsageError, match="has no sites to explain"):
        explain(Subject(model), "fold-constants")


def test_a_target_s_pipeline_can_be_looked_into(model: str):
    (stage,) = stages(Subject(model, target="tensorrt"), "convert-precision")
    assert "float16[" in stage.after
    assert "float16[" not in stage.before


def test_the_commands(capsys, model: str):
    assert main(["explain", model, "--pass", "decompose-attention"]) == 0
    text = capsys.readouterr().out
    assert "program forward: 0 of 1 sites of decompose-attention" in text
    assert "a fused kernel takes it" in text
    assert main(["explain", model, "--pass", "decompose-attention", "--json"]) == 0
    (finding,) = json.loads(capsys.readouterr().out)["programs"]["forward"]
    assert finding["reason"] == "a fused kernel takes it"
    assert main(["inspect", model, "--after", "fold-reshape-shapes", "--diff"]) == 0
    assert "+++ forward after fold-reshape-shapes" in capsys.readouterr().out
    assert main(["inspect", model, "--diff"]) == 2
    assert "--diff and --picture need --after" in capsys.readouterr().err
    assert main(["inspect", model, "--after", "nothing"]) == 2
    assert "There is no pass 'nothing'" in capsys.readouterr().err


def test_a_picture_shows_the_first_place_that_changed(model: str):
    (stage,) = stages(Subject(model), "decompose-attention:largest_head=8")
    lines = [line.strip() for line in stage.picture.splitlines()]
    assert lines[0] == "flowchart LR"
    before = lines[lines.index("direction TB") : lines.index("end")]
    after = lines[lines.index("end") + 1 :]
    assert [line for line in before if "[Attention]:::changed" in line]
    assert [line for line in after if "[Softmax]:::changed" in line]
    assert not [line for line in after if "Attention" in line]
    (stage,) = stages(Subject(model), "decompose-attention")
    assert stage.picture == ""


def test_graph_text_reads_no_weight():
    def unread() -> ir.TensorProtocol:
        raise AssertionError("the weight was read")

    graph = graph_from_text("g (float[N,3] x, float[3,4] w) => (float[N,4] y) { y = MatMul(x, w) }")
    value = graph.graph.inputs.pop(1)
    value.const_value = ir.LazyTensor(
        unread, dtype=ir.DataType.FLOAT, shape=ir.Shape([3, 4]), name="w"
    )
    graph.graph.register_initializer(value)
    assert "MatMul(x, w: float[3, 4])" in graph_text(graph)
