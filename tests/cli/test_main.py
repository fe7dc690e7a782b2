"""The commands, as a person or a script uses them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from omnigraph.cli.artifact_commands import _fields
from omnigraph.cli.main import main

IDS = "input_ids=5,6,7"


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    status = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_export_run_verify_inspect(tmp_path: Path, capsys):
    out = tmp_path / "net.omni"
    status, text, progress = run(
        capsys, "export", "omninet", "--config", "tiny", "--set", "kind=encoder",
        "--target", "onnx", "--dynamic", "batch=1:4,sequence=1:64", "--out", out,
    )  # fmt: skip
    assert status == 0
    assert f"{out}  onnx fp32" in text
    assert "within its contract" in text
    assert "[1/5] trace forward, encode" in progress
    assert run(capsys, "verify", out)[0] == 0
    status, text, _ = run(capsys, "run", out, "--input", IDS, "--out", tmp_path / "y.npz")
    assert status == 0
    assert "[1, 3, 256]" in text
    assert np.load(tmp_path / "y.npz")["logits"].shape == (1, 3, 256)
    np.save(tmp_path / "ids.npy", np.array([[5, 6, 7]]))
    argument = f"input_ids={tmp_path / 'ids.npy'}"
    status, text, _ = run(capsys, "run", out, "--input", argument, "--program", "encode", "--json")
    found = json.loads(text)["outputs"]["last_hidden_state"]
    assert found["shape"] == [1, 3, 64]
    assert np.shape(found["values"]) == (1, 3, 64)
    status, text, _ = run(capsys, "inspect", out)
    assert status == 0
    for part in ("program forward", "attention_mask", "default 1", "Attention", "fold-constants"):
        assert part in text


def test_json_has_the_values_of_small_outputs_and_says_where_large_ones_are(
    tmp_path: Path, capsys, tiny_artifacts
):
    def outputs(*more: object) -> dict:
        status, text, _ = run(capsys, "run", tiny_artifacts["onnx"], *more, "--json")
        assert status == 0
        return json.loads(text)["outputs"]

    file = tmp_path / "y.npz"
    small = outputs("--input", IDS, "--out", file)["logits"]
    np.testing.assert_allclose(small["values"], np.load(file)["logits"], rtol=1e-6)
    many = ("--input", "input_ids=" + ",".join(["7"] * 5))
    assert outputs(*many)["logits"] == {
        "dtype": "float32",
        "shape": [1, 5, 256],
        "file": None,
        "note": "its 1280 values are nowhere: give --out FILE.npz",
    }
    written = outputs(*many, "--out", file)["logits"]
    assert written["file"] == str(file)
    assert written["note"] == f"its 1280 values are in {file}"
    assert np.load(file)["logits"].shape == (1, 5, 256)


def test_what_is_no_finite_number_is_text_in_json():
    fields = _fields(np.array([[1.5, np.nan], [np.inf, -np.inf]], np.float32), None)
    assert json.loads(json.dumps(fields, allow_nan=False))["values"] == [
        [1.5, "nan"],
        ["inf", "-inf"],
    ]
    assert _fields(np.array(True), None)["values"] is True
    assert _fields(np.empty((0, 3)), None)["values"] == []


def test_every_command_prints_one_json_object(capsys, tiny_artifacts):
    artifact = tiny_artifacts["onnx"]
    commands = [
        ("verify", artifact),
        ("inspect", artifact),
        ("run", artifact, "--input", IDS),
        ("passes",),
        ("targets",),
    ]
    for command in commands:
        status, text, _ = run(capsys, *command, "--json")
        assert status == 0
        assert isinstance(json.loads(text), dict)


def test_inspect_shows_what_the_passes_make_of_a_model(capsys):
    status, text, _ = run(
        capsys, "inspect", "omninet", "--config", "tiny", "--set", "kind=encoder", "--json"
    )
    assert status == 0
    program = json.loads(text)["programs"]["encode"]
    assert program["traced_ops"]["Attention"] == program["ops"]["Attention"] == 2
    assert sum(program["ops"].values()) < 0.6 * sum(program["traced_ops"].values())


def test_targets_and_passes_say_what_there_is(capsys):
    targets = {t["name"]: t for t in json.loads(run(capsys, "targets", "--json")[1])["targets"]}
    assert set(targets) >= {"onnx", "openvino", "tensorrt"}
    assert targets["onnx"]["unusable"] is None
    assert "compute" in targets["tensorrt"]["options"]
    assert all(target["precisions"][-1] == "auto" for target in targets.values())
    names = [p["name"] for p in json.loads(run(capsys, "passes", "--json")[1])["passes"]]
    assert "fold-weight-transposes" in names
    assert names == sorted(names)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("export", "omninet", "--target", "abacus"), "There is no target 'abacus'"),
        (("export", "omninet", "--target", "onnx", "--precision", "int3"), "precision 'int3'"),
        (("export", "omninet", "--target", "onnx", "--set", "kind"), "is no setting"),
        (("export", "omninet", "--target", "onnx", "--dynamic", "batch=x"), "is no range"),
        (("export", "omninet", "--target", "onnx", "--dynamic", "batch=4:1"), "is empty"),
        (("export", "nothing.py:f", "--target", "onnx"), "There is no file nothing.py"),
        (("run", "nothing.omni", "--input", IDS), "There is no artifact"),
        (("verify", "nothing.omni"), "There is no artifact"),
        (("inspect", "nothing"), "is no model"),
    ],
)
def test_bad_usage_is_one_paragraph(capsys, tmp_path, monkeypatch, arguments, message: str):
    monkeypatch.chdir(tmp_path)
    status, text, errors = run(capsys, *arguments)
    assert status == 2
    assert text == ""
    error = errors[errors.index("error:") :]
    assert message in error
    assert "Traceback" not in error
    assert len(error.strip().splitlines()) <= 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([], "Input 'input_ids' of program 'forward' is missing"),
        (["input_ids=1,x"], "neither a .npy file nor numbers"),
        (["tokens=1,2"], "has no input 'tokens'"),
        (["input_ids=missing.npy"], "cannot be read"),
        (["input_ids=[[1,2]]", "attention_mask=[[1,1,1]]"], "wrong shape"),
        (["input_ids=ids.npy"], "wrong dtype: expected int64, found float32"),
    ],
)
def test_bad_input_says_which(capsys, tmp_path, monkeypatch, tiny_artifacts, inputs, message):
    monkeypatch.chdir(tmp_path)
    np.save(tmp_path / "ids.npy", np.ones((1, 3), np.float32))
    flags = [part for text in inputs for part in ("--input", text)]
    status, text, errors = run(capsys, "run", tiny_artifacts["onnx"], *flags, "--out", "y.npz")
    assert (status, text) == (2, "")
    assert message in errors
    assert "hint:" in errors
    assert [path.name for path in tmp_path.iterdir()] == ["ids.npy"]
    status, text, _ = run(capsys, "run", tiny_artifacts["onnx"], *flags, "--json")
    assert status == 2
    assert message.partition(":")[0] in json.loads(text)["error"]["message"]


def test_a_changed_byte_is_refused(capsys, tmp_path, tiny_artifacts):
    path = tmp_path / "net.omni"
    whole = bytearray(tiny_artifacts["onnx"].read_bytes())
    whole[len(whole) // 2] ^= 1
    path.write_bytes(whole)
    for command in (("verify", path), ("run", path, "--input", IDS)):
        status, _, errors = run(capsys, *command)
        assert status == 2
        assert "error:" in errors
        assert "hint:" in errors


def test_a_model_that_cannot_be_traced_is_explained(capsys, tmp_path):
    (tmp_path / "mine.py").write_text(
        """
import torch
class Branch(torch.nn.Module):
    def forward(self, input_ids):
        return input_ids * (2.0 if input_ids.sum().item() > 3 else 1.0)
def net():
    return Branch(), {"input_ids": torch.ones(2, 3, dtype=torch.int64)}
"""
    )
    out = tmp_path / "net.omni"
    status, text, errors = run(
        capsys, "export", f"{tmp_path / 'mine.py'}:net", "--target", "onnx", "--out", out
    )
    assert (status, text) == (2, "")
    assert "could not be traced, at mine.py:5" in errors
    assert "hint: torch.export must see one graph" in errors
    assert not out.exists()


def test_what_an_export_leaves_out_is_said(capsys, tmp_path):
    (tmp_path / "mine.py").write_text(
        """
import torch
class Net(torch.nn.Module):
    def forward(self, x):
        return {"y": x * 2, "steps": 3, "cache": object()}
def net():
    return Net(), {"x": torch.ones(2, 3)}
"""
    )
    arguments = ("export", f"{tmp_path / 'mine.py'}:net", "--target", "onnx")
    status, _, errors = run(capsys, *arguments, "--out", tmp_path / "net.omni")
    assert status == 0
    said = "note: program forward leaves out what is no tensor: steps (int), cache (object)"
    assert said in errors.splitlines()
    status, text, _ = run(capsys, *arguments, "--out", tmp_path / "net.omni", "--json")
    (report,) = json.loads(text)["artifacts"]
    assert report["left_out"] == {"forward": ["steps (int)", "cache (object)"]}


def test_numbers_too_far_exit_with_status_1(capsys, tmp_path):
    out = tmp_path / "net.omni"
    status, _, errors = run(
        capsys, "export", "omninet", "--config", "tiny", "--set", "kind=encoder", "--programs",
        "encode", "--target", "onnx", "--rtol", "1e-12", "--out", out,
    )  # fmt: skip
    assert status == 1
    assert "Output 'last_hidden_state' of program 'encode' is too far from the torch" in errors
    assert not out.exists()


def test_no_command_prints_the_help_and_version(capsys):
    assert main([]) == 2
    assert "export" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    with pytest.raises(SystemExit) as stop:
        main(["export"])
    assert stop.value.code == 2


def test_an_artifact_runs_where_only_numpy_and_its_runtime_are(tmp_path, tiny_artifacts):
    """A fresh environment in which torch, onnx and all else cannot be imported."""
    import omnigraph

    blocked = "torch onnx onnx_ir onnxscript ml_dtypes rich safetensors transformers".split()
    for name in blocked:
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('{name} is not here')")
    shutil.copytree(Path(omnigraph.__file__).parent, tmp_path / "omnigraph")
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
from omnigraph.cli.artifact_commands import _fields
from omnigraph.cli.main import main
raise SystemExit(main(sys.argv[1:]))
"""
    for target, artifact in tiny_artifacts.items():
        done = subprocess.run(
            [sys.executable, "-c", code, "run", str(artifact), "--input", IDS],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, (target, done.stderr)
        assert "[1, 3, 256]" in done.stdout
