"""The range of an input is what torch accepts, whatever stands between it and the table."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnigraph.passes.analysis.index.accepted import ALL, common, others, union
from omnigraph.passes.analysis.index.input_ranges import with_ranges
from omnigraph.program import Dim, Program, TensorSpec
from omnigraph.testing import graph_from_text
from omnigraph.tracing.trace import trace

TABLE = torch.arange(36.0).reshape(12, 3)
SCORES = torch.arange(12.0)[None]


def rows(ids: Tensor, table: Tensor = TABLE) -> Tensor:
    return F.embedding(ids, table)


#: What a model does with ids [2, 4]. The tables have 12 rows.
LOOKUPS: dict[str, Callable[[Tensor], Tensor]] = {
    "embedding": rows,
    "offset": lambda i: rows(i + 2),
    "offset on the left": lambda i: rows(2 + i),
    "negative offset": lambda i: rows(i - 1),
    "from the end": lambda i: rows(11 - i),
    "every second": lambda i: rows(2 * i + 1),
    "negated": lambda i: rows(-i),
    "two tables": lambda i: rows(i) + rows(i, TABLE[:7]),
    "two offsets": lambda i: rows(i + 5) + rows(i - 1),
    "another type": lambda i: rows(i.to(torch.int32)),
    "flattened": lambda i: rows(i.reshape(-1)).reshape(*i.shape, 3),
    "joined with others": lambda i: rows(torch.cat([torch.zeros_like(i[:, :1]), i], 1)),
    "transposed": lambda i: rows(i.T),
    "unsqueezed": lambda i: rows(i[..., None]).squeeze(2),
    "indexed": lambda i: TABLE[i],
    "indexed on the second axis": lambda i: TABLE.T[:, i],
    "indexed twice": lambda i: TABLE[i, i],
    "index_select": lambda i: torch.index_select(TABLE, 0, i.reshape(-1)),
    "gather": lambda i: torch.gather(SCORES.expand(i.shape[0], 12), 1, i),
    "take": lambda i: torch.take(TABLE, i),
    "scatter": lambda i: torch.zeros(i.shape[0], 12).scatter(1, i, 1.0),
    "bag": lambda i: F.embedding_bag(i, TABLE, mode="sum"),
    "clamped": lambda i: rows(i.clamp(0, 11)),
    "clamped below": lambda i: rows(i.clamp(min=0)),
    "clamped above": lambda i: rows(i.clamp(max=11)),
    "clamped too far": lambda i: rows(i.clamp(-5, 20)),
    "minimum": lambda i: rows(torch.minimum(i, torch.tensor(11))),
    "unknown words": lambda i: rows(torch.where(i >= 12, 0, i)),
    "ignored labels": lambda i: rows(i.masked_fill(i == -100, 0)),
    "counted from the end": lambda i: rows(torch.where(i < 0, i + 12, i)),
    "not below zero": lambda i: rows(torch.where(~(i < 0), i, 0)),
    "within two limits": lambda i: rows(torch.where((i >= 0) & (i < 12), i, 0)),
    "remainder": lambda i: rows(i % 12),
    "mask": lambda i: torch.where(i.bool(), 1.0, 0.0),
    "number": lambda i: i.float() * 2,
    "counted": lambda i: rows((torch.cumsum((i != 1).long(), 1) * (i != 1).long()).clamp(max=3)),
    "one column": lambda i: rows(i[:, 0]),
    "each column": lambda i: rows(i[:, 0]) + rows(i[:, 1]) + rows(i[:, 2:]).sum(1),
    "each step": lambda i: sum(rows(step) for step in i.unbind(1)),
    "shifted right": lambda i: rows(F.pad(i[:, :-1], (1, 0), value=1)),
    "shifted by joining": lambda i: rows(torch.cat([torch.ones_like(i[:, :1]), i[:, :-1]], 1)),
    "columns with offsets": lambda i: rows(i[:, :2] + 1) + rows(i[:, 2:] + 1),
    "a column and a number": lambda i: rows(i[:, 0].clamp(0, 11)) * i[:, 1:].float().sum(),
    "labels": lambda i: torch.gather(F.log_softmax(SCORES.expand(i.shape[0], 12), -1), 1, i),
    "loss": lambda i: F.cross_entropy(
        SCORES.expand(i.numel(), 12), i.reshape(-1), reduction="none"
    ),
}
TRIED = range(-130, 60)


class Lookups(nn.Module):
    """Each function of an input of its own."""

    def forward(self, **ids: Tensor) -> dict[str, Tensor]:
        return {f"y{n}": f(ids[f"x{n}"]) for n, f in enumerate(LOOKUPS.values())}


@cache
def ranges() -> dict[str, TensorSpec]:
    names = [f"x{n}" for n in range(len(LOOKUPS))]

    def zeros(case: Any) -> dict[str, Tensor]:
        return {n: torch.zeros(case.sizes["batch"], 4, dtype=torch.int64) for n in names}

    specs = tuple(TensorSpec(name, "int64", ("batch", 4)) for name in names)
    outputs = tuple(f"y{n}" for n in range(len(LOOKUPS)))
    program = Program("forward", Lookups(), specs, outputs, {"batch": Dim()}, zeros)
    found = with_ranges(trace(program), specs, negative_rows=False)
    return dict(zip(LOOKUPS, found, strict=True))


def accepted_by_torch(function: Callable[[Tensor], Tensor]) -> list[int]:
    def runs(number: int) -> bool:
        try:
            function(torch.full((2, 4), number))
        except (IndexError, RuntimeError):
            return False
        return True

    return [number for number in TRIED if runs(number)]


@pytest.mark.parametrize("name", LOOKUPS)
def test_the_range_is_what_torch_accepts(name: str):
    numbers = accepted_by_torch(LOOKUPS[name])
    least = None if numbers[0] == TRIED[0] else numbers[0]
    greatest = None if numbers[-1] == TRIED[-1] else numbers[-1]
    spec = ranges()[name]
    assert (spec.least, spec.greatest) == (least, greatest)


def range_in(text: str, *, negative_rows: bool = False) -> tuple[Any, Any]:
    graph = graph_from_text(text)
    (value,) = graph.graph.inputs
    assert value.name is not None
    assert value.dtype is not None
    spec = TensorSpec(value.name, value.dtype.name.lower(), ("n",))
    (found,) = with_ranges(graph, (spec,), negative_rows=negative_rows)
    assert [v.name for v in graph.graph.inputs] == [value.name]
    return found.least, found.greatest


TABLE_TEXT = "<float[5,2] t = {0,1,2,3,4,5,6,7,8,9}>"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("y = Gather(t, i)", (0, 4)),
        ("y = Gather<axis = 1>(t, i)", (0, 1)),
        ("y = Gather<axis = -1>(t, i)", (0, 1)),
        ("two = Constant<value_int = 2>() j = Div(i, two) y = Gather(t, j)", (-1, 9)),
        ("two = Constant<value_int = -2>() j = Mul(i, two) y = Gather(t, j)", (-2, 0)),
        ("d = Constant<value_ints = [5]>() v = Constant<value_floats = [0.0, 1.0]>() "
         "y = OneHot(i, d, v)", (0, 4)),
        ("c = Constant<value_ints = [0, 3, 1]>() j = Add(i, c) y = Gather(t, j)", (-3, 4)),
        ("a = Constant<value_int = 0>() b = Constant<value_int = 3>() "
         "s = Constant<value_int = 1>() r = Range(a, b, s) j = Add(r, i) y = Gather(t, j)",
         (-2, 4)),
        ("s = Shape(i) t2 = ConstantOfShape(s) y = Gather(t2, i)", (None, None)),
    ],
)  # fmt: skip
def test_the_range_in_a_graph(body: str, expected):
    assert range_in(f"g (int64[n] i) => (float y) {TABLE_TEXT} {{ {body} }}") == expected


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        ("b = Gather(t, right)", (0, 4)),
        ("b = Gather<axis = 1>(t, right)", (0, 4)),
        ("two = Constant<value_int = 3>() j = Sub(right, two) b = Gather(t, j)", (0, 7)),
        ("b = Cast<to = 1>(right)", (None, None)),
    ],
)
def test_parts_that_are_looked_up_in_tables_of_their_own(second: str, expected):
    """What is a row of no table is refused; what is read as a number may be any."""
    text = f"""g (int64[n] i) => (float a, float b) {TABLE_TEXT} {{
        left, right = Split<axis = 0, num_outputs = 2>(i)
        a = Gather(t, left)
        {second}
    }}"""
    assert range_in(text) == expected


def test_a_declared_range_is_kept_or_made_narrower():
    graph = graph_from_text(
        f"g (int64[n] i, float[n] x) => (float[n,2] y, float[n] z) {TABLE_TEXT} "
        "{ y = Gather(t, i) z = Abs(x) }"
    )
    specs = (
        TensorSpec("i", "int64", ("n",), least=1, greatest=100),
        TensorSpec("x", "float32", ("n",), least=0, greatest=1),
    )
    ids, numbers = with_ranges(graph, specs, negative_rows=False)
    assert (ids.least, ids.greatest) == (1, 4)
    assert (numbers.least, numbers.greatest) == (0, 1)


def test_negative_rows_count_from_the_end_in_a_file():
    text = f"g (int64[n] i) => (float[n,2] y) {TABLE_TEXT} {{ y = Gather(t, i) }}"
    assert range_in(text, negative_rows=True) == (-5, 4)


def test_what_is_looked_up_in_one_branch_alone_has_no_range():
    text = f"""g (int64[n] i) => (float[n,2] y) {TABLE_TEXT} {{
        zero = Constant<value_int = 0>()
        many = ReduceSum<keepdims = 0>(i)
        big = Greater(many, zero)
        y = If(big) <
            then_branch = a () => (float[n,2] p) {{ p = Gather(t, i) }},
            else_branch = b () => (float[n,2] q) {{ z = Sub(i, i) q = Gather(t, z) }}
        >
    }}"""
    assert range_in(text) == (None, None)


@pytest.mark.parametrize("kind", ["float", "float16", "double"])
def test_floats_are_finite_unless_the_model_looks_for_others(kind: str):
    name = {"float": "float32", "double": "float64"}.get(kind, kind)
    finite = (None, float(np.finfo(name).max))
    head = f"g ({kind}[n] x) => ({{}}[n] y)"
    assert range_in(head.format(kind) + " { y = Abs(x) }") == finite
    looks = [
        "y = IsNaN(x)",
        "y = IsInf(x)",
        "c = Cast<to = 1>(x) y = IsNaN(c)",
        "s = Constant<value_ints = [-1]>() r = Reshape(x, s) y = IsNaN(r)",
        "e = Equal(x, x) y = Not(e)",
    ]
    for body in looks:
        assert range_in(f"{head.format('bool')} {{ {body} }}") == (None, None)
    assert range_in(head.format("bool") + " { a = Abs(x) y = IsNaN(a) }") == finite


def test_integers_that_are_joined_and_turned_around():
    some = ((-3, -1), (4, 9))
    assert others(others(some)) == some
    assert others(ALL) == ()
    assert others(()) == ALL
    assert union(some, others(some)) == ALL
    assert union(((0, 3),), ((4, 9),)) == ((0, 9),)
    assert common(some, others(some)) == ()
    assert common(some, ((-2, 5),)) == ((-2, -1), (4, 5))
