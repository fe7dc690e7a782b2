"""Exports that are killed at any moment, or stopped by the system, lose no artifact."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from artifact_files import export_to

from omnigraph.artifact import Artifact

TESTS = Path(__file__).parents[1]

#: Publishes 40 times; each process is killed after a part of the time that it needs.
KILLS = """
import os, random, signal, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from artifact_files import export_to
import omnigraph.artifact.publishing as publishing
from omnigraph.artifact import Artifact

out, seed, exchanges = Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "True"
if not exchanges:
    publishing.exchange = lambda one, other: False
draw = random.Random(seed)
export_to(out, b"0")
start = time.perf_counter()
export_to(out, b"0")
usual = time.perf_counter() - start
killed = 0
for turn in range(1, 41):
    child = os.fork()
    if not child:
        try:
            export_to(out, b"%d" % turn)
        finally:
            os._exit(0)
    time.sleep(draw.uniform(0, 1.5 * usual))
    os.kill(child, signal.SIGKILL)
    killed += os.WIFSIGNALED(os.waitpid(child, 0)[1])
    found = int(Artifact(out).read("a.onnx").tobytes())
    assert 0 <= found <= turn, (seed, turn)
assert killed > 4
export_to(out, b"last")
assert Artifact(out).read("a.onnx").tobytes() == b"last"
assert [path.name for path in out.parent.iterdir()] == [out.name], list(out.parent.iterdir())
"""


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("exchanges", [True, False])
@pytest.mark.parametrize("name", ["net", "net.omni"])
def test_kills_at_random_moments_leave_a_whole_artifact(
    tmp_path: Path, name: str, exchanges: bool, seed: int
):
    out = tmp_path / "to" / name
    command = [sys.executable, "-c", KILLS, TESTS, out, seed, exchanges]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


#: The command itself, in processes that have imported what it needs.
COMMAND = """
import os, random, signal, sys, time
import torch
from omnigraph.artifact import Artifact
from omnigraph.cli.main import main
from omnigraph.lowering import targets

torch.set_num_threads(1)
out, seed = sys.argv[1], int(sys.argv[2])
command = ["export", "omninet", "--config", "tiny", "--set", "kind=encoder", "--programs", "encode",
           "--target", "onnx", "--out", out]
draw = random.Random(seed)

def run(delay):
    child = os.fork()
    if not child:
        sys.stdout = sys.stderr = open(os.devnull, "w")
        os._exit(main(command))
    start = time.perf_counter()
    while not os.waitpid(child, os.WNOHANG)[0]:
        if time.perf_counter() - start > delay:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return None
        time.sleep(0.002)
    return time.perf_counter() - start

usual = run(600)
for turn in range(6):
    run(draw.uniform(0, usual) if turn % 2 else usual * draw.uniform(0.9, 1.05))
    Artifact(out)
assert run(600) is not None
assert os.listdir(os.path.dirname(out)) == [os.path.basename(out)]
"""


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", ["net", "net.omni"])
def test_the_command_killed_at_random_moments_leaves_a_whole_artifact(
    tmp_path: Path, name: str, seed: int
):
    (tmp_path / "to").mkdir()
    command = [sys.executable, "-c", COMMAND, str(tmp_path / "to" / name), str(seed)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


EXPORT = ["export", "omninet", "--config", "tiny", "--set", "kind=encoder", "--programs", "encode",
          "--target", "onnx", "--out"]  # fmt: skip


def limit() -> None:
    """``ulimit -f``: what is written beyond it fails with EFBIG."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))


def test_a_limit_on_the_size_of_files_stops_the_command(tmp_path: Path):
    out = tmp_path / "to" / "net"
    export_to(out)
    command = [sys.executable, "-m", "omnigraph", *EXPORT, str(out)]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit)
    assert done.returncode == 2, done.stderr
    assert f"error: The artifact at {out} could not be written" in done.stderr
    assert "File too large" in done.stderr and "Traceback" not in done.stderr
    assert Artifact(out).read("a.onnx").tobytes() == b"graph"
    assert os.listdir(out.parent) == ["net"]


@pytest.mark.parametrize("name", ["net", "net.omni"])
def test_a_limit_on_the_size_of_files_leaves_the_old_artifact(tmp_path: Path, name: str):
    out = tmp_path / "to" / name
    export_to(out)
    code = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from artifact_files import export_to
export_to(Path(sys.argv[2]), bytes(15_000))
export_to(Path(sys.argv[2]), bytes(30_000))
"""
    command = [sys.executable, "-c", code, str(TESTS), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit)
    assert "ArtifactError" in done.stderr and "found File too large" in done.stderr
    # A single file of the first is beyond the limit, too, for its parts are padded.
    assert Artifact(out).read("a.onnx").tobytes() == (b"graph" if name != "net" else bytes(15_000))
    assert os.listdir(out.parent) == [name]
