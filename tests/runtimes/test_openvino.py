"""OpenVinoSession: what it computes, from files and from one file, from threads, and its errors."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx_ir as ir
import openvino as ov
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from omnigraph.artifact import Artifact, ProgramEntry, seal
from omnigraph.artifact.zip_file import pack
from omnigraph.contract.tolerance import Tolerance, deviation
from omnigraph.errors import DeviceError, InputError
from omnigraph.graph import Graph
from omnigraph.lowering.base import Lowered
from omnigraph.lowering.openvino.target import TARGET
from omnigraph.passes.base import run_passes
from omnigraph.program import Dim, TensorSpec
from omnigraph.runtimes import load
from omnigraph.runtimes.base import Session
from omnigraph.testing import graph_from_text, graph_with_weights

HAS_BF16 = "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
HIDDEN = 64
DIMS = {"batch": Dim(1), "past": Dim(0, 40), "sequence": Dim(1, 40)}

#: One step of attention over a cache, whose past may be empty.
STEP = """g (int64[batch,sequence] ids, float[batch,2,past,32] past_key, float[64,64] w,
           float[100,64] table, int64[4] split)
        => (float[batch,sequence,64] y, float[batch,2,all,32] present_key, int64[batch,sequence] n)
{
    x = Gather(table, ids)
    projected = MatMul(x, w)
    four = Reshape(projected, split)
    heads = Transpose<perm = [0, 2, 1, 3]>(four)
    present_key = Concat<axis = 2>(past_key, heads)
    context = Attention(heads, present_key, present_key)
    back = Transpose<perm = [0, 2, 1, 3]>(context)
    shape = Shape(x)
    flat = Reshape(back, shape)
    y = Add(x, flat)
    n = Add(ids, ids)
}
"""
SPECS = (
    TensorSpec("ids", "int64", ("batch", "sequence")),
    TensorSpec("past_key", "float32", ("batch", 2, "past", 32), default=0),
)
OUTPUTS = (
    TensorSpec("y", "float32", ("batch", "sequence", 64)),
    TensorSpec("present_key", "float32", ("batch", 2, "past + sequence", 32)),
    TensorSpec("n", "int64", ("batch", "sequence")),
)


def step_graph() -> Graph:
    rng = np.random.default_rng(0)
    constants = {
        "w": (rng.normal(size=(HIDDEN, HIDDEN)) / 8).astype(np.float32),
        "table": rng.normal(size=(100, HIDDEN)).astype(np.float32),
        "split": np.array([0, -1, 2, 32]),
    }
    return graph_with_weights(STEP, **constants)


def write(directory: Path, precision: str = "fp32") -> Path:
    """An artifact of two equal programs, "step" and "again"."""
    directory.mkdir()
    programs = [Lowered(name, step_graph(), SPECS, OUTPUTS, DIMS) for name in ("step", "again")]
    for program in programs:
        run_passes(program.graph, TARGET.pipeline(precision))
    emission = TARGET.emit(programs, directory, precision=precision, options={})
    entries = {
        p.name: ProgramEntry(
            p.inputs, p.outputs, emission.files[p.name], details=emission.details[p.name]
        ).to_dict()
        for p in programs
    }
    manifest = {
        "name": "step",
        "target": "openvino",
        "precision": precision,
        "device": emission.device,
        "requires": emission.requires,
        "default_program": "step",
        "dimensions": {name: [dim.min, dim.max] for name, dim in DIMS.items()},
        "programs": entries,
    }
    seal(directory, manifest)
    return directory


@pytest.fixture(scope="module")
def artifact(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("openvino") / "fp32")


@pytest.fixture
def session(artifact: Path):
    with load(artifact) as opened:
        yield opened


def feeds(batch: int = 2, past: int = 7, length: int = 5, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "ids": rng.integers(0, 100, (batch, length)),
        "past_key": rng.normal(size=(batch, 2, past, 32)).astype(np.float32),
    }


REFERENCE = ReferenceEvaluator(ir.to_proto(step_graph()))


def check(found: dict[str, np.ndarray], given: dict[str, np.ndarray], precision: str = "fp32"):
    # Ten roundings in a row (gather, projection, five of attention, sum), of products of 64 terms.
    tolerance = Tolerance.for_precision(precision, depth=10, contraction=64)
    names = [spec.name for spec in OUTPUTS]
    for name, expected in zip(names, REFERENCE.run(names, given), strict=True):
        assert found[name].dtype == expected.dtype
        assert deviation(found[name], expected).within(tolerance), name


# Numbers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("single_file", [False, True])
def test_runs_a_directory_and_a_single_file(
    artifact: Path, tmp_path: Path, single_file: bool
) -> None:
    path = artifact
    if single_file:
        path = tmp_path / "step.omni"
        pack(artifact, path)
    with load(path, threads=1) as session:
        for program in ("step", "again"):
            check(session.run(feeds(), program=program), feeds())
        assert session.device == "cpu"
        assert set(session.load_figures) == {"step", "again"}


@pytest.mark.parametrize(
    ("batch", "past", "length"), [(1, 0, 1), (3, 0, 17), (1, 40, 1), (2, 19, 23), (1, 1, 1)]
)
def test_sizes(session: Session, batch: int, past: int, length: int) -> None:
    given = feeds(batch, past, length)
    check(session.run(given), given)


def test_a_past_that_is_left_out_is_empty(session: Session) -> None:
    given = feeds(past=0)
    check(session.run(ids=given["ids"]), given)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_each_precision_runs_in_its_own_arithmetic(tmp_path: Path, precision: str) -> None:
    with load(write(tmp_path / precision, precision)) as session:
        check(session.run(feeds()), feeds(), precision)
        found, given = session.run(feeds())["y"], feeds()
    error = deviation(found, REFERENCE.run(["y"], given)[0]).rms
    # Not narrower either: fp32 would be off by a thousandth if OpenVINO had chosen bf16 itself.
    least = {"fp32": 0.0, "fp16": 2.0**-16, "bf16": 2.0**-12 if HAS_BF16 else 2.0**-16}
    most = {"fp32": 2.0**-18, "fp16": 2.0**-10, "bf16": 2.0**-6}
    assert least[precision] < error < most[precision]


def test_what_the_manifest_says_is_what_is_asked_of_openvino(tmp_path: Path) -> None:
    for precision, group in (("bf16", 0), ("int8-dynamic", 128), ("int4-weights", 32)):
        with load(write(tmp_path / precision, precision)) as session:
            config = session._config(session.entry(None))
        assert config["INFERENCE_PRECISION_HINT"] == "bf16"
        assert config.get("DYNAMIC_QUANTIZATION_GROUP_SIZE") == group


def test_an_artifact_that_says_nothing_is_computed_in_fp32(tmp_path: Path) -> None:
    path = write(tmp_path / "old")
    manifest = json.loads((path / "manifest.json").read_text())
    for program in manifest["programs"].values():
        program["details"] = {}
    seal(path, manifest)
    with load(path) as session:
        check(session.run(feeds()), feeds())
        assert session._config(session.entry(None))["INFERENCE_PRECISION_HINT"] == "f32"


def test_outputs_stay_when_more_is_run(session: Session) -> None:
    given = [feeds(seed=seed, length=3 + seed % 3) for seed in range(6)]
    kept = [session.run(g) for g in given]
    before = [{name: array.copy() for name, array in out.items()} for out in kept]
    for g in given:
        session.run(g)
    for g, out, copy in zip(given, kept, before, strict=True):
        check(out, g)
        for name, array in out.items():
            np.testing.assert_array_equal(array, copy[name])


def test_outputs_outlive_the_session(artifact: Path) -> None:
    with load(artifact) as session:
        out = session.run(feeds())
    check(out, feeds())
    with pytest.raises(DeviceError, match="closed"):
        session.run(feeds())


def test_outputs_share_no_memory_with_inputs(tmp_path: Path) -> None:
    """Not even an output that is an input passed through."""
    graph = graph_from_text(
        "g (float[n] x) => (float[n] y, float[n] z, float[n] w) "
        "{ y = Identity(x) z = Neg(x) w = Identity(z) }"
    )
    names = ("x", "y", "z", "w")
    x, *outputs = (TensorSpec(name, "float32", ("n",)) for name in names)
    lowered = Lowered("forward", graph, (x,), tuple(outputs), {})
    emission = TARGET.emit([lowered], tmp_path, precision="fp32", options={})
    entry = ProgramEntry((x,), tuple(outputs), emission.files["forward"])
    manifest = {
        "name": "passed",
        "target": "openvino",
        "precision": "fp32",
        "device": "cpu",
        "requires": {},
        "default_program": "forward",
        "dimensions": {"n": [1, None]},
        "programs": {"forward": entry.to_dict()},
    }
    seal(tmp_path, manifest)
    given = np.arange(5, dtype=np.float32)
    with load(tmp_path) as session:
        out = session.run(x=given)
        for name, sign in (("y", 1), ("z", -1), ("w", -1)):
            np.testing.assert_array_equal(out[name], sign * given)
            out[name][:] = 9
        np.testing.assert_array_equal(given, np.arange(5))
        assert not np.shares_memory(out["z"], out["w"])


# Inputs -------------------------------------------------------------------------------------------


def test_inputs_of_any_layout(session: Session) -> None:
    given = feeds()
    read_only = given["past_key"].copy()
    read_only.flags.writeable = False
    strided = np.repeat(given["ids"], 2, axis=1)[:, ::2]
    assert not strided.flags.c_contiguous
    check(session.run(ids=strided, past_key=read_only), given)
    check(session.run(ids=given["ids"], past_key=np.asfortranarray(given["past_key"])), given)
    tensors = {name: torch.from_numpy(array) for name, array in given.items()}
    check(session.run(tensors), given)


def test_wrong_inputs_are_refused(session: Session) -> None:
    with pytest.raises(InputError, match=r"'ids'.*\n?.*int64.*int32"):
        session.run(ids=feeds()["ids"].astype(np.int32))
    with pytest.raises(InputError, match=r"'past'.*0:40.*41"):
        session.run(feeds(past=41))


# Threads ------------------------------------------------------------------------------------------


def test_eight_threads_get_what_one_gets(session: Session) -> None:
    given = [feeds(1 + i % 3, i % 11, 1 + i % 7, seed=i) for i in range(64)]
    alone = [session.run(g) for g in given]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(session.run, given, timeout=60))
    for one, other in zip(alone, together, strict=True):
        for name, array in one.items():
            np.testing.assert_array_equal(array, other[name])


# What is not here ---------------------------------------------------------------------------------


def test_a_device_that_is_not_here(artifact: Path) -> None:
    with pytest.raises(DeviceError, match=r"'tpu'.*auto or cpu"):
        load(artifact, device="tpu")


def test_a_damaged_model_names_the_program(artifact: Path, tmp_path: Path) -> None:
    manifest = dict(Artifact(artifact).manifest)
    for name in ("step.xml", "weights.bin", "again.xml"):
        (tmp_path / name).write_bytes((artifact / name).read_bytes())
    (tmp_path / "step.xml").write_text("<net></net>")
    seal(tmp_path, {k: v for k, v in manifest.items() if k not in ("files", "integrity")})
    with pytest.raises(DeviceError, match="could not load program 'step'") as caught:
        load(tmp_path)
    assert isinstance(caught.value.__cause__, RuntimeError)


def run_apart(code: str, *arguments: str) -> str:
    """What Python code of its own process prints."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout


def test_without_openvino_the_hint_says_what_to_install(artifact: Path) -> None:
    code = (
        "import sys; sys.modules['openvino'] = None  # as if it were not installed\n"
        "from omnigraph.errors import DeviceError\n"
        "from omnigraph.runtimes import load\n"
        "try: load(sys.argv[1])\n"
        "except DeviceError as error: print(error)\n"
    )
    assert "pip install 'omnigraph[openvino]'" in run_apart(code, str(artifact))


def test_loading_and_running_needs_no_torch_no_onnx_and_no_network(artifact: Path) -> None:
    code = (
        "import sys\n"
        "def no_network(event, _):\n"
        "    if event in ('socket.connect', 'socket.getaddrinfo', 'socket.sendto'):\n"
        "        print('network', event)\n"
        "sys.addaudithook(no_network)\n"
        "import numpy as np\n"
        "from omnigraph.runtimes import load\n"
        "with load(sys.argv[1]) as session:\n"
        "    print(session.run(ids=np.ones((1, 3), np.int64))['y'].shape)\n"
        "print(sorted({'torch', 'onnx', 'onnx_ir'} & set(sys.modules)))\n"
    )
    assert run_apart(code, str(artifact)).split("\n")[:2] == ["(1, 3, 64)", "[]"]
