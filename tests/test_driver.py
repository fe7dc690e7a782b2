"""Exports: what comes out, that it is the same twice, and that nothing comes out that is wrong."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

import omnigraph
from omnigraph.artifact import Artifact
from omnigraph.errors import ArtifactError, ContractError, OmniGraphError, UsageError
from omnigraph.exporting import plan
from omnigraph.graph import Graph
from omnigraph.lowering.onnx.target import OnnxTarget
from omnigraph.passes.base import Pass
from omnigraph.passes.pipeline import Pipeline
from omnigraph.program import Dim

TARGETS = ("onnx", "openvino", "tensorrt")


#: Each position scheme, and each kind of model.
QUICK = {
    ("encoder", "absolute"),
    ("decoder", "relative"),
    ("decoder", "alibi"),
    ("encoder-decoder", "rotary"),
}


@pytest.mark.parametrize(
    ("kind", "positions"),
    [
        pytest.param(*pair, marks=() if pair in QUICK else pytest.mark.slow)
        for pair in product(
            ("encoder", "decoder", "encoder-decoder"),
            ("absolute", "relative", "rotary", "alibi"),
        )
    ],
)
def test_every_configuration_keeps_its_contract_on_every_target(
    tmp_path: Path, positions: str, kind: str
):
    reports = omnigraph.export(
        "omninet",
        TARGETS,
        config="tiny",
        settings={"positions": positions, "kind": kind},
        precision="fp16",
        out=tmp_path,
        require_fused=True,
    )
    assert [report.target for report in reports] == list(TARGETS)
    programs = {
        "encoder": {"forward", "encode"},
        "decoder": {"forward", "decode"},
        "encoder-decoder": {"forward", "encode", "decode"},
    }[kind]
    for report in reports:
        artifact = Artifact(report.path)
        assert set(artifact.programs) == programs
        assert {check.program for check in report.checks} == programs
        outputs = {(n, o.name) for n, p in artifact.programs.items() for o in p.outputs}
        assert {(check.program, check.output) for check in report.checks} == outputs
        # Not a contract that anything would keep: a half has 11 bits, and some rounding must show.
        assert 0 < report.deviation.rms < 0.01
        if kind != "encoder":
            state = artifact.programs["decode"].state
            assert ("past_key_values.0.key", "present_key_values.0.key") in state
            assert len(state) == 4


@pytest.fixture
def factory(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(
        """
import torch

class Net(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.embedding = torch.nn.Embedding(50, width)
        self.layer = torch.nn.TransformerEncoderLayer(width, 4, 2 * width, batch_first=True)

    def forward(self, input_ids, attention_mask):
        hidden = self.layer(self.embedding(input_ids), src_key_padding_mask=attention_mask == 0)
        return {"hidden": hidden, "pooled": hidden.mean(1)}

def net(width="32"):
    torch.manual_seed(0)
    ids = torch.randint(0, 50, (1, 6))
    return Net(int(width)), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
"""
    )
    return path


def test_a_factory_in_a_file_is_a_model(tmp_path: Path, factory: Path):
    out = tmp_path / "net.omni"
    (report,) = omnigraph.export(f"{factory}:net", "onnx", settings={"width": "16"}, out=out)
    assert report.path == out
    with omnigraph.load(out) as net:
        result = net.run(
            input_ids=np.zeros((3, 11), np.int64), attention_mask=np.ones((3, 11), np.int64)
        )
    assert result["hidden"].shape == (3, 11, 16)
    assert result["pooled"].shape == (3, 16)


def test_a_module_is_a_model(tmp_path: Path):
    module = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.GELU())
    (report,) = omnigraph.export(
        module, "onnx", inputs={"input": torch.randn(2, 3, 8)}, out=tmp_path / "net"
    )
    x = np.random.default_rng(0).standard_normal((5, 1, 8)).astype(np.float32)
    with omnigraph.load(report.path) as net, torch.no_grad():
        expected = module(torch.from_numpy(x)).numpy()
        np.testing.assert_allclose(net.run(input=x)["output"], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "positions", "pattern"),
    [
        ("encoder", "relative", "block_sparse"),
        *(
            pytest.param(kind, positions, pattern, marks=pytest.mark.slow)
            for kind in ("encoder", "decoder", "encoder-decoder")
            for positions in ("absolute", "relative", "rotary", "alibi")
            for pattern in ("sliding_window", "block_sparse")
        ),
    ],
)
def test_sparse_attention_is_of_blocks_on_every_target(
    tmp_path: Path, kind: str, positions: str, pattern: str
):
    settings = {"positions": positions, "kind": kind, "attention": pattern, "num_layers": "1"}
    reports = omnigraph.export(
        "omninet",
        TARGETS,
        config="tiny",
        settings=settings,
        precision="fp16",
        out=tmp_path,
        require_fused=True,
    )
    for report in reports:
        sites = [site for sites in report.ledger.values() for site in sites]
        of_blocks = [s for s in sites if any("of blocks" in text for text in s.history)]
        assert of_blocks, (report.target, sites)


class BreakWeight(Pass):
    """Add a tenth to one element of a weight."""

    def apply(self, graph: Graph) -> bool:
        name = next(n for n in graph.graph.initializers if "up.weight" in n)
        value = graph.graph.initializers[name]
        assert value.const_value is not None
        array = value.const_value.numpy().copy()
        array[3, 3] += 0.1
        value.const_value = ir.tensor(array, name=name)
        return True


class BrokenTarget(OnnxTarget):
    """The onnx target with a pass that changes what is computed."""

    def pipeline(self, precision: str) -> Pipeline:
        return super().pipeline(precision).then(BreakWeight())


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch):
    find = plan.find_target
    monkeypatch.setattr(
        plan, "find_target", lambda name: BrokenTarget() if name == "broken" else find(name)
    )


def export_encoder(out: Path, target: str | Sequence[str] = "onnx", **options):
    settings = {"kind": "encoder", **options.pop("settings", {})}
    options = {"config": "tiny", "programs": ["encode"], **options}
    return omnigraph.export("omninet", target, settings=settings, out=out, **options)


@pytest.mark.usefixtures("broken")
def test_one_weight_changed_by_a_tenth_is_refused(tmp_path: Path):
    with pytest.raises(ContractError) as refused:
        export_encoder(tmp_path / "net.omni", "broken")
    text = str(refused.value)
    assert "Output 'last_hidden_state' of program 'encode' differs from torch" in text
    assert "no artifact was written" in text
    assert "expected an error within" in text
    assert "hint: `omnigraph bisect" in text
    assert refused.value.exit_status == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("broken")
def test_verify_each_names_the_pass(tmp_path: Path):
    with pytest.raises(ContractError, match="after pass 'break-weight'"):
        export_encoder(tmp_path / "net.omni", "broken", verify_each=True)
    assert list(tmp_path.iterdir()) == []


def test_verify_each_passes_an_honest_export(tmp_path: Path):
    (report,) = export_encoder(tmp_path / "net", verify_each=True, precision="fp16")
    assert report.path.is_dir()


@pytest.mark.usefixtures("broken")
def test_one_refused_target_leaves_nothing_of_the_others(tmp_path: Path):
    out = tmp_path / "out"
    with pytest.raises(ContractError):
        export_encoder(out, ["onnx", "broken"])
    assert not any(out.rglob("*"))


@pytest.mark.usefixtures("broken")
def test_a_refused_export_leaves_the_old_artifact(tmp_path: Path):
    out = tmp_path / "net.omni"
    export_encoder(out)
    before = out.read_bytes()
    with pytest.raises(ContractError):
        export_encoder(out, "broken")
    assert out.read_bytes() == before
    assert list(tmp_path.iterdir()) == [out]


def test_a_tighter_tolerance_refuses(tmp_path: Path):
    with pytest.raises(ContractError, match=r"within 1\.00e-12 rms"):
        export_encoder(tmp_path / "net.omni", rtol=1e-12)


def test_the_same_export_gives_the_same_bytes(tmp_path: Path):
    hashes = set()
    for seed in ("1", "2"):
        out = tmp_path / seed
        out.mkdir()
        command = [sys.executable, "-m", "omnigraph", "export", "omninet", "--config", "tiny"]
        command += ["--set", "kind=decoder", "--target", "onnx,openvino", "--out", str(out)]
        subprocess.run(
            command,
            check=True,
            capture_output=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
            timeout=300,
        )
        artifacts = sorted(out.glob("*.omni"))
        assert len(artifacts) == 2
        hashes.add(tuple(hashlib.sha256(path.read_bytes()).hexdigest() for path in artifacts))
    assert len(hashes) == 1


def test_programs_share_their_weights_on_disk(tmp_path: Path):
    (one,) = export_encoder(tmp_path / "one")
    (both,) = export_encoder(tmp_path / "both", programs=["forward", "encode"])
    weights = [(r.path / "weights.bin").stat().st_size for r in (one, both)]
    assert weights[1] < 1.1 * weights[0]


def test_ranges_are_kept_and_fixed_sizes_are_fixed(tmp_path: Path):
    dims = {"batch": Dim(1, 1), "sequence": Dim(2, 9)}
    (report,) = export_encoder(tmp_path / "net", dynamic=dims)
    with omnigraph.load(report.path) as net:
        assert net.inputs[0].shape == (1, "sequence")
        net.run(input_ids=np.zeros((1, 9), np.int64))
        with pytest.raises(OmniGraphError, match="'sequence' of this size: expected 2:9, found 10"):
            net.run(input_ids=np.zeros((1, 10), np.int64))
        with pytest.raises(OmniGraphError, match=r"expected \[1, sequence\]: 1 on axis 0"):
            net.run(input_ids=np.zeros((2, 9), np.int64))


def test_every_pass_can_be_dumped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OMNIGRAPH_DUMP", str(tmp_path / "dump"))
    export_encoder(tmp_path / "net")
    names = sorted(path.name for path in (tmp_path / "dump/onnx/encode").iterdir())
    assert names[0] == "00-share-weights.txt"
    assert len(names) == len(OnnxTarget().pipeline("fp32"))
    assert "LayerNormalization" in (tmp_path / "dump/onnx/encode" / names[-1]).read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "cuda"}, "There is no target 'cuda': expected onnx or openvino or tensorrt"),
        ({"precision": "int3"}, "cannot do precision 'int3': expected fp32 or fp16"),
        ({"config": "huge"}, "huge"),
        ({"settings": {"positons": "alibi"}}, "positons"),
        ({"settings": {"positions": "spiral"}}, "positions"),
        ({"programs": ["decode"]}, "has no program 'decode': expected forward or encode"),
        ({"dynamic": {"length": Dim()}}, "has no dimension 'length'"),
        ({"dynamic": {"sequence": Dim(1, 10**6)}}, "cannot take dimension 'sequence'"),
    ],
)
def test_what_cannot_be_is_a_usage_error(tmp_path: Path, options: dict, message: str):
    with pytest.raises(OmniGraphError) as error:
        export_encoder(tmp_path / "net.omni", **options)
    assert message in str(error.value)
    assert error.value.exit_status == 2
    assert list(tmp_path.iterdir()) == []


def test_models_that_cannot_be_are_usage_errors(tmp_path: Path, factory: Path):
    cases = {
        "resnet": "is no model",
        "nothing.py:net": "There is no file",
        "no.such.package:net": "cannot be imported",
        f"{factory}:other": "has no callable 'other'",
        f"{factory}:nett": "hint: did you mean 'net'",
        "collections:OrderedDict": "gives no model",
    }
    for model, message in cases.items():
        with pytest.raises(UsageError, match=message):
            omnigraph.export(model, "onnx", out=tmp_path / "net.omni")
    with pytest.raises(UsageError, match=r"failed: found TypeError"):
        omnigraph.export(f"{factory}:net", "onnx", settings={"depth": "3"})


def test_what_is_not_ours_is_not_replaced(tmp_path: Path):
    (tmp_path / "net").mkdir()
    (tmp_path / "net/notes.txt").write_text("keep")
    with pytest.raises(ArtifactError, match="is not replaced"):
        export_encoder(tmp_path / "net")
    assert (tmp_path / "net/notes.txt").read_text() == "keep"
    with pytest.raises(UsageError, match="do not fit into one file"):
        export_encoder(tmp_path / "net.omni", ["onnx", "openvino"])
