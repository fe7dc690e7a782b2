"""The passes that every target begins with, each with what it changes and what it leaves alone."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from omnigraph.contract.graph_check import GraphRunner
from omnigraph.errors import GraphError
from omnigraph.graph import MODULE_KEY, Graph
from omnigraph.passes.base import Pass, run_passes
from omnigraph.passes.compress_weights import CompressWeights
from omnigraph.passes.eliminate_common_subexpressions import EliminateCommonSubexpressions
from omnigraph.passes.eliminate_dead_code import EliminateDeadCode
from omnigraph.passes.eliminate_identities import EliminateIdentities
from omnigraph.passes.expand_attention_mask import ExpandAttentionMask
from omnigraph.passes.fold_constants import FoldConstants
from omnigraph.passes.fold_reshape_shapes import FoldReshapeShapes
from omnigraph.passes.fold_weight_transposes import FoldWeightTransposes
from omnigraph.passes.lift_constants import LiftConstants
from omnigraph.passes.share_constants import ShareConstants
from omnigraph.testing import assert_pass, graph_from_text, graph_text, graph_with_weights

RNG = np.random.default_rng(0)
X23 = {"x": RNG.standard_normal((2, 3)).astype(np.float32)}
WEIGHT = RNG.standard_normal((4, 3)).astype(np.float32)
LINEAR = """g (float[N,3] x, float[4,3] w) => (float[N,4] y)
    { t = Transpose<perm=[1,0]>(w)  y = MatMul(x, t) }"""


def test_fold_weight_transposes_stores_the_transposed_weight():
    after = graph_with_weights(
        "g (float[N,3] x, float[3,4] w) => (float[N,4] y) { y = MatMul(x, w) }",
        w=np.ascontiguousarray(WEIGHT.T),
    )
    assert_pass(FoldWeightTransposes(), graph_with_weights(LINEAR, w=WEIGHT), after, X23)


def test_fold_weight_transposes_computes_nothing_until_it_is_read():
    graph = graph_with_weights(LINEAR, w=WEIGHT)
    run_passes(graph, (FoldWeightTransposes(),))
    assert isinstance(graph.graph.initializers["w_T"].const_value, ir.LazyTensor)


def test_fold_weight_transposes_leaves_a_tied_embedding():
    body = """g (int64[N] i, float[4,3] w) => (float[N,4] y)
        { e = Gather(w, i)  t = Transpose<perm=[1,0]>(w)  y = MatMul(e, t) }"""
    feeds = {"i": np.array([3, 0, 1])}
    assert_pass(FoldWeightTransposes(), graph_with_weights(body, w=WEIGHT), None, feeds)


def test_fold_weight_transposes_leaves_a_transposed_input():
    body = """g (float[N,3] x, float[4,3] w) => (float[N,4] y)
        { t = Transpose<perm=[1,0]>(w)  y = MatMul(x, t) }"""
    assert_pass(FoldWeightTransposes(), graph_from_text(body), None, {**X23, "w": WEIGHT})


def test_fold_constants_computes_what_depends_on_no_input():
    before = graph_from_text(
        """g (float[N,3] x) => (float[N,3] y)
        { a = Constant<value_float=2.0>()  b = Constant<value_float=3.0>()  c = Add(a, b)
          y = Mul(x, c) }"""
    )
    run_passes(before, (FoldConstants(), EliminateDeadCode(), LiftConstants()))
    assert graph_text(before) == "y = Mul(x, float32[5.0])".replace("[5.0]", "5.0")


def test_fold_constants_leaves_what_is_too_large():
    body = """g (float[N,3] x, float[3,3] w) => (float[N,3] y) { v = Exp(w)  y = MatMul(x, v) }"""
    graph = graph_with_weights(body, w=WEIGHT[:3])
    assert_pass(FoldConstants(input_limit=4), graph, None, X23)


def test_eliminate_dead_code_removes_what_no_output_needs():
    before = graph_from_text(
        "g (float[N,3] x) => (float[N,3] y) { y = Relu(x)  z = Exp(x)  w = Neg(z) }"
    )
    after = graph_from_text("g (float[N,3] x) => (float[N,3] y) { y = Relu(x) }")
    assert_pass(EliminateDeadCode(), before, after, X23)


def test_eliminate_dead_code_keeps_an_input_that_nothing_uses():
    graph = graph_from_text("g (float[N,3] x, float[N] unused) => (float[N,3] y) { y = Relu(x) }")
    assert_pass(EliminateDeadCode(), graph, None, {**X23, "unused": np.zeros(2, np.float32)})
    assert [value.name for value in graph.graph.inputs] == ["x", "unused"]


def test_eliminate_common_subexpressions_merges_equal_nodes():
    before = graph_from_text(
        "g (float[N,3] x) => (float[N,3] y) { a = Exp(x)  b = Exp(x)  y = Add(a, b) }"
    )
    after = graph_from_text("g (float[N,3] x) => (float[N,3] y) { a = Exp(x)  y = Add(a, a) }")
    assert_pass(EliminateCommonSubexpressions(), before, after, X23)


def test_eliminate_common_subexpressions_leaves_other_attributes():
    body = """g (float[2,3] x) => (float[2,3] y)
        { a = Softmax<axis=0>(x)  b = Softmax<axis=1>(x)  y = Add(a, b) }"""
    assert_pass(EliminateCommonSubexpressions(), graph_from_text(body), None, X23)


@pytest.mark.parametrize(
    "op", ["Identity(x)", "Cast<to=1>(x)", "Concat<axis=0>(x)", "Transpose<perm=[0,1]>(x)"]
)
def test_eliminate_identities_removes_what_changes_nothing(op: str):
    before = graph_from_text(f"g (float[N,3] x) => (float[N,3] y) {{ a = {op}  y = Relu(a) }}")
    after = graph_from_text("g (float[N,3] x) => (float[N,3] y) { y = Relu(x) }")
    assert_pass(EliminateIdentities(), before, after, X23)


@pytest.mark.parametrize(
    "op",
    ["Cast<to=10>(x)", "Transpose<perm=[1,0]>(x)", "Concat<axis=0>(x, x)"],
)
def test_eliminate_identities_leaves_what_changes_something(op: str):
    body = f"g (float[N,3] x) => (float z) {{ a = {op}  b = Cast<to=1>(a)  z = ReduceSum(b) }}"
    if "to=10" in op:
        assert_pass(EliminateIdentities(), graph_from_text(body), None, X23)
    else:
        graph = graph_from_text(
            body.replace("b = Cast<to=1>(a)  z = ReduceSum(b)", "z = ReduceSum(a)")
        )
        assert_pass(EliminateIdentities(), graph, None, X23)


def test_eliminate_identities_keeps_an_input_that_is_an_output():
    graph = graph_from_text("g (float[N,3] x) => (float[N,3] y) { y = Identity(x) }")
    assert_pass(EliminateIdentities(), graph, None, X23)


@pytest.mark.parametrize("op", ["Sum", "Mean", "Max", "Min", "Concat<axis=0>"])
def test_eliminate_identities_removes_an_op_of_one_value(op: str):
    before = graph_from_text(f"g (float[N,3] x) => (float[N,3] y) {{ a = {op}(x)  y = Relu(a) }}")
    after = graph_from_text("g (float[N,3] x) => (float[N,3] y) { y = Relu(x) }")
    assert_pass(EliminateIdentities(), before, after, X23)
    between = graph_from_text(f"g (float[N,3] x) => (float[N,3] y) {{ y = {op}(x) }}")
    after = graph_from_text("g (float[N,3] x) => (float[N,3] y) { y = Identity(x) }")
    assert_pass(EliminateIdentities(), between, after, X23)


@pytest.mark.parametrize("op", ["Sum", "Mean", "Max", "Min"])
def test_eliminate_identities_leaves_an_op_of_two_values(op: str):
    body = f"g (float[N,3] x) => (float[N,3] y) {{ a = Neg(x)  y = {op}(x, a) }}"
    assert_pass(EliminateIdentities(), graph_from_text(body), None, X23)


def test_fold_constants_keeps_where_a_value_came_from():
    graph = graph_from_text("g (float[N,3] x) => (float[N,3] y) { y = Dropout(x) }")
    run_passes(graph, (FoldConstants(),))
    assert [node.metadata_props[MODULE_KEY] for node in graph.graph] == ["model"]


def test_fold_constants_lets_no_cast_saturate_that_did_not():
    graph = graph_from_text(
        """g (float[N,3] x) => (float[N,3] y)
        { l = Constant<value_float=0.0>()  n = Cast<to=17>(l)
          c = CastLike<saturate=0>(x, n)  y = Cast<to=1>(c) }"""
    )
    run_passes(graph, (FoldConstants(), EliminateDeadCode()))
    cast = next(node for node in graph.graph if node.outputs[0].dtype == ir.DataType.FLOAT8E4M3FN)
    assert cast.op_type == "Cast" and cast.attributes.get_int("saturate") == 0
    large = np.full((1, 3), 1e6, np.float32)
    assert np.isnan(GraphRunner(graph).run({"x": large})["y"]).all()


def test_eliminate_identities_keeps_both_names_of_one_value():
    body = "g (float[N,3] x) => (float[N,3] y, float[N,3] z) { y = Neg(x)  z = Identity(y) }"
    assert_pass(EliminateIdentities(), graph_from_text(body), None, X23)


def test_eliminate_identities_keeps_the_name_of_an_output():
    before = graph_from_text("g (float[N,3] x) => (float[N,3] y) { a = Neg(x)  y = Identity(a) }")
    after = graph_from_text("g (float[N,3] x) => (float[N,3] y) { y = Neg(x) }")
    assert_pass(EliminateIdentities(), before, after, X23)
    assert before.graph.outputs[0].name == "y"


def test_lift_constants_makes_initializers():
    before = graph_from_text(
        "g (float[N,3] x) => (float[N,3] y) { c = Constant<value_float=2.0>()  y = Mul(x, c) }"
    )
    run_passes(before, (LiftConstants(),))
    assert [node.op_type for node in before.graph] == ["Mul"]
    assert not run_passes(before, (LiftConstants(),))[0].modified
    np.testing.assert_array_equal(GraphRunner(before).run(X23)["y"], X23["x"] * 2)


def test_share_constants_merges_small_ones_of_one_type():
    body = """g (float[N,3] x, float[1] a, float[1] b) => (float[N,3] y)
        { t = Mul(x, a) y = Mul(t, b) }"""
    two = np.array([2], np.float32)
    graph = graph_with_weights(body, a=two, b=two)
    run_passes(graph, (ShareConstants(),))
    assert len(graph.graph.initializers) == 1


def test_share_constants_leaves_other_types_and_weights():
    body = """g (float[N,3] x, float[1] a, int64[1] b) => (float[N,3] y)
        { t = Mul(x, a) c = Cast<to=1>(b) y = Mul(t, c) }"""
    graph = graph_with_weights(body, a=np.array([2], np.float32), b=np.array([2]))
    assert_pass(ShareConstants(), graph, None, X23)
    body = """g (float[N,3] x, float[4,3] a, float[4,3] b) => (float[N,3] y)
        { s = Add(a, b) m = ReduceSum(s) y = Mul(x, m) }"""
    graph = graph_with_weights(body, a=np.ones((4, 3), np.float32), b=np.ones((4, 3), np.float32))
    assert_pass(ShareConstants(limit=8), graph, None, X23)


SPLIT_HEADS = """g (float[batch,sequence,8] x) => (float[batch,sequence,2,4] y)
    { s = Shape(x)  zero = Constant<value_ints=[0]>()  one = Constant<value_ints=[1]>()
      b = Gather(s, zero)  t = Gather(s, one)
      h = Constant<value_ints=[2]>()  d = Constant<value_ints=[4]>()
      shape = Concat<axis=0>(b, t, h, d)  y = Reshape(x, shape) }"""


def test_fold_reshape_shapes_copies_dimensions_from_the_input():
    graph = graph_from_text(SPLIT_HEADS)
    run_passes(graph, (FoldReshapeShapes(), EliminateDeadCode()))
    assert graph_text(graph) == "y = Reshape(x, int64[0, 0, 2, 4]){'allowzero': '0'}"
    x = RNG.standard_normal((3, 5, 8)).astype(np.float32)
    np.testing.assert_array_equal(GraphRunner(graph).run({"x": x})["y"], x.reshape(3, 5, 2, 4))
    assert not run_passes(graph, (FoldReshapeShapes(),))[0].modified


def test_fold_reshape_shapes_leaves_two_dimensions_that_moved():
    graph = graph_from_text(
        """g (float[a,b,8] x, int64[3] shape) => (float[b,a,8] y) { y = Reshape(x, shape) }"""
    )
    x = RNG.standard_normal((3, 5, 8)).astype(np.float32)
    assert_pass(FoldReshapeShapes(), graph, None, {"x": x, "shape": np.array([5, 3, 8])})


def test_fold_reshape_shapes_leaves_a_dimension_of_size_zero():
    graph = graph_from_text(
        "g (float[a,0] x, int64[2] shape) => (float[a,0] y) { y = Reshape<allowzero=1>(x, shape) }"
    )
    feeds = {"x": np.zeros((3, 0), np.float32), "shape": np.array([3, 0])}
    assert_pass(FoldReshapeShapes(), graph, None, feeds)


ATTENTION = """g (float[B,2,T,4] q, float[B,2,S,4] k, float[B,2,S,4] v, bool[B,1,{rows},S] m)
    => (float[B,2,T,4] y) {{ y = Attention(q, k, v, m) }}"""


def attention_feeds(rows: int) -> dict[str, np.ndarray]:
    shapes = {"q": (3, 2, 5, 4), "k": (3, 2, 7, 4), "v": (3, 2, 7, 4)}
    feeds = {k: RNG.standard_normal(s).astype(np.float32) for k, s in shapes.items()}
    return {**feeds, "m": RNG.random((3, 1, rows, 7)) < 0.7}


def test_expand_attention_mask_gives_each_query_a_row():
    graph = graph_from_text(ATTENTION.format(rows=1))
    run_passes(graph, (ExpandAttentionMask(),))
    assert [n.op_type for n in graph.graph] == [
        "Constant",
        "Shape",
        "Concat",
        "Expand",
        "Attention",
    ]
    assert not run_passes(graph, (ExpandAttentionMask(),))[0].modified
    feeds = attention_feeds(1)
    whole = GraphRunner(graph_from_text(ATTENTION.format(rows="T")))
    expected = whole.run({**feeds, "m": np.broadcast_to(feeds["m"], (3, 1, 5, 7)).copy()})["y"]
    np.testing.assert_allclose(GraphRunner(graph).run(feeds)["y"], expected, rtol=1e-6)


def test_expand_attention_mask_leaves_a_mask_with_rows():
    graph = graph_from_text(ATTENTION.format(rows="T"))
    assert_pass(ExpandAttentionMask(), graph, None, attention_feeds(5))


def test_compress_weights_halves_what_is_large_and_nothing_else():
    large = RNG.standard_normal((64, 32)).astype(np.float32)
    small = RNG.standard_normal(32).astype(np.float32)
    body = """g (float[N,64] x, float[64,32] w, float[32] b) => (float[N,32] y)
        { m = MatMul(x, w)  y = Add(m, b) }"""
    graph = graph_with_weights(body, w=large, b=small)
    x = RNG.standard_normal((3, 64)).astype(np.float32)
    assert run_passes(graph, (CompressWeights(),))[0].modified
    assert not run_passes(graph, (CompressWeights(),))[0].modified
    dtypes = {n: v.dtype for n, v in graph.graph.initializers.items()}
    assert dtypes == {"w_fp16": ir.DataType.FLOAT16, "b": ir.DataType.FLOAT}
    expected = x @ large.astype(np.float16).astype(np.float32) + small
    np.testing.assert_allclose(
        GraphRunner(graph).run({"x": x})["y"], expected, rtol=1e-5, atol=1e-5
    )


def test_nodes_that_a_pass_makes_inherit_their_module():
    class Doubling(Pass):
        def apply(self, graph: Graph) -> bool:
            node = next(iter(graph.graph))
            made = ir.node("Identity", [node.inputs[0]])
            node.prepend(made)
            node.replace_input_with(0, made.outputs[0])
            return True

    graph = graph_from_text("g (float[N,3] x) => (float[N,3] y) { y = Relu(x) }")
    run_passes(graph, (Doubling(),))
    assert all(node.metadata_props[MODULE_KEY] == "model" for node in graph.graph)


def test_a_pass_that_fails_is_named():
    class Broken(Pass):
        def apply(self, graph: Graph) -> bool:
            raise IndexError("no such node")

    graph = graph_from_text("g (float[N,3] x) => (float[N,3] y) { y = Relu(x) }")
    with pytest.raises(GraphError, match=r"Pass 'broken' failed.*IndexError: no such node"):
        run_passes(graph, (Broken(),))
