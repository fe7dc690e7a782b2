"""What an element of a value is as a function of its index, against onnxruntime."""

from __future__ import annotations

from math import inf

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omnigraph.contract.graph_check import GraphRunner
from omnigraph.passes.analysis.index import (
    Coordinate,
    Emitter,
    Expression,
    Length,
    Linear,
    NotClosed,
    apply,
    bounds,
    compute,
    coordinate,
    coordinates,
    data,
    deny,
    dimension,
    every,
    read,
    settled,
    substitute,
)
from omnigraph.passes.insertion import Inserter
from omnigraph.testing import graph_from_text, graph_with_weights

NAMES = ("b", "h", "i", "j")
POSITIONS = """zero = Constant<value_int=0>() one = Constant<value_int=1>()
    first = Constant<value_ints=[0]>() second = Constant<value_ints=[1]>()
    rows = Shape<start=0, end=1>(x) columns = Shape<start=1, end=2>(x)
    T = Squeeze(rows) S = Squeeze(columns)
    ri = Range(zero, T, one) rj = Range(zero, S, one)
    i = Unsqueeze(ri, second) j = Unsqueeze(rj, first)"""


def output_of(body: str, kind: str = "int64", **arrays: np.ndarray) -> ir.Value:
    """The output of a Graph over positions i [T, 1] and j [1, S]; arrays are constants."""
    inputs = "".join(
        f", {_kind(array)}[{','.join(map(str, array.shape))}] {name}"
        for name, array in arrays.items()
    )
    text = f"g (float[T,S] x{inputs}) => ({kind}[A,B] y) {{ {POSITIONS} {body} }}"
    graph = graph_with_weights(text, **arrays)
    return graph.graph.outputs[0]


def _kind(array: np.ndarray) -> str:
    return {"f": "float", "i": "int64", "b": "bool"}[array.dtype.kind]


def text(body: str, kind: str = "bool", **arrays: np.ndarray) -> str:
    """An element of the output as text."""
    return read(output_of(body, kind, **arrays), NAMES).text


def square(size: int) -> np.ndarray:
    """Key less query position."""
    return np.arange(size)[None] - np.arange(size)[:, None]


CAUSAL = "i - j >= 0"


@pytest.mark.parametrize(
    "body",
    [
        "y = LessOrEqual(j, i)",
        "y = GreaterOrEqual(i, j)",
        "g = Greater(j, i) y = Not(g)",
        "n = Add(i, one) y = Less(j, n)",
        "d = Sub(j, i) two = Add(one, one) e = Mul(d, two) y = LessOrEqual(e, zero)",
        "l = LessOrEqual(j, i) n = Cast<to=1>(l) h = Constant<value_float=0.5>() y = Greater(n, h)",
        "l = LessOrEqual(j, i) c = Cast<to=7>(l) y = Equal(c, one)",
        """s = Concat<axis=0>(rows, columns) m = ConstantOfShape<value=int64[1]{1}>(s)
           t = Trilu<upper=0>(m) y = Cast<to=9>(t)""",
        """s = Concat<axis=0>(rows, columns) m = ConstantOfShape<value=float[1]{1}>(s)
           t = Trilu<upper=1>(m, one) f = Constant<value_float=1.0>() u = Sub(f, t)
           y = Cast<to=9>(u)""",
        "s = Concat<axis=0>(rows, columns) e = Expand(i, s) t = Transpose(e) u = Transpose(t)"
        " y = GreaterOrEqual(u, j)",
    ],
)
def test_spellings_of_one_predicate_are_one_expression(body: str):
    assert text(body) == CAUSAL


def test_tables_that_follow_a_formula_are_read_as_it():
    at = "f = Constant<value_ints=[0,0]>() e = Concat<axis=0>(rows, columns) y = Slice(m, f, e)"
    distance = square(6)
    assert text(at, m=distance <= 0) == CAUSAL
    assert text(at, m=(distance <= 0) & (distance > -3)) == f"(-i + j + 2 >= 0) and ({CAUSAL})"
    assert text(at, m=np.ones((6, 6), bool)) == "True"
    hides = np.where(distance <= 0, 0, -np.inf).astype(np.float32)
    assert text(at, "float", m=hides) == f"(0 if {CAUSAL} else -inf)"
    assert text("y = Gather(p, j)", "int64", p=np.arange(3, 19, 2)) == "2*j + 3"


def test_tables_that_follow_none_are_looked_up():
    at = "f = Constant<value_ints=[0,0]>() e = Concat<axis=0>(rows, columns) y = Slice(m, f, e)"
    torn = square(6) <= 0
    torn[4, 0] = False
    assert text(at, m=torn) == "m[i, j]"
    split = np.isin(square(6), (-4, 0))  # on two diagonals, and off between them
    assert text(at, m=split) == "m[i, j]"


def test_a_floor_of_positions_needs_no_correction_for_negatives():
    body = """B = Constant<value_int=4>() q = Div(i, B) n = Less(i, zero) m = Mod(i, B)
        o = Cast<to=9>(m) a = And(n, o) c = Cast<to=7>(a) y = Sub(q, c)"""
    assert text(body, "int64") == "Div(i, 4)"


def test_an_absolute_value_in_an_inequality_is_two_edges():
    window = "d = Sub(j, i) a = Abs(d) w = Constant<value_int=3>() y = Less(a, w)"
    assert text(window) == "(-i + j + 2 >= 0) and (i - j + 2 >= 0)"


def test_a_mask_of_data_is_an_element_of_it():
    graph = graph_from_text(
        """g (int64[B,S] m) => (bool[B,1,1,S] y)
        { c = Cast<to=9>(m) a = Constant<value_ints=[1,2]>() y = Unsqueeze(c, a) }"""
    )
    found = read(graph.graph.outputs[0], NAMES)
    assert found.text == "not (m[b, j] == 0)"
    assert data(found) == {graph.graph.inputs[0]} and coordinates(found) == {"b", "j"}


def test_dimensions_are_sums_of_lengths():
    past, sequence = (Linear(0, ((Length(name), 1),)) for name in ("past", "sequence"))
    assert dimension(ir.SymbolicDim("past + sequence")) == past + sequence
    assert dimension(ir.SymbolicDim("2*past + 3")) == past * 2 + 3
    assert dimension(ir.SymbolicDim("sequence*2")) == sequence * 2
    assert dimension(ir.SymbolicDim("past//2")) == Linear(0, ((Length("past//2"), 1),))
    assert dimension(ir.SymbolicDim(None)) is None


def test_a_value_without_a_known_rank_is_not_read():
    graph = graph_from_text("g (float[N] x, int64[K] s) => (float y) { y = Reshape(x, s) }")
    graph.graph.outputs[0].shape = None
    with pytest.raises(NotClosed, match="rank of 'y' is not known"):
        read(graph.graph.outputs[0], NAMES)


def test_a_negation_is_brought_inside():
    i, j = coordinate("i"), coordinate("j")
    causal = apply("LessOrEqual", [j, i], ir.DataType.BOOL)
    near = apply("Greater", [j, i - 4], ir.DataType.BOOL)
    assert deny(causal).text == "-i + j - 1 >= 0"
    assert deny(every([causal, near])).text == "(-i + j - 1 >= 0) or (i - j - 4 >= 0)"
    assert every([causal, deny(causal)]).text == "False"


def test_buckets_settle_where_their_last_one_begins():
    d = Linear(0, ((Coordinate("d", signed=True), 1),))
    steps = apply("Cast", [apply("Abs", [d], ir.DataType.INT64)], ir.DataType.FLOAT)
    log = apply("Cast", [apply("Log", [steps], ir.DataType.FLOAT)], ir.DataType.INT64)
    bucket = apply("Min", [log, Linear(3)], ir.DataType.INT64)
    assert settled(bucket, "d", (21, inf)) and settled(bucket, "d", (-inf, -21))
    assert not settled(bucket, "d", (20, inf))  # log 20 is below 3, log 21 above
    assert bounds(bucket, {"d": (21, inf)}) == (3, 3)


# -- any expression: its numbers, and the nodes made of it, are those of the graph ---------------


@st.composite
def bodies(draw: st.DrawFn) -> str:
    lines, known = (
        ["three = Constant<value_int=3>() five = Constant<value_int=5>()"],
        ["i", "j", "T"],
    )
    for step in range(draw(st.integers(1, 6))):
        a, b = draw(st.sampled_from(known)), draw(st.sampled_from([*known, "three"]))
        lines.append(
            draw(
                st.sampled_from(
                    [
                        f"v{step} = Add({a}, {b})",
                        f"v{step} = Sub({a}, {b})",
                        f"v{step} = Mul({a}, three)",
                        f"v{step} = Mul({a}, {b})",
                        f"v{step} = Abs({a})",
                        f"v{step} = Neg({a})",
                        f"v{step} = Min({a}, {b})",
                        f"v{step} = Max({a}, {b})",
                        f"v{step} = Mod({a}, five)",
                        f"v{step} = Div({a}, five)",
                        f"c{step} = Less({a}, {b}) v{step} = Where(c{step}, {b}, {a})",
                        f"c{step} = Equal({a}, {b}) v{step} = Cast<to=7>(c{step})",
                        f"a{step} = Less({a}, {b}) b{step} = Less({b}, three)"
                        f" o{step} = Or(a{step}, b{step}) n{step} = Not(o{step})"
                        f" v{step} = Cast<to=7>(n{step})",
                    ]
                )
            )
        )
        known.append(f"v{step}")
    spread = "s = Concat<axis=0>(rows, columns)"
    return " ".join([*lines, spread, f"y = Expand({known[-1]}, s)"])


@settings(max_examples=60, deadline=None)
@given(bodies(), st.integers(1, 6), st.integers(1, 6))
def test_an_expression_has_the_numbers_of_its_graph(body: str, T: int, S: int):
    value = output_of(body)
    graph = value.graph
    assert graph is not None
    expression = read(value, NAMES)
    expected = GraphRunner(model_of(value)).run({"x": np.zeros((T, S), np.float32)})["y"]
    places = {"i": np.arange(T)[:, None], "j": np.arange(S)[None], "T": T, "S": S}
    found = compute(expression, {k: np.asarray(v) for k, v in places.items()})
    np.testing.assert_array_equal(np.broadcast_to(found, (T, S)), expected)
    np.testing.assert_array_equal(emitted(value, expression, T, S), expected)


def model_of(value: ir.Value) -> ir.Model:
    graph = value.graph
    assert isinstance(graph, ir.Graph)
    return ir.Model(graph, ir_version=11)


def emitted(value: ir.Value, expression: Expression, T: int, S: int) -> np.ndarray:
    """What the nodes made of an expression give, in the place of those that it was read from."""
    producer = value.producer()
    assert producer is not None and isinstance(value.graph, ir.Graph)
    before = Inserter(producer)
    names = {v.name: v for node in value.graph for v in node.outputs}
    places = {"i": names["i"], "j": names["j"]}
    made = Emitter(before, value.graph, places).emit(expression)
    shape = names["s"]
    producer.replace_input_with(0, made)
    producer.replace_input_with(1, shape)
    return GraphRunner(model_of(value)).run({"x": np.zeros((T, S), np.float32)})["y"]


@settings(max_examples=40, deadline=None)
@given(bodies(), st.integers(-4, 4))
def test_substituting_gives_the_numbers_at_the_other_place(body: str, shift: int):
    expression = read(output_of(body), NAMES)
    moved = substitute(expression, {"j": coordinate("j") + coordinate("i") + shift})
    i, j = np.arange(5)[:, None], np.arange(4)[None]
    lengths = {"T": np.asarray(5), "S": np.asarray(4)}
    there = compute(expression, {"i": i, "j": i + j + shift, **lengths})
    if shift >= 0:  # a coordinate is known not to be negative
        np.testing.assert_array_equal(
            *np.broadcast_arrays(compute(moved, {"i": i, "j": j, **lengths}), there)
        )
