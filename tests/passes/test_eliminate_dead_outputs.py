"""What was not asked for is not computed, and what was asked for stays right."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omnigraph.contract.graph_check import GraphRunner, check_graph
from omnigraph.contract.tolerance import deviation
from omnigraph.errors import UsageError
from omnigraph.graph import count_ops, declare_roles
from omnigraph.passes.base import run_passes
from omnigraph.passes.eliminate_dead_outputs import EliminateDeadOutputs
from omnigraph.passes.hoist_selections import HoistSelections
from omnigraph.passes.pipelines import canonical
from omnigraph.testing import assert_pass, graph_from_text

RNG = np.random.default_rng(0)
TWO = (
    "g (float[B,T,4] x) => (float[B,T,4] y, float[B,T,4] z) { y = Exp(x)  e = Neg(x)  z = Abs(e) }"
)
X = RNG.standard_normal((2, 5, 4)).astype(np.float32)


def test_an_output_goes_with_what_only_it_needs():
    graph = graph_from_text(TWO)
    (record,) = run_passes(graph, (EliminateDeadOutputs(outputs=("y",)),))
    assert record.modified
    check_graph(graph, "test")
    assert [v.name for v in graph.graph.outputs] == ["y"]
    assert [n.op_type for n in graph.graph] == ["Exp"]
    assert not run_passes(graph, (EliminateDeadOutputs(outputs=("y",)),))[0].modified


def test_without_options_nothing_changes():
    assert_pass(EliminateDeadOutputs(), graph_from_text(TWO), None, {"x": X})


def test_without_a_mask_the_last_is_the_last_position():
    graph = graph_from_text(TWO)
    pass_ = EliminateDeadOutputs(last=("y",))
    assert run_passes(graph, (pass_,))[0].modified
    check_graph(graph, "test")
    found = GraphRunner(graph).run({"x": X})
    np.testing.assert_allclose(found["y"], np.exp(X)[:, -1:], rtol=1e-6)
    np.testing.assert_array_equal(found["z"], np.abs(X))
    assert [str(v.shape) for v in graph.graph.outputs] == ["[B,1,4]", "[B,T,4]"]
    assert not run_passes(graph, (pass_,))[0].modified


def test_an_output_that_is_not_there_is_refused():
    with pytest.raises(UsageError, match="no output 'logits'"):
        EliminateDeadOutputs(last=("logits",)).apply(graph_from_text(TWO))
    flat = graph_from_text("g (float[B,T] x) => (float[B,T] y) { y = Exp(x) }")
    with pytest.raises(UsageError, match="no positions"):
        EliminateDeadOutputs(last=("y",)).apply(flat)


@given(
    batch=st.integers(1, 4),
    tokens=st.integers(1, 6),
    past=st.integers(0, 3),
    draw=st.data(),
)
@settings(max_examples=25, deadline=None)
def test_the_last_token_of_any_mask(batch, tokens, past, draw):
    columns = "P + T" if past else "T"
    graph = graph_from_text(
        """g (float[B,T,4] x, int64[B,N] attention_mask, float[B,2,P,4] past) => (float[B,T,4] y)
        { y = Exp(x) }"""
    )
    import onnx_ir as ir

    graph.graph.inputs[1].shape = ir.Shape(["B", columns])
    declare_roles(graph, {"attention_mask": "mask"})
    mask = np.array(
        draw.draw(
            st.lists(
                st.lists(st.integers(0, 1), min_size=past + tokens, max_size=past + tokens),
                min_size=batch,
                max_size=batch,
            )
        )
    )
    assert run_passes(graph, (EliminateDeadOutputs(last=("y",)),))[0].modified
    x = RNG.standard_normal((batch, tokens, 4)).astype(np.float32)
    feeds = {"x": x, "attention_mask": mask, "past": np.zeros((batch, 2, past, 4), np.float32)}
    present = mask[:, past:]
    last = [np.flatnonzero(row)[-1] if row.any() else 0 for row in present]
    expected = np.exp(x)[np.arange(batch), last][:, None]
    np.testing.assert_allclose(GraphRunner(graph).run(feeds)["y"], expected, rtol=1e-6)


@pytest.mark.parametrize("program", ["forward", "decode"])
def test_a_decoder_computes_its_logits_for_one_token(traced, program: str):
    made = traced(program, kind="decoder", positions="rotary")
    graph = made.graph.clone()
    chosen = EliminateDeadOutputs(outputs=("logits",), last=("logits",))
    records = run_passes(graph, (*canonical(), chosen, HoistSelections()))
    check_graph(graph, "test")
    # Past the last attention: its projection, two norms, the feed-forward part and the product.
    assert "13 nodes" in (records[-1].findings[0].became or ""), records[-1].findings
    assert count_ops(graph)["Attention"] == 2
    product = next(n for n in graph.graph if n.outputs[0].name == "logits")
    assert str(product.inputs[0].shape) == "[batch,1,64]"
    runner = GraphRunner(graph)
    for reference in made.references:
        mask = reference.feeds["attention_mask"]
        whole = reference.outputs["logits"]
        present = mask[:, mask.shape[1] - whole.shape[1] :]
        last = [np.flatnonzero(row)[-1] if row.any() else 0 for row in present]
        expected = whole[np.arange(len(whole)), last][:, None]
        found = runner.run(reference.feeds)["logits"]
        assert deviation(found, expected).rms < 1e-5, reference.case
