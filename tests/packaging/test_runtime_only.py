"""With numpy and one runtime, and nothing else: what speaks of artifacts and the machine works."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from clean_environment import Environment, make_runtime_environment, run

from omnigraph.artifact import Artifact

RUNTIMES = {"onnx": "onnxruntime", "openvino": "openvino"}


@pytest.fixture(scope="module", params=RUNTIMES)
def target(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def alone(target: str, archives: tuple[Path, Path], tmp_path_factory) -> Environment:
    """An environment with the wheel, numpy and one runtime."""
    folder = tmp_path_factory.mktemp("runtime") / target
    made = make_runtime_environment(folder, "numpy", RUNTIMES[target])
    made.install(archives[1])
    return made


def test_the_compiler_is_not_there(alone: Environment, tmp_path: Path):
    code = "import sys, importlib.util as u; print([bool(u.find_spec(n)) for n in sys.argv[1:]])"
    names = ("numpy", "torch", "onnx", "onnx_ir", "onnxscript", "ml_dtypes")
    assert run([alone.python, "-c", code, *names], tmp_path).strip() == str([True] + [False] * 5)


def test_the_targets_are_listed(alone: Environment, target: str, tmp_path: Path):
    listed = json.loads(run([alone.omnigraph, "targets", "--json"], tmp_path))["targets"]
    found: dict[str, Any] = {each["name"]: each for each in listed}
    assert set(found) == {"onnx", "openvino", "tensorrt"}
    for name, each in found.items():
        assert "is not installed: pip install 'omnigraph[export]'" in each["unusable"]
        assert (each["unrunnable"] is None) == (name == target)
        assert each["purpose"].startswith("runs on ")
    text = run([alone.omnigraph, "targets"], tmp_path)
    (row,) = (line for line in text.splitlines() if line.startswith(target))
    assert " yes " in row


@pytest.mark.parametrize(
    "command",
    [
        ("--version",),
        ("run", "NET", "--input", "input_ids=1,2,3"),
        ("run", "NET", "--input", "input_ids=1,2,3", "--program", "decode", "--json"),
        ("generate", "NET", "--prompt-ids", "5,6", "--set", "do_sample=true"),
        ("verify", "NET"),
        ("inspect", "NET"),
        ("inspect", "NET", "--json"),
        ("inspect", "NET", "--kernels"),
        *(
            (name, "--help")
            for name in "export run generate verify inspect explain bisect passes".split()
        ),
    ],
    ids=" ".join,
)
def test_what_speaks_of_artifacts_works(
    alone: Environment, target: str, command: tuple[str, ...], tiny_artifacts, tmp_path: Path
):
    net = str(tiny_artifacts[target])
    assert Artifact(net).target == target
    assert run([alone.omnigraph, *(net if c == "NET" else c for c in command)], tmp_path)


@pytest.mark.parametrize(
    "command",
    ["export omninet --target onnx", "explain omninet --pass fuse-gelu", "inspect omninet",
     "bisect omninet --target onnx", "passes"],
)  # fmt: skip
def test_what_needs_the_compiler_says_so(alone: Environment, command: str, tmp_path: Path):
    done = subprocess.run(
        [alone.omnigraph, *command.split()], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert f"error: `omnigraph {command.split()[0]}` needs onnx" in done.stderr
    assert "\nhint: pip install torch" in done.stderr
    assert "Traceback" not in done.stderr
