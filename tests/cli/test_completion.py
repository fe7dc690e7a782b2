"""What a shell completes, and what a typo was meant to be."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from omnigraph.cli.completion import SCRIPTS
from omnigraph.cli.main import main
from omnigraph.lowering import targets
from omnigraph.passes.registry import installed_passes
from omnigraph.precision import PRECISIONS


def completed(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    assert main(["--complete", *words]) == 0
    return capsys.readouterr().out.split()


def test_commands_options_and_their_values_are_completed(capsys):
    assert completed(capsys, "ex") == ["export", "explain"]
    assert completed(capsys, "export", "omninet", "--target", "") == sorted(targets())
    assert completed(capsys, "export", "omninet", "--target", "onnx,ten") == ["onnx,tensorrt"]
    assert completed(capsys, "export", "omninet", "--precision", "") == [*PRECISIONS]
    assert completed(capsys, "export", "omninet", "--metric", "ne") == [
        "next-token",
        "nearest-neighbour",
    ]
    assert completed(capsys, "explain", "m.py:f", "--pass", "") == [*installed_passes()]
    assert completed(capsys, "inspect", "m.py:f", "--after", "fo") == [
        "folded",
        *(name for name in installed_passes() if name.startswith("fo")),
    ]
    assert completed(capsys, "bisect", "m.py:f", "--until", "f") == ["fused", "folded"]
    assert "--target" in completed(capsys, "export", "omninet", "--t")
    assert completed(capsys, "export", "om") == ["omninet"]
    assert completed(capsys, "run", "net.omni", "--json", "--dev") == ["--device"]
    assert completed(capsys, "export", "omninet", "--out", "") == []


def test_a_shell_is_installed_once_and_keeps_what_it_has(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".bashrc").write_text("alias ll='ls -l'")
    for _ in range(2):
        assert main(["--install-completion", "bash"]) == 0
    script = tmp_path / ".local/share/omnigraph/completion.bash"
    assert (tmp_path / ".bashrc").read_text() == f"alias ll='ls -l'\n. \"{script}\"\n"
    assert script.read_text() == SCRIPTS["bash"]
    monkeypatch.setenv("SHELL", "/usr/bin/fish")
    assert main(["--install-completion"]) == 0
    assert (tmp_path / ".config/fish/completions/omnigraph.fish").is_file()
    capsys.readouterr()
    assert main(["--install-completion", "bsh"]) == 2
    assert "did you mean 'bash'?" in capsys.readouterr().err
    assert main(["--show-completion", "zsh"]) == 0
    assert capsys.readouterr().out == SCRIPTS["zsh"]


def test_bash_completes_as_it_does_for_its_user(tmp_path: Path):
    (tmp_path / "omnigraph").write_text(f'#!/bin/sh\nexec {sys.executable} -m omnigraph "$@"\n')
    (tmp_path / "omnigraph").chmod(0o755)
    ask = (
        SCRIPTS["bash"]
        + f"PATH={tmp_path}:$PATH\nCOMP_WORDS=(omnigraph export omninet --target op)\n"
        + 'COMP_CWORD=4\n_omnigraph_completion\necho "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        [shutil.which("bash") or "bash", "-c", ask], capture_output=True, text=True
    )
    assert done.stdout.strip() == "openvino", done.stderr


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ("exprot omninet --target onnx", "export"),
        ("export omninet --taget onnx", "--target"),
        ("export omninet --target onnx --precison int8", "--precision"),
        ("export omninet --target onx", "'onnx'"),
        ("export omninet --target onnx --precision in8", "'int8'"),
        ("export omninet --target onnx --passes fuse-atention", "'fuse-attention'"),
        ("export omninet --target onnx --passes=-fuse-norms", "'fuse-norm'"),
        ("export omninet --target onnx --passes fold-position-bias:budget=1", "'budget_bytes'"),
        ("export omninet --target onnx --config tiny --programs decod", "'decode'"),
        ("export omninet --target onnx --config tiny --dynamic seqence=1:8", "'sequence'"),
        ("export omninet --target onnx --config tiny --outputs logit", "'logits'"),
        ("bisect omninet --target onnx --until fusd", "'fused'"),
    ],
)
def test_a_typo_names_what_was_meant(words: str, meant: str, capsys):
    try:
        status = main(words.split())
    except SystemExit as end:
        status = int(end.code or 0)
    assert status == 2
    assert f"did you mean {meant}?" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        "export omninet --target onx",
        "export omninet --target onnx --precision int3",
        "export omninet --target onnx --passes fuse-atention",
        "export nothing.py:f --target onnx",
        "export omninett --target onnx",
        "export nothing.onnx --target onnx",
        "bisect omninet --target onx",
        "explain omninet --pass fuse-atention",
        "inspect nothing.py:f",
    ],
)
def test_what_names_nothing_is_refused_before_torch_is_imported(words: str, tmp_path: Path):
    code = (
        "import sys\nfrom omnigraph.cli.main import main\n"
        f"assert main({words.split()!r}) == 2\nassert 'torch' not in sys.modules\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
