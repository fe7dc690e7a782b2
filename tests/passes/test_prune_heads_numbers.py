"""A pruned graph has the numbers of a pruned model, and of closed gates on any heads."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import pytest
from head_pruning_graphs import C, graph_with, grouped_layer, shapes, weights
from hypothesis import given, settings
from hypothesis import strategies as st

from omnigraph.contract.graph_check import GraphRunner, check_graph
from omnigraph.contract.tolerance import deviations
from omnigraph.graph import MODULE_KEY, Graph
from omnigraph.models.programs import programs
from omnigraph.passes.base import run_passes
from omnigraph.passes.pipelines import canonical
from omnigraph.passes.prune_heads import PruneHeads
from omnigraph.testing import EXACT
from omnigraph.tracing.trace import reference_for


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("encode", {"kind": "encoder", "positions": "alibi", "head_pruning": True}),
        pytest.param(
            "forward", {"kind": "decoder", "positions": "relative"}, marks=pytest.mark.slow
        ),
        ("decode", {"kind": "decoder", "positions": "rotary", "head_pruning": True}),
        pytest.param(
            "decode", {"kind": "encoder-decoder", "positions": "absolute"}, marks=pytest.mark.slow
        ),
    ],
)
def test_a_pruned_graph_is_the_graph_of_the_pruned_model(traced, name: str, settings: dict):
    whole = traced(name, **settings)
    graph = whole.graph.clone()
    run_passes(graph, canonical())
    gone = [(1,), (0, 3), (2,), (1, 2)]
    sites = [n.metadata_props[MODULE_KEY] for n in graph.graph if n.op_type == "Attention"]
    removed = dict(zip(sites, gone, strict=False))
    pass_ = PruneHeads(heads=tuple(removed.items()), boundary=True)
    (record,) = run_passes(graph, [pass_])
    assert all(finding.became for finding in record.findings)
    check_graph(graph, "prune-heads")

    model = copy.deepcopy(whole.model)
    model.prune_heads(
        {
            path.replace(".blocks", "").replace("_attention", ""): heads
            for path, heads in removed.items()
        }
    )
    program = next(p for p in programs(model) if p.name == name)
    assert [list(v.shape)[1] for v in graph.graph.inputs] == [s.shape[1] for s in program.inputs]
    matrices = [
        v for n, v in graph.graph.initializers.items() if ".weight" in n and len(v.shape) > 1
    ]
    most = sum(p.numel() for p in model.parameters() if p.ndim > 1)
    assert sum(int(np.prod(v.shape.numpy())) for v in matrices) <= most
    runner = GraphRunner(graph)
    for reference in whole.references[:4]:
        expected = reference_for(program, reference.case)
        found = runner.run(expected.feeds)
        for output, deviation in deviations(found, expected.outputs).items():
            # Two layers of attention and feed-forward, each of some dozen roundings.
            assert deviation.rms < 4e-6, (output, deviation)


@dataclass(frozen=True)
class GatedLayer:
    """An attention whose heads have constant gates.

    Args:
        keys: heads of keys, each for ``group`` heads of queries of ``size``.
        mask: "none", "causal", or which heads and rows of the batch have masks of their own.
        gate: of each head, and more numbers that are not read.
    """

    keys: int
    group: int
    size: int
    batch: int
    length: int
    mask: str
    gate: list[float]
    dtype: str

    @property
    def heads(self) -> int:
        return self.keys * self.group

    @property
    def open_heads(self) -> int:
        return sum(number != 0 for number in self.gate[: self.heads])

    @property
    def numpy_type(self) -> type:
        return np.float16 if self.dtype == "float16" else np.float32

    def mask_shape(self) -> tuple[int, ...]:
        lengths = (self.length, self.length)
        masks = {
            "shared": (1, 1, *lengths),
            "by head": (1, self.heads, *lengths),
            "by batch and head": (self.batch, self.heads, *lengths),
        }
        return masks.get(self.mask, (1, 1, 1, 1))

    def text(self) -> str:
        dtype, width, key_width = self.dtype, self.heads * self.size, self.keys * self.size
        causal = "<is_causal=1>" if self.mask == "causal" else ""
        masked = "" if self.mask in ("none", "causal") else ", mask"
        attend = f"a = Attention{causal}(q, k, v{masked}) c = Mul(a, gate)"
        shape = ",".join(map(str, self.mask_shape()))
        return f"""g ({dtype}[B,T,{C}] x, {dtype}[{C},{width}] wq, {dtype}[{C},{key_width}] wk,
              {dtype}[{C},{key_width}] wv, {dtype}[{width},{C}] wo,
              {dtype}[1,{self.heads},1,1] gate, {dtype}[{shape}] mask, int64[4] split,
              int64[4] split_key, int64[3] merge)
           => ({dtype}[B,T,{C}] y) {{ {grouped_layer(attend, "c")} }}"""

    def graph(self, seed: int) -> Graph:
        width, key_width = self.heads * self.size, self.keys * self.size
        constants = weights(
            seed, wq=(C, width), wk=(C, key_width), wv=(C, key_width), wo=(width, C),
            mask=self.mask_shape(),
        )  # fmt: skip
        constants["gate"] = np.array(self.gate[: self.heads]).reshape(1, self.heads, 1, 1)
        constants = {n: array.astype(self.numpy_type) for n, array in constants.items()}
        return graph_with(self.text(), constants | shapes(self.heads, self.keys, self.size))

    def feeds(self, seed: int) -> dict[str, np.ndarray]:
        x = np.random.default_rng(seed).standard_normal((self.batch, self.length, C))
        return {"x": x.astype(self.numpy_type)}


@settings(max_examples=25, deadline=None)
@given(
    layer=st.builds(
        GatedLayer,
        keys=st.integers(1, 4),
        group=st.integers(1, 3),
        size=st.sampled_from([2, 4]),
        batch=st.integers(1, 3),
        length=st.integers(1, 6),
        mask=st.sampled_from(["none", "causal", "shared", "by head", "by batch and head"]),
        gate=st.lists(st.sampled_from([0.0, 0.0, 1.0, 0.5, -2.0]), min_size=12, max_size=12),
        dtype=st.sampled_from(["float", "float16"]),
    ),
    seed=st.integers(0, 99),
)
def test_any_gate_on_any_heads_keeps_the_numbers(layer: GatedLayer, seed: int):
    graph, feeds = layer.graph(seed), layer.feeds(seed)
    expected = GraphRunner(graph.clone()).run(feeds)
    (record,) = run_passes(graph, [PruneHeads()])
    check_graph(graph, "prune-heads")
    found = GraphRunner(graph).run(feeds)
    # A half has 11 bits, and the gate is rounded into the weight: a few roundings of each output.
    bound = 8 * 2.0**-11 if layer.dtype == "float16" else EXACT.rms
    assert deviations(found, expected)["y"].rms <= bound
    (finding,) = record.findings
    if layer.open_heads:
        (attention,) = (node for node in graph.graph if node.op_type == "Attention")
        left = attention.inputs[0].shape[1]
        assert layer.open_heads <= left <= layer.heads
        if layer.group == 1:
            assert left == layer.open_heads
    else:
        assert finding.reason == "all of its heads would go"
    assert not run_passes(graph, [PruneHeads()])[0].modified
