"""Whole models with sparse attention by blocks: torch's numbers, on every target."""

from __future__ import annotations

import onnx_ir as ir
import pytest
from sparse_attention_graphs import lowered

from omnigraph.contract.graph_check import GraphRunner
from omnigraph.contract.tolerance import Tolerance, deviations
from omnigraph.graph import Graph
from omnigraph.models import AttentionPattern
from omnigraph.passes.base import run_passes
from omnigraph.passes.lower_sparse_attention import LowerSparseAttention
from omnigraph.passes.pipelines import canonical
from omnigraph.program import Case
from omnigraph.testing import assert_miss

#: Each row of the softmax is summed over other keys that count zero, so sums are reordered only;
#: over two layers and their products such differences add up to a few tens of roundings.
MODEL = Tolerance(rms=32 * 2.0**-24, peak=512 * 2.0**-24)


# OmniNet ------------------------------------------------------------------------------------------

WINDOW = AttentionPattern("sliding_window", window=8)
BLOCKS = AttentionPattern("block_sparse", block_size=4, global_blocks=2, random_blocks=2)
MIXED = ((WINDOW, AttentionPattern("sliding_window", window=3), WINDOW, BLOCKS),) * 2


def lowered_omninet(traced, name: str, *, products: bool = False, **settings: object):
    """The traced program and its graph with each self-attention lowered."""
    found = traced(name, **settings)
    graph = found.graph.clone()
    run_passes(graph, canonical())
    lowered(graph, block=16, products=products)
    run_passes(graph, canonical())
    return found, graph


def assert_omninet_numbers(found, graph: Graph, *, past: bool) -> None:
    """Against torch on the contract's input sets, and against torch at more lengths, padded."""
    import torch

    runner = GraphRunner(graph)
    cases = [
        Case(str(length), {"batch": 3, "sequence": length, "past": 20 if past else 0}, side)
        for length in (7, 8, 33, 100)
        for side in ("left", "right")
    ]
    for case in cases:
        feeds = found.program.make_inputs(case)
        with torch.no_grad():
            given_ = found.program.module(**feeds)
        outputs = [given_] if isinstance(given_, torch.Tensor) else list(given_)
        expected = dict(
            zip(found.program.outputs, (tensor.numpy() for tensor in outputs), strict=True)
        )
        run = runner.run({name: tensor.numpy() for name, tensor in feeds.items()})
        for name, far in deviations(run, expected).items():
            assert far.within(MODEL), (case.name, case.padding, name, far)


@pytest.mark.parametrize(
    ("kind", "positions", "attention"),
    [
        ("encoder", "alibi", WINDOW),
        pytest.param("decoder", "rotary", WINDOW, marks=pytest.mark.slow),
        ("encoder", "rotary", BLOCKS),
        pytest.param("encoder", "relative", BLOCKS, marks=pytest.mark.slow),
        pytest.param("decoder", "alibi", BLOCKS, marks=pytest.mark.slow),
        pytest.param("decoder", "relative", MIXED, marks=pytest.mark.slow),
        *(
            pytest.param(kind, positions, WINDOW, marks=pytest.mark.slow)
            for kind in ("encoder", "decoder")
            for positions in ("absolute", "sinusoidal", "relative")
        ),
    ],
)
def test_omninet_gives_torchs_numbers(traced, kind, positions, attention):
    found, graph = lowered_omninet(
        traced, "forward", kind=kind, positions=positions, attention=attention
    )
    assert_omninet_numbers(found, graph, past=False)


def test_omninet_with_a_past_gives_torchs_numbers(traced):
    found, graph = lowered_omninet(
        traced, "decode", kind="decoder", positions="relative", attention=WINDOW
    )
    assert_omninet_numbers(found, graph, past=True)


@pytest.mark.slow
def test_a_dense_head_beside_sparse_ones_keeps_all_dense(traced):
    heads = ((WINDOW, WINDOW, AttentionPattern(), WINDOW),) * 2
    graph = traced("forward", kind="decoder", positions="rotary", attention=heads).graph.clone()
    run_passes(graph, canonical())
    assert_miss(LowerSparseAttention(), graph, "may show every key before the query")


def test_openvino_gives_torchs_numbers(traced, tmp_path):
    import openvino

    found, graph = lowered_omninet(
        traced, "forward", products=True, kind="encoder", positions="alibi", attention=WINDOW
    )
    ir.save(graph, path := tmp_path / "lowered.onnx")
    hint = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(path, "CPU", hint)
    for length in (1, 5, 8, 33, 100):
        case = Case("", {"batch": 2, "sequence": length}, "left")
        feeds = {n: t.numpy() for n, t in found.program.make_inputs(case).items()}
        expected = GraphRunner(graph).run(feeds)
        result = {"logits": compiled(feeds)[0]}
        for far in deviations(result, expected).values():
            assert far.within(MODEL), (length, far)


@pytest.mark.parametrize("target", ["onnx", "openvino", "tensorrt"])
def test_every_target_takes_the_nodes(traced, target):
    lowering = pytest.importorskip(f"omnigraph.lowering.{target}.target").TARGET
    precision = "fp16" if target == "tensorrt" else "fp32"
    _, graph = lowered_omninet(
        traced,
        "forward",
        products=target == "openvino",
        kind="encoder",
        positions="rotary",
        attention=BLOCKS,
    )
    run_passes(graph, lowering.pipeline(precision))
    lowering.check_nodes("forward", graph, precision)
