"""The openvino target: what it refuses, what it writes, and that OpenVINO computes it rightly."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import onnx_ir as ir
import openvino as ov
import pytest
from onnx.reference import ReferenceEvaluator
from onnx_ir.passes.common import ShapeInferencePass

from omnigraph.contract import Tolerance, deviation
from omnigraph.errors import CompileError, UnsupportedError, UsageError
from omnigraph.lowering import find_target
from omnigraph.lowering.base import Emission, Lowered
from omnigraph.lowering.openvino import TARGET
from omnigraph.passes.base import MODULE_KEY, run_passes
from omnigraph.program import Dim, TensorSpec

CORE = ov.Core()
HAS_BF16 = "BF16" in CORE.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
HIDDEN = 64

BLOCK = """
int64[batch, sequence] ids, int64[batch, sequence] mask => float[batch, sequence, 64] hidden
{
    x = Gather(embedding, ids)
    normed = LayerNormalization<axis = -1>(x, scale, shift)
    up = MatMul(normed, w_up)
    active = Gelu(up)
    down = MatMul(active, w_down)
    ones = Cast<to = 1>(mask)
    kept = Unsqueeze(ones, last)
    masked = Mul(down, kept)
    hidden = Add(x, masked)
}
"""


def weights(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {
        "embedding": (100, HIDDEN),
        "scale": (HIDDEN,),
        "shift": (HIDDEN,),
        "w_up": (HIDDEN, 4 * HIDDEN),
        "w_down": (4 * HIDDEN, HIDDEN),
    }
    made = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return {**made, "last": np.array([-1])}


def program(
    text: str,
    constants: Mapping[str, np.ndarray] | None = None,
    *,
    name: str = "forward",
    dims: Mapping[str, Dim] | None = None,
) -> Lowered:
    """A program of ONNX text, "inputs => outputs { nodes }", with named constants."""
    types = {"float32": "float", "int64": "int64", "bool": "bool"}
    signature, body = text.strip().split("{", 1)
    inputs, outputs = signature.split("=>")
    constants = constants or {}
    typed = [
        f"{types[a.dtype.name]}[{','.join(map(str, a.shape))}] {n}" for n, a in constants.items()
    ]
    parts = ", ".join(part for part in (inputs.strip(), *typed) if part)
    graph = ir.from_onnx_text(
        f'<ir_version: 10, opset_import: ["" : 24]> {name} ({parts}) => ({outputs}) {{{body}'
    )
    for key, array in constants.items():
        value = next(v for v in graph.graph.inputs if v.name == key)
        graph.graph.inputs.remove(value)
        value.const_value = ir.tensor(array, name=key)
        graph.graph.register_initializer(value)
    ShapeInferencePass()(graph)
    for node in graph.graph.all_nodes():
        node.metadata_props[MODULE_KEY] = "block"
    specs = [
        tuple(_spec(value) for value in values)
        for values in (graph.graph.inputs, graph.graph.outputs)
    ]
    return Lowered(name, graph, specs[0], specs[1], dims or {})


def _spec(value: ir.Value) -> TensorSpec:
    assert value.shape is not None and value.dtype is not None and value.name is not None
    shape = tuple(d if isinstance(d, int) else str(d.value) for d in value.shape)
    return TensorSpec(value.name, value.dtype.numpy().name, shape)


def block(name: str = "forward") -> Lowered:
    dims = {"batch": Dim(1), "sequence": Dim(1, 512)}
    return program(BLOCK, weights(), name=name, dims=dims)


def emit(programs: Sequence[Lowered], directory: Path, precision: str = "fp32") -> Emission:
    """Take programs all the way, as an export does."""
    directory.mkdir(exist_ok=True)
    for lowered in programs:
        run_passes(lowered.graph, TARGET.pipeline(precision))
        TARGET.check_nodes(lowered.name, lowered.graph, precision)
    return TARGET.emit(programs, directory, precision=precision, options={})


def read(directory: Path, name: str = "forward") -> ov.Model:
    weights_file = directory / "weights.bin"
    if not weights_file.exists():
        return CORE.read_model(directory / f"{name}.xml")
    return CORE.read_model(directory / f"{name}.xml", weights_file)


def compiled(directory: Path, name: str = "forward", hint: str = "f32") -> ov.CompiledModel:
    config = {"INFERENCE_PRECISION_HINT": hint}
    return CORE.compile_model(read(directory, name), "CPU", config)


def run(model: ov.CompiledModel, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    result = model(dict(feeds))
    return {port.get_any_name(): result[port] for port in model.outputs}


def digests(directory: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in directory.iterdir()}


def block_feeds(batch: int = 2, length: int = 23) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {
        "ids": rng.integers(0, 100, (batch, length)),
        "mask": rng.integers(0, 2, (batch, length)),
    }


def block_reference(feeds: Mapping[str, np.ndarray]) -> np.ndarray:
    proto = ir.to_proto(block().graph)
    return ReferenceEvaluator(proto).run(["hidden"], dict(feeds))[0]


# What is written ----------------------------------------------------------------------------------


def test_registered() -> None:
    assert find_target("openvino") is TARGET
    assert TARGET.unusable() is None
    with pytest.raises(UnsupportedError, match="fp32 or fp16 or bf16"):
        TARGET.check_precision("int8")
    with pytest.raises(UsageError, match="no option 'compute'"):
        TARGET.check_options({"compute": "sm89"})


def test_files_and_requirements(tmp_path: Path) -> None:
    emission = emit([block("encode"), block("forward")], tmp_path)
    assert emission.files == {
        "encode": {"model": "encode.xml", "weights": "weights.bin"},
        "forward": {"model": "forward.xml", "weights": "weights.bin"},
    }
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "encode.xml",
        "forward.xml",
        "weights.bin",
    ]
    assert emission.device == "cpu" and emission.executes_here
    assert emission.requires["openvino"].startswith(">=2026.4")


def test_inputs_and_outputs_are_those_of_the_program(tmp_path: Path) -> None:
    emit([block()], tmp_path)
    model = read(tmp_path)
    assert [(p.get_any_name(), p.get_element_type()) for p in model.inputs] == [
        ("ids", ov.Type.i64),
        ("mask", ov.Type.i64),
    ]
    assert [p.get_names() for p in model.outputs] == [{"hidden"}]
    for port in model.inputs:  # the sequence is bounded, the batch is not
        assert port.partial_shape == ov.PartialShape([-1, ov.Dimension(1, 512)])


def test_sums_of_dimensions_are_bounded_by_their_terms(tmp_path: Path) -> None:
    text = "float[past + sequence] a, float[past + 1] b, float[free + past] c => float[n] y"
    lowered = program(
        text.replace("past + sequence", "p").replace("past + 1", "q").replace("free + past", "r")
        + "{ y = Concat<axis = 0>(a, b, c) }"
    )
    shapes = [("past + sequence",), ("past + 1",), ("free + past",)]
    inputs = tuple(
        TensorSpec(spec.name, spec.dtype, shape)
        for spec, shape in zip(lowered.inputs, shapes, strict=True)
    )
    dims = {"past": Dim(0, 6), "sequence": Dim(1, 4)}
    emit([Lowered("forward", lowered.graph, inputs, lowered.outputs, dims)], tmp_path)
    shapes_found = [port.partial_shape for port in read(tmp_path).inputs]
    assert shapes_found == [
        ov.PartialShape([ov.Dimension(1, 10)]),
        ov.PartialShape([ov.Dimension(1, 7)]),
        ov.PartialShape([-1]),
    ]


def test_an_input_that_nothing_needs_stays(tmp_path: Path) -> None:
    emit([program("float[n] x, int64[n, 2] unused => float[n] y { y = Neg(x) }")], tmp_path)
    model = compiled(tmp_path)
    assert {port.get_any_name() for port in model.inputs} == {"x", "unused"}
    found = run(model, {"x": np.ones(3, np.float32), "unused": np.zeros((3, 2), np.int64)})
    np.testing.assert_array_equal(found["y"], -np.ones(3))


def test_outputs_of_one_value_keep_their_names(tmp_path: Path) -> None:
    text = "float[n] x => float[n] y, float[n] z, float[n] w { y = Neg(x) z = Identity(y) "
    lowered = program(text + "w = Identity(x) }")
    TARGET.emit([lowered], tmp_path, precision="fp32", options={})
    found = run(compiled(tmp_path), {"x": np.ones(3, np.float32)})
    assert {name: array[0] for name, array in found.items()} == {"y": -1, "z": -1, "w": 1}


@pytest.mark.parametrize("precision", TARGET.precisions)
def test_numbers_and_sizes_of_each_precision(tmp_path: Path, precision: str) -> None:
    emit([block()], tmp_path, precision)
    model = compiled(tmp_path, hint="bf16" if precision == "bf16" else "f32")
    # Six roundings in a row (two products, a norm of three, one sum), of products of 256 terms.
    tolerance = Tolerance.for_precision(TARGET.rounding(precision), depth=6, contraction=256)
    for batch, length in ((1, 1), (3, 7), (2, 65)):
        feeds = block_feeds(batch, length)
        found = run(model, feeds)["hidden"]
        assert deviation(found, block_reference(feeds)).within(tolerance)
    stored = (tmp_path / "weights.bin").stat().st_size
    full = sum(a.nbytes for a in weights().values())
    # Each weight begins at a page, so a few are wider apart than they are long.
    expected = full if precision == "fp32" else full / 2
    assert expected * 0.98 < stored < expected + 8 * 4096


def test_bf16_is_what_runs(tmp_path: Path) -> None:
    emit([block()], tmp_path, "bf16")
    ran = {
        node.get_rt_info()["runtimePrecision"].astype(str)
        for node in compiled(tmp_path, hint="bf16").get_runtime_model().get_ops()
        if node.get_rt_info()["layerType"].astype(str) == "FullyConnected"
    }
    assert ran == {"bf16" if HAS_BF16 else "f32"}


def test_weights_of_two_programs_are_stored_once(tmp_path: Path) -> None:
    emit([block("encode")], tmp_path / "one")
    emit([block("encode"), block("forward")], tmp_path / "two")
    one, two = (tmp_path / d / "weights.bin" for d in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    feeds = block_feeds()
    for name in ("encode", "forward"):
        found = run(compiled(tmp_path / "two", name), feeds)["hidden"]
        np.testing.assert_allclose(found, block_reference(feeds), rtol=1e-4, atol=1e-4)


def test_constants_are_aligned_and_within_the_file(tmp_path: Path) -> None:
    emit([block()], tmp_path)
    end = (tmp_path / "weights.bin").stat().st_size
    layers = ElementTree.parse(tmp_path / "forward.xml").iter("layer")
    constants = {
        layer.get("name"): layer.find("data").attrib  # type: ignore[union-attr]
        for layer in layers
        if layer.get("type") == "Const"
    }
    assert {"embedding", "w_up", "w_down"} <= constants.keys()
    for data in constants.values():
        assert int(data["offset"]) % 64 == 0
        assert int(data["offset"]) + int(data["size"]) <= end
    for name in ("embedding", "w_up"):
        data = constants[name]
        stored = np.memmap(tmp_path / "weights.bin", np.float32, "r", int(data["offset"]))
        np.testing.assert_array_equal(
            stored[: weights()[name].size].reshape(weights()[name].shape), weights()[name]
        )


@pytest.mark.parametrize(("precision", "expected"), [("fp32", 0), ("fp16", 0), ("bf16", 3)])
def test_halves_that_are_computed_with_stay_halves(
    tmp_path: Path, precision: str, expected: int
) -> None:
    emit([block()], tmp_path, precision)
    layers = ElementTree.parse(tmp_path / "forward.xml").iter("layer")
    marked = [e for e in layers if e.find("rt_info/attribute[@name='decompression']") is not None]
    assert [layer.get("type") for layer in marked] == ["Convert"] * expected


def test_same_bytes_twice_in_a_process(tmp_path: Path) -> None:
    emit([block("encode"), block()], tmp_path / "one")
    CORE.compile_model(read(tmp_path / "one"), "CPU")  # moves OpenVINO's counters of names
    emit([block("encode"), block()], tmp_path / "two")
    assert digests(tmp_path / "one") == digests(tmp_path / "two")


def test_same_bytes_in_another_process(tmp_path: Path) -> None:
    emit([block()], tmp_path / "here")
    code = (
        "import importlib.util, pathlib, sys\n"
        "spec = importlib.util.spec_from_file_location('there', sys.argv[1])\n"
        "there = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(there)\n"
        "there.emit([there.block()], pathlib.Path(sys.argv[2]))\n"
    )
    subprocess.run(
        [sys.executable, "-c", code, __file__, str(tmp_path / "there")],
        check=True,
        env={"PYTHONHASHSEED": "7"},
    )
    assert digests(tmp_path / "here") == digests(tmp_path / "there")


# Attention ----------------------------------------------------------------------------------------

HEADS, HEAD = 4, 16
_TENSORS = "float[b,4,t,16] q, float[b,{kv},s,16] k, float[b,{kv},s,16] v"
#: What each case adds to the inputs, and to the node.
ATTENTION = {
    "none": ("", "", ""),
    "none, grouped": ("", "", ""),
    "none, scaled": ("", "<scale = 0.3>", ""),
    "bool": (", bool[b,1,t,s] mask", "", ", mask"),
    "bool, one row": (", bool[b,1,1,s] mask", "", ", mask"),
    "bool, no batch": (", bool[t,s] mask", "", ", mask"),
    "float": (", float[b,4,t,s] mask", "", ", mask"),
    "causal": ("", "<is_causal = 1>", ""),
    "causal, bool": (", bool[b,1,t,s] mask", "<is_causal = 1>", ", mask"),
    "causal, float": (", float[b,4,t,s] mask", "<is_causal = 1>", ", mask"),
    "softcap": (", float[b,4,t,s] mask", "<softcap = 5.0>", ", mask"),
}
#: Batch, queries, keys: one query, one key, more keys than queries, past a vector of 16, and back.
LENGTHS = [(1, 1, 1), (3, 1, 7), (1, 5, 5), (3, 3, 16), (2, 7, 29), (1, 1, 64), (2, 65, 130)]


def attention(case: str) -> Lowered:
    extra, attributes, argument = ATTENTION[case]
    tensors = _TENSORS.format(kv=2 if "grouped" in case else HEADS)
    return program(
        f"{tensors}{extra} => float[b,4,t,16] y {{ y = Attention{attributes}(q, k, v{argument}) }}"
    )


def attention_feeds(lowered: Lowered, batch: int, queries: int, keys: int) -> dict[str, Any]:
    """Random tensors, and a mask that hides one whole row (all of it, where it has one row)."""
    rng = np.random.default_rng(queries * keys)
    sizes = {"b": batch, "t": queries, "s": keys}
    feeds: dict[str, Any] = {}
    for spec in lowered.inputs:
        shape = [d if isinstance(d, int) else sizes[d] for d in spec.shape]
        feeds[spec.name] = rng.normal(size=shape).astype(np.float32)
    if "mask" in feeds:
        hidden = feeds["mask"] > 0.5
        hidden.reshape(-1, *hidden.shape[-2:])[0, -1] = True
        is_bool = lowered.inputs[-1].dtype == "bool"
        feeds["mask"] = ~hidden if is_bool else np.where(hidden, -np.inf, feeds["mask"])
    return feeds


def attention_reference(
    feeds: Mapping[str, np.ndarray], case: str
) -> tuple[np.ndarray, np.ndarray]:
    """Attention-24 in float64, [B, H, T, D], and the rows that see no key, [B, H, T]."""
    query, key, value = (np.float64(feeds[name]) for name in "qkv")
    key, value = (a.repeat(HEADS // a.shape[1], axis=1) for a in (key, value))
    scores = query @ key.swapaxes(-1, -2) * (0.3 if "scaled" in case else HEAD**-0.5)
    if "softcap" in case:
        scores = np.tanh(scores / 5.0) * 5.0
    mask = feeds.get("mask")
    if mask is not None:
        scores = np.where(mask, scores, -np.inf) if mask.dtype == bool else scores + mask
    if "causal" in case:
        later = np.triu(np.ones(scores.shape[-2:], bool), 1)
        scores = np.where(later, -np.inf, scores)
    empty = np.isneginf(scores).all(-1)
    weight = np.exp(scores - np.where(empty, 0, scores.max(-1))[..., None])
    total = weight.sum(-1, keepdims=True)
    return np.divide(weight, total, out=np.zeros_like(weight), where=total > 0) @ value, empty


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("case", ATTENTION)
def test_attention(tmp_path: Path, case: str, precision: str) -> None:
    lowered = attention(case)
    emit([lowered], tmp_path, precision)
    ops = Counter(op.get_type_name() for op in read(tmp_path).get_ops())
    assert ops["ScaledDotProductAttention"] == (0 if case == "softcap" else 1)
    model = compiled(tmp_path, hint="f32" if precision == "fp32" else "bf16")
    # Five roundings (two products, scale, softmax, mask), of inputs that bf16 rounds as well; a
    # sum of 130 products. Scores of a few units double their own error when exp is taken of them.
    tolerance = Tolerance.for_precision(precision, depth=20, contraction=130)
    for lengths in LENGTHS:
        feeds = attention_feeds(lowered, *lengths)
        reference, empty = attention_reference(feeds, case)
        found = run(model, feeds)["y"]
        assert deviation(found, reference).within(tolerance), (lengths, deviation(found, reference))
        assert not found[empty].any()


def test_attention_of_fixed_lengths_without_a_mask(tmp_path: Path) -> None:
    text = "float[2,4,64,16] q, float[2,4,64,16] k, float[2,4,64,16] v => float[2,4,64,16] y"
    lowered = program(text + "{ y = Attention(q, k, v) }")
    emit([lowered], tmp_path)
    feeds = attention_feeds(lowered, 2, 64, 64)
    reference, _ = attention_reference(feeds, "none")
    np.testing.assert_allclose(run(compiled(tmp_path), feeds)["y"], reference, atol=2e-6)


@pytest.mark.parametrize("causal", [0, 1])
def test_attention_with_its_own_past(tmp_path: Path, causal: int) -> None:
    lowered = program(
        "float[b,4,t,16] q, float[b,4,t,16] k, float[b,4,t,16] v, float[b,4,p,16] past_key, "
        "float[b,4,p,16] past_value => float[b,4,t,16] y, float[b,4,s,16] key, float[b,4,s,16] "
        f"value {{ y, key, value = Attention<is_causal = {causal}>(q, k, v, , past_key, "
        "past_value) }"
    )
    expected = ReferenceEvaluator(ir.to_proto(lowered.graph))
    emit([lowered], tmp_path)
    model = compiled(tmp_path)
    rng = np.random.default_rng(0)
    for past, length in ((0, 20), (40, 1), (19, 3)):
        shapes = {s.name: (2, 4, past if "past" in s.name else length, 16) for s in lowered.inputs}
        feeds = {name: rng.normal(size=s).astype(np.float32) for name, s in shapes.items()}
        found = run(model, feeds)
        for name, reference in zip(("y", "key", "value"), expected.run(None, feeds), strict=True):
            np.testing.assert_allclose(found[name], reference, atol=2e-6)


# Other ops, at sizes beyond one vector ------------------------------------------------------------

_ROTARY = {
    "cos": np.cos(np.arange(200)[:, None] * 0.1 ** np.arange(8)).astype(np.float32),
    "sin": np.sin(np.arange(200)[:, None] * 0.1 ** np.arange(8)).astype(np.float32),
}
_SCALE = {"scale": np.linspace(0.5, 2, 48).astype(np.float32)}
OPS: dict[str, tuple[str, dict[str, np.ndarray]]] = {
    "RotaryEmbedding": (
        "float[b,4,t,16] x, int64[b,t] n => float[b,4,t,16] y "
        "{ y = RotaryEmbedding(x, cos, sin, n) }",
        _ROTARY,
    ),
    "RotaryEmbedding, interleaved, in part": (
        "float[b,4,t,24] x, int64[b,t] n => float[b,4,t,24] y "
        "{ y = RotaryEmbedding<interleaved = 1, rotary_embedding_dim = 16>(x, cos, sin, n) }",
        _ROTARY,
    ),
    "RMSNormalization": (
        "float[b,t,48] x => float[b,t,48] y { y = RMSNormalization<epsilon = 1e-6>(x, scale) }",
        _SCALE,
    ),
    "LayerNormalization": (
        "float[b,t,48] x => float[b,t,48] y { y = LayerNormalization(x, scale) }",
        _SCALE,
    ),
    "Gelu": ("float[b,t] x => float[b,t] y { y = Gelu(x) }", {}),
    "Gelu, tanh": ('float[b,t] x => float[b,t] y { y = Gelu<approximate = "tanh">(x) }', {}),
    "CumSum": ("int64[b,t] n => int64[b,t] y { y = CumSum(n, axis) }", {"axis": np.array(1)}),
    "Range": (
        "float[b,t] x => int64[n] y { sizes = Shape<start = 1, end = 2>(x) size = Squeeze(sizes) "
        "y = Range(zero, size, one) }",
        {"zero": np.array(0), "one": np.array(1)},
    ),
    "TensorScatter": (
        "float[b,2,50,8] cache, float[b,2,t,8] update, int64[b] row => float[b,2,50,8] y "
        "{ y = TensorScatter(cache, update, row) }",
        {},
    ),
    "TensorScatter, circular": (
        "float[b,2,50,8] cache, float[b,2,t,8] update, int64[b] row => float[b,2,50,8] y "
        '{ y = TensorScatter<mode = "circular">(cache, update, row) }',
        {},
    ),
    "TensorScatter of three axes from 0": (
        "float[b,50,8] cache, float[b,t,8] update => float[b,50,8] y "
        "{ y = TensorScatter(cache, update) }",
        {},
    ),
}


@pytest.mark.parametrize("case", OPS)
def test_op(tmp_path: Path, case: str) -> None:
    text, constants = OPS[case]
    lowered = program(text, constants)
    reference = ReferenceEvaluator(ir.to_proto(lowered.graph))
    emit([lowered], tmp_path)
    model = compiled(tmp_path)
    # One op of at most three roundings in a row; a norm sums 48 terms.
    tolerance = Tolerance.for_precision("fp32", depth=3, contraction=48)
    rng = np.random.default_rng(0)
    for sizes in ({"b": 1, "t": 1}, {"b": 3, "t": 37}):
        feeds = {}
        for spec in lowered.inputs:
            shape = [d if isinstance(d, int) else sizes[d] for d in spec.shape]
            feeds[spec.name] = (
                rng.normal(size=shape).astype(np.float32)
                if spec.dtype == "float32"
                else rng.integers(0, 12, shape)
            )
        found, expected = run(model, feeds)["y"], reference.run(["y"], feeds)[0]
        assert found.dtype == expected.dtype
        assert deviation(found, expected).within(tolerance)


# What is refused ----------------------------------------------------------------------------------

REFUSED = {
    "float[n] x => float[n] y { y = ai.omnigraph.Thing(x) }": "domain 'ai.omnigraph'",
    "float[n,n] x => float[] y { y = Det(x) }": "no conversion rule for Det",
    "float[n] x => float[n] y { y = Mod<fmod = 0>(x, x) }": "`fmod` attribute must be set to 1",
    'float[n] x, int64[2] p => float[m] y { y = Pad<mode = "wrap">(x, p) }': "wrap",
    "float[n] x, int64[1] r => float[m] y { y = Tile(x, r) }": "never written",
    "float[b,4,t,8] q => float[b,4,t,8] y { y = Attention(q, q, q) }": "divides by a wrong sum",
}


@pytest.mark.parametrize("text", REFUSED)
def test_refused_with_a_reason(text: str) -> None:
    node = _parsed(text).graph[0]
    assert REFUSED[text] in str(TARGET.supports(node, "fp32"))


def _parsed(text: str) -> ir.Model:
    signature, body = text.split("{", 1)
    inputs, outputs = signature.split("=>")
    header = '<ir_version: 10, opset_import: ["" : 24, "ai.omnigraph" : 1]>'
    return ir.from_onnx_text(f"{header} g ({inputs}) => ({outputs}) {{{body}")


def test_all_that_is_refused_is_named_at_once() -> None:
    graph = _parsed("float[n,n] x => float[] z { y = Det(x) m = Mod<fmod = 0>(y, y) z = Neg(m) }")
    for node in graph.graph:
        node.metadata_props[MODULE_KEY] = f"layer.{node.op_type}"
    ShapeInferencePass()(graph)
    with pytest.raises(UnsupportedError) as caught:
        TARGET.check_nodes("forward", graph, "fp32")
    for text in ("2 nodes of program 'forward'", "layer.Det", "layer.Mod", "hint:"):
        assert text in str(caught.value)


def test_a_node_of_unknown_type_is_left_to_the_frontend() -> None:
    graph = _parsed("float[n,n] x => float[] z { y = Det(x) z = Neg(y) }")
    assert TARGET.supports(graph.graph[1], "fp32") is None


def test_what_the_frontend_refuses_names_the_node(tmp_path: Path) -> None:
    lowered = program("float[n,n] x => float[] z { y = Det(x) z = Neg(y) }")
    with pytest.raises(CompileError, match=r"Det .*of module 'block'.*of program 'forward'") as e:
        TARGET.emit([lowered], tmp_path, precision="fp32", options={})
    assert isinstance(e.value.__cause__, RuntimeError)
    assert "no conversion rule for Det" in str(e.value)
