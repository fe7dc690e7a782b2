"""ONNX files that run at some sizes and values only: found by running them, then exported."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import omnigraph
from omnigraph.cli.main import main
from omnigraph.errors import TraceError
from omnigraph.frontends.onnx_program import program_from_onnx
from omnigraph.program import Case, Dim
from omnigraph.tracing.trace import output_specs, trace

HEAD = '<ir_version: 10, opset_import: ["": 18]>\n'
DRAW = np.random.default_rng(0)


def write(path: Path, text: str, **weights: np.ndarray) -> Path:
    """An ONNX file from its text, with weights by name."""
    model = onnx.parser.parse_model(HEAD + text)
    for name, array in weights.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    onnx.save(model, path)
    return path


def normal(*shape: int) -> np.ndarray:
    return DRAW.standard_normal(shape).astype(np.float32)


FILES = {
    "a window larger than a small image": (
        "net (float[N, 1, h, w] x) => (float[N, 1, a, b] y) "
        "{ y = AveragePool<kernel_shape = [3, 2], strides = [3, 2]>(x) }",
        {},
        {"h": Dim(3), "w": Dim(2)},
    ),
    "a height that is one after a pool": (
        """net (float[N, 1, h, w] x) => (float[N, 1, b] y) {
            p = AveragePool<kernel_shape = [3, 2], strides = [3, 2]>(x)
            y = Squeeze(p, axis)
        }""",
        {"axis": np.array([2])},
        {"h": Dim(3, 5), "w": Dim(2)},
    ),
    "an image that is halved and doubled": (
        """net (float[N, 2, h, w] x) => (float[N, 2, h, w] y) {
            a = Conv<strides = [2, 2], pads = [1, 1, 1, 1]>(x, k)
            b = Conv<strides = [2, 2], pads = [1, 1, 1, 1]>(a, k)
            c = Resize<mode = "nearest">(b, , scales)
            d = Add(a, c)
            e = Resize<mode = "nearest">(d, , scales)
            y = Add(x, e)
        }""",
        {"k": normal(2, 2, 3, 3), "scales": np.array([1, 1, 2, 2], np.float32)},
        {"h": Dim(4, None, 4), "w": Dim(4, None, 4)},
    ),
    "reflected padding": (
        'net (float[N, samples] x) => (float[N, b] y) { y = Pad<mode = "reflect">(x, pads) }',
        {"pads": np.array([0, 200, 0, 64])},
        {"samples": Dim(201)},
    ),
    "a batch of one": (
        """net (int64[N, T] ids) => (float[1, T, 4] y) {
            e = Gather(table, ids)
            y = Reshape(e, shape)
        }""",
        {"table": normal(30, 4), "shape": np.array([1, 0, 4])},
        {},
    ),
}


@pytest.mark.parametrize("target", ["onnx", "openvino"])
@pytest.mark.parametrize("case", FILES)
def test_files_that_run_at_some_sizes(tmp_path: Path, case: str, target: str):
    text, weights, ranges = FILES[case]
    path = write(tmp_path / "net.onnx", text, **weights)
    program = program_from_onnx(path)
    assert {**program.dims, **ranges} == program.dims
    (report,) = omnigraph.export(path, target, out=tmp_path / "net.omni")
    assert report.checks
    said = " ".join(report.remarks.limits)
    for name, range_ in ranges.items():
        assert f"dimension {name!r} of program 'forward' can be {range_}: the file runs" in said
    assert ("dimension 'batch' of program 'forward' can be 1:1:" in said) is (not ranges)


def test_a_batch_of_one_is_fixed(tmp_path: Path):
    text, weights, _ = FILES["a batch of one"]
    program = program_from_onnx(write(tmp_path / "net.onnx", text, **weights))
    assert program.inputs[0].shape == (1, "sequence")
    assert program.fixed == {"batch": 1}


def test_first_axes_under_several_names_are_one_dimension(tmp_path: Path):
    path = write(
        tmp_path / "net.onnx",
        """net (float[unk__7, 5] one, float[unk__8, 5] two, float[unk__9, 3] three)
            => (float[unk__10, 13] y) { y = Concat<axis = 1>(one, two, three) }""",
    )
    program = program_from_onnx(path)
    assert {spec.shape[0] for spec in program.inputs} == {"unk__7"}
    (report,) = omnigraph.export(path, "onnx", out=tmp_path / "net.omni")
    with omnigraph.load(report.path) as session:
        found = session.run(one=normal(4, 5), two=normal(4, 5), three=normal(4, 3))
        assert found["y"].shape == (4, 13)
        with pytest.raises(omnigraph.OmniGraphError, match="unk__7"):
            session.run(one=normal(4, 5), two=normal(2, 5), three=normal(4, 3))


def test_sizes_below_zero_are_open(tmp_path: Path):
    path = write(tmp_path / "net.onnx", "net (float[N, 4] x) => (float[N, 4] y) { y = Relu(x) }")
    model = onnx.load(path)
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = -1
    onnx.save(model, path)
    assert program_from_onnx(path).inputs[0].shape == ("batch", 4)
    (report,) = omnigraph.export(path, "onnx", out=tmp_path / "net.omni")
    assert report.checks
    assert report.remarks.limits == ()


@pytest.mark.parametrize("declared", ["N", "7", "N, T", "N, T, 9"])
def test_a_wrong_shape_of_an_output_is_left_out(tmp_path: Path, declared: str):
    path = write(
        tmp_path / "net.onnx",
        f"""net (float[N, T, 6] x) => (float[{declared}] y) {{
            a = MatMul(x, w)
            dims = Shape(a)
            y = Reshape(a, dims)
        }}""",
        w=normal(6, 8),
    )
    (spec,) = output_specs(trace(program_from_onnx(path)))
    assert len(spec.shape) == 3 and 9 not in spec.shape
    (report,) = omnigraph.export(path, "onnx", out=tmp_path / "net.omni")
    assert report.checks


CLASSES = """net (int32[N, 64] bytes) => (float[N, 7] y) {
    each = Unsqueeze(bytes, last)
    equal = Equal(each, codes)
    hot = Cast<to = 1>(equal)
    dense = MatMul(hot, table)
    cube = Mul(dense, dense)
    third = Mul(cube, dense)
    scaled = Mul(third, c)
    inner = Add(dense, scaled)
    slope = Mul(inner, s)
    bent = Tanh(slope)
    raised = Add(bent, one)
    half = Mul(raised, point)
    gelu = Mul(dense, half)
    mean = ReduceMean(gelu, rows)
    squares = Mul(gelu, gelu)
    squared = ReduceMean(squares, rows)
    meansq = Mul(mean, mean)
    variance = Sub(squared, meansq)
    zero = Max(variance, none)
    safe = Add(zero, eps)
    root = Sqrt(safe)
    centred = Sub(gelu, mean)
    normed = Div(centred, root)
    top = ReduceMax<keepdims = 0>(normed, rows)
    logits = MatMul(top, head)
    y = Softmax<axis = 1>(logits)
}"""


@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_codes_that_are_compared_are_all_drawn(tmp_path: Path, target: str):
    """With two codes alone, E[x²] - E[x]² loses all its digits, which is no fault of a target."""
    path = write(
        tmp_path / "net.onnx",
        CLASSES,
        last=np.array([-1]),
        codes=np.arange(257, dtype=np.int32).reshape(1, 1, 257),
        table=normal(257, 16),
        c=np.float32(0.044715),
        s=np.float32(0.7978845608),
        one=np.float32(1),
        point=np.float32(0.5),
        rows=np.array([1]),
        none=np.float32(0),
        eps=np.float32(1e-6),
        head=normal(16, 7),
    )
    program = program_from_onnx(path)
    drawn = program.make_inputs(Case("many", {"N": 50}))["bytes"]
    assert (int(drawn.min()), int(drawn.max()), len(drawn.unique())) == (0, 256, 257)
    (report,) = omnigraph.export(path, target, out=tmp_path / "net.omni")
    assert report.checks


def test_ids_that_come_as_floats_are_rows_of_their_table(tmp_path: Path):
    path = write(
        tmp_path / "net.onnx",
        """net (float[N, 21] codes) => (float[N, 21, 4] y) {
            ids = Cast<to = 6>(codes)
            y = Gather(table, ids)
        }""",
        table=normal(100, 4),
    )
    program = program_from_onnx(path)
    drawn = program.make_inputs(Case("many", {"N": 50}))["codes"]
    assert (float(drawn.min()), float(drawn.max())) == (0, 99)


RATES = """net (float[N, T] wave, int64 rate) => (float[N, U] y) {
    fast = Equal(rate, usual)
    y = If(fast) <
        then_branch = a () => (float[N, U] p) { p = Pad<mode = "reflect">(wave, wide) },
        else_branch = b () => (float[N, U] q) { q = Pad<mode = "reflect">(wave, narrow) }
    >
}"""


def test_a_number_that_chooses_a_branch_chooses_both(tmp_path: Path):
    weights = {
        "usual": np.array(16000),
        "wide": np.array([0, 64, 0, 64]),
        "narrow": np.array([0, 32, 0, 32]),
    }
    path = write(tmp_path / "net.onnx", RATES, **weights)
    program = program_from_onnx(path)
    sizes = {"N": 2, "T": 70}
    rates = {int(program.make_inputs(Case("x", sizes, seed=s))["rate"]) for s in range(4)}
    assert rates == {16000, 8000}
    assert program.dims["T"] == Dim(65)
    slow = program_from_onnx(path, inputs={"rate": np.array(8000)})
    assert slow.dims["T"] == Dim(33)


LIMITED = """net (float[N, 4] x, int64[N, 2] places) => (float[N, 2] y) {
    limited = Sub(places, hundred)
    y = GatherElements<axis = 1>(x, limited)
}"""


def test_examples_on_the_command_line(tmp_path: Path, capsys):
    path = write(tmp_path / "net.onnx", LIMITED, hundred=np.array(100))
    with pytest.raises(TraceError, match=r"nor at other sizes[\s\S]*--example FILE.npz"):
        program_from_onnx(path)
    export = ["export", str(path), "--target", "onnx", "--out", str(tmp_path / "net.omni")]
    assert main(export) == 2
    example = tmp_path / "example.npz"
    np.savez(example, places=np.array([[100, 103], [101, 102]]))
    assert main([*export, "--example", str(example)]) == 0
    assert (tmp_path / "net.omni").exists()
    capsys.readouterr()
    assert main([*export, "--example", str(path)]) == 2
    assert "holds no example inputs" in capsys.readouterr().err
    omninet = ["export", "omninet", "--target", "onnx", "--example", str(example)]
    assert main(omninet) == 2
    assert "makes its own example inputs" in capsys.readouterr().err
