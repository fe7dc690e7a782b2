"""A program that fails in its runtime while it is exported: sizes and module are named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from omnigraph.artifact import ProgramEntry, seal
from omnigraph.contract.comparison import Bounds, Openers, check_artifact
from omnigraph.contract.reference import Reference
from omnigraph.contract.tolerance import Tolerance
from omnigraph.errors import InputError, RunError
from omnigraph.graph import MODULE_KEY, SOURCE_KEY, places
from omnigraph.lowering import Lowered, find_target
from omnigraph.passes.base import run_passes
from omnigraph.program import Case, TensorSpec
from omnigraph.testing import graph_from_text

#: Pairs of neighbours, for an even number of frames alone.
PAIRS = """g (float[batch,frames] x) => (float[batch,half,2] y) {
    batch = Shape<start = 0, end = 1>(x)
    rest = Constant<value_ints = [-1, 2]>()
    shape = Concat<axis = 0>(batch, rest)
    y = Reshape(x, shape)
}"""
X = TensorSpec("x", "float32", ("batch", "frames"))
Y = TensorSpec("y", "float32", ("batch", "half", 2))
SIZES = [(1, 4), (3, 8), (3, 7), (1, 5), (1, 10)]


def reference(batch: int, frames: int) -> Reference:
    x = np.random.default_rng(frames).normal(size=(batch, frames)).astype(np.float32)
    y = x[:, : frames // 2 * 2].reshape(batch, -1, 2)
    return Reference(
        Case(f"{batch}x{frames}", {"batch": batch, "frames": frames}), {"x": x}, {"y": y}
    )


def check(target_name: str, directory: Path, sets: list[Reference], x: TensorSpec = X) -> None:
    """Compare an artifact of the Graph with references, as an export does."""
    target, graph = find_target(target_name), graph_from_text(PAIRS)
    for node in graph.graph:
        node.name = f"node_{node.op_type}"
        node.metadata_props.update({MODULE_KEY: "merge.0", SOURCE_KEY: "swin.py:7"})
    run_passes(graph, target.pipeline("fp32"))
    lowered = Lowered("forward", graph, (x,), (Y,), {})
    emission = target.emit([lowered], directory, precision="fp32", options={})
    files, details = emission.files["forward"], emission.details.get("forward", {})
    manifest = {
        "name": "pairs",
        "target": target_name,
        "precision": "fp32",
        "device": emission.device,
        "requires": dict(emission.requires),
        "default_program": "forward",
        "dimensions": {"batch": [1, None], "frames": [1, None]},
        "programs": {"forward": ProgramEntry((x,), (Y,), files, details=details).to_dict()},
    }
    seal(directory, manifest)
    tolerance = Tolerance(1e-6, 1e-5)
    bounds = {"forward": Bounds(tolerance, tolerance)}
    openers = Openers(target.run_emitted, target.run_unrounded, target.constant_hashes)
    check_artifact(directory, {"forward": sets}, bounds, openers, {"forward": places(graph)})


@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_the_dimension_the_sizes_and_the_module_are_named(target: str, tmp_path: Path):
    with pytest.raises(RunError) as caught:
        check(target, tmp_path, [reference(*sizes) for sizes in SIZES])
    message = str(caught.value)
    for part in (
        "Program 'forward' does not run at frames=7 (input set '3x7')",
        "no artifact was written",
        "Reshape 'node_Reshape' of module 'merge.0' (swin.py:7)",
        "'frames' fails at 5, 7, and runs at 4, 8, 10",
        "hint: change the module named here, or export with --dynamic frames=MIN:MAX",
    ):
        assert part in message
    assert "verify" not in message
    assert isinstance(caught.value.__cause__, RunError)


def test_where_no_dimension_tells_them_apart_all_sizes_are_named(tmp_path: Path):
    with pytest.raises(RunError) as caught:
        check("onnx", tmp_path, [reference(2, 7), reference(1, 5)])
    assert "does not run at batch=2, frames=7 (input set '2x7')" in str(caught.value)
    assert "2 of 2 input sets fail" in str(caught.value)
    assert "or export with other --dynamic ranges" in str(caught.value)


def test_what_runs_passes_and_a_refused_input_stays_one(tmp_path: Path):
    for name in ("whole", "refused"):
        (tmp_path / name).mkdir()
    check("onnx", tmp_path / "whole", [reference(1, 4), reference(3, 8)])
    wide = TensorSpec("x", "float64", X.shape)
    with pytest.raises(InputError, match="wrong dtype"):
        check("onnx", tmp_path / "refused", [reference(1, 4)], wide)
