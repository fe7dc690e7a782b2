"""The fusion ledger: what each attention became, why it did not, and the kernel that runs it."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import onnx.parser
import pytest

import omnigraph
from omnigraph.artifact import Artifact
from omnigraph.cli.main import main
from omnigraph.errors import FusionError
from omnigraph.ledger.attention import attention_sites, check_fused
from omnigraph.passes.base import run_passes
from omnigraph.passes.decompose_attention import DecomposeAttention
from omnigraph.runtimes.kernels import Kernel, kernels_of
from omnigraph.testing import graph_from_text

FUSED = """g (float[B,4,T,16] q, float[B,2,T,16] k, float[B,2,T,16] v, bool[B,1,T,T] m)
    => (float[B,4,T,16] y) { y = Attention<softcap=5.0>(q, k, v, m) }"""
CLASSES = """g (float[B,8] x, float[8,5] w) => (float[B,5] y)
    { s = MatMul(x, w)  y = Softmax<axis=-1>(s) }"""


def test_a_fused_site_says_its_heads_and_its_mask():
    (site,) = attention_sites(graph_from_text(FUSED), [])
    assert site.fused
    assert (site.op, site.module) == ("Attention", "model")
    assert site.form == "4 heads over 2 of keys, boolean mask [B, 1, T, T], softcap 5"


def test_a_site_that_was_written_out_says_why():
    graph = graph_from_text(FUSED)
    records = run_passes(graph, (DecomposeAttention(),))
    (site,) = attention_sites(graph, records)
    assert not site.fused
    assert site.op == "Softmax"
    assert site.reason == (
        "decompose-attention: products and a softmax, for there is no fused kernel for a softcap"
    )
    with pytest.raises(FusionError, match="1 of 1 attentions are not fused") as refused:
        check_fused({"forward": [site]})
    assert "model of program 'forward': decompose-attention" in str(refused.value)
    assert refused.value.exit_status == 1


def test_a_softmax_of_classes_is_no_attention():
    assert attention_sites(graph_from_text(CLASSES), []) == []
    check_fused({"forward": []})


def test_the_manifest_has_the_ledger(tmp_path: Path):
    (report,) = omnigraph.export(
        "omninet",
        "onnx",
        config="tiny",
        settings={"num_layers": "1"},
        programs=["forward"],
        out=tmp_path / "net.omni",
        require_fused=True,
    )
    sites = Artifact(report.path).manifest["programs"]["forward"]["attention"]
    assert [site["module"] for site in sites] == [
        "encoder.blocks.0.self_attention",
        "decoder.blocks.0.self_attention",
        "decoder.blocks.0.cross_attention",
    ]
    assert all(site["fused"] for site in sites)
    assert report.to_dict()["attention"]["forward"] == sites


def test_require_fused_refuses_and_leaves_nothing(tmp_path: Path, capsys):
    out = tmp_path / "net.omni"
    arguments = [
        "export", "omninet", "--config", "tiny", "--set", "kind=encoder", "--programs", "encode",
        "--target", "onnx", "--passes", "decompose-attention:largest_head=8", "--out", str(out),
    ]  # fmt: skip
    assert main([*arguments, "--require-fused"]) == 1
    error = capsys.readouterr().err
    assert "2 of 2 attentions are not fused" in error
    assert "encoder.blocks.0.self_attention of program 'encode'" in error
    assert list(tmp_path.iterdir()) == []
    assert main(arguments) == 0
    capsys.readouterr()
    assert main(["inspect", str(out)]) == 0
    assert "not fused" in capsys.readouterr().out


@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_the_kernel_that_the_runtime_dispatched(capsys, tiny_artifacts, target: str):
    assert main(["inspect", str(tiny_artifacts[target]), "--kernels", "--json"]) == 0
    programs = json.loads(capsys.readouterr().out)["programs"]
    kernels = {site["kernel"] for p in programs.values() for site in p["attention"]}
    assert len(kernels) >= 1
    known = {"onnx": "CPUExecutionProvider", "openvino": "jit"}[target]
    assert all(known in kernel for kernel in kernels), kernels


def test_kernels_are_of_artifacts(capsys, tmp_path: Path):
    path = tmp_path / "model.onnx"
    onnx.save(onnx.parser.parse_model(f'<ir_version: 11, opset_import: ["": 24]> {CLASSES}'), path)
    assert main(["inspect", str(path), "--kernels"]) == 2
    assert "export it" in capsys.readouterr().err


def test_kernels_are_told_by_name_or_taken_in_order():
    kernels = [Kernel("Gemm", ("a",)), Kernel("SDPA f32", ("x",)), Kernel("SDPA bf16", ("y",))]
    assert kernels_of(kernels, ["one", "two"], ("SDPA",)) == ["SDPA f32", "SDPA bf16"]
    assert kernels_of(kernels, ["y"], ("SDPA",)) == ["SDPA bf16"]
    assert kernels_of(kernels, ["a", "b", "c"], ("SDPA",)) == ["Gemm", "", ""]
