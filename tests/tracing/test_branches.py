"""Modules that branch on sizes: refused with line, range and a hint that works; or right."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from small_exports import LENGTH, Small, check, export, option_of, refused
from torch import Tensor, nn

import omnigraph
from omnigraph.errors import InputError


def example(length: int = 16) -> dict[str, Tensor]:
    return {"x": torch.randn(2, length, 8)}


def pad_if_odd(m: Small, x: Tensor) -> Tensor:
    if x.shape[1] % 2 == 1:
        x = torch.cat([x, x[:, -1:]], 1)
    return m.layer(x[:, 0::2] - x[:, 1::2])


def pad_to_eight(m: Small, x: Tensor) -> Tensor:
    missing = max(x.shape[1], 8) - x.shape[1]
    return m.layer(nn.functional.pad(x, (0, 0, 0, missing)))


def blocks_of_four(m: Small, x: Tensor) -> Tensor:
    return m.layer(x) * 2 if x.shape[1] % 4 == 0 else m.layer(x)


def two_lengths(m: Small, x: Tensor) -> Tensor:
    if x.shape[1] <= 1:
        return m.layer(x)
    return m.layer(x) if x.shape[1] > 3 else m.layer(x) - 1


#: The function, the option that the hint names, and what is said of the branch.
REFUSED = {
    "longer than three": (
        lambda m, x: x + m.layer(x) if x.shape[1] > 3 else x,
        "length=4:",
        "'length > 3' at test_branches.py:",
    ),
    "only at lengths 2 and 3": (two_lengths, "length=4:", "'length > 3' at test_branches.py:"),
    "at most a hundred": (
        lambda m, x: m.layer(x) if x.shape[1] <= 100 else x,
        "length=1:100",
        "or fails, beyond 100, where 'length <= 100' at test_branches.py:",
    ),
    "padding if odd": (pad_if_odd, "length=16:16", "'length % 2 == 1' at test_branches.py:"),
    "multiples of four": (blocks_of_four, "length=5:7", "at test_branches.py:"),
    "one row": (
        lambda m, x: m.layer(x) if x.shape[0] > 1 else x,
        "batch=2:",
        "dimension 'batch' was specialized",
    ),
    "rows and tokens": (
        lambda m, x: m.layer(x) if x.shape[0] * x.shape[1] > 9 else x,
        "batch=2:2,length=16:16",
        "'batch*length > 9' at test_branches.py:",
    ),
    "as many rows as tokens": (
        lambda m, x: m.layer(x) if x.shape[0] != x.shape[1] else x,
        "batch=2:2,length=16:16",
        "'batch != length' at test_branches.py:",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_branch_is_refused_with_its_line_and_a_range_that_works(case: str, path: Path):
    function, option, said = REFUSED[case]
    module = Small(function)
    message = refused(module, example(), LENGTH, path)
    assert said in message
    assert "run `omnigraph verify`" not in message
    assert option_of(message) == option
    export(module, example(), LENGTH, path, option_of(message))


RIGHT = {
    "padding to eight": pad_to_eight,
    "where on sizes": lambda m, x: torch.where(
        torch.arange(x.shape[1])[:, None] > x.shape[1] // 2, m.layer(x), x
    ),
    "strides": lambda m, x: m.layer(x)[:, ::3],
    "halves": lambda m, x: torch.cat([x[:, x.shape[1] // 2 :], m.layer(x)], 1),
    "a mean over tokens": lambda m, x: m.layer(x) - x.sum(1, keepdim=True) / x.shape[1],
}


@pytest.mark.parametrize("case", RIGHT)
def test_what_is_computed_from_sizes_is_right_at_other_sizes(case: str, path: Path):
    module = Small(RIGHT[case])
    assert export(module, example(), LENGTH, path).remarks.limits == ()
    check(module, path, *({"x": torch.randn(*s, 8)} for s in [(1, 1), (3, 2), (2, 9), (1, 300)]))


def test_a_choice_of_many_is_right_at_other_sizes(path: Path):
    names = {"input_ids": {0: "batch", 1: "num_choices", 2: "length"}}
    module = Choices()
    export(module, {"input_ids": torch.randint(0, 50, (2, 4, 9))}, names, path)
    sizes = [(1, 1, 1), (3, 2, 8), (1, 5, 30)]
    check(module, path, *({"input_ids": torch.randint(0, 50, s)} for s in sizes))


class Choices(nn.Module):
    """A score for each choice, as models of multiple choice have it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.score = nn.Embedding(50, 8), nn.Linear(8, 1)

    def forward(self, input_ids: Tensor) -> Tensor:
        batch, choices, length = input_ids.shape
        flat = self.embed(input_ids.view(-1, length)).mean(1)
        return self.score(flat).view(batch, choices)


def test_a_past_of_nothing_may_be_declared(path: Path):
    def function(m: Small, x: Tensor, past: Tensor) -> Tensor:
        return m.layer(torch.cat([past, x], 1))

    axes = {**LENGTH, "past": {0: "batch", 1: "past"}}
    inputs = {**example(), "past": torch.randn(2, 5, 8)}
    module = Small(function)
    export(module, inputs, axes, path, "past=0:60,length=1:30")
    sizes = [(1, 0), (1, 60), (30, 0), (7, 7)]
    check(
        module,
        path,
        *({"x": torch.randn(1, t, 8), "past": torch.randn(1, p, 8)} for t, p in sizes),
    )


def test_a_past_of_nothing_is_refused_where_the_module_does_something_else(path: Path):
    def function(m: Small, x: Tensor, past: Tensor) -> Tensor:
        if past.shape[1] == 0:
            return x
        return m.layer(torch.cat([past, x], 1)[:, -x.shape[1] :])

    axes = {**LENGTH, "past": {0: "batch", 1: "past"}}
    inputs = {**example(), "past": torch.randn(2, 5, 8)}
    module = Small(function)
    message = refused(module, inputs, axes, path, "past=0:60")
    assert "dimension 'past' was specialized" in message
    assert option_of(message) == "past=1:60"
    export(module, inputs, axes, path, option_of(message))


#: Branches at sizes that are too large to compare, and where the range ends by itself.
TOO_LARGE = {
    "one length": (lambda n: n == 3000, 2999),
    "a square": (lambda n: n * n > 4_000_000, 2000),
    "multiples": (lambda n: n % 5000 == 0, 4999),
}


def adds_one(where: Callable[[int], bool]) -> Small:
    return Small(lambda m, x: m.layer(x) + 1 if where(x.shape[1]) else m.layer(x))


@pytest.mark.parametrize("case", TOO_LARGE)
def test_a_range_ends_before_a_branch_too_large_to_compare(case: str, path: Path):
    where, most = TOO_LARGE[case]
    message = refused(adds_one(where), example(), LENGTH, path, "length=1:9000")
    assert option_of(message) == f"length=1:{most}" and "too large" in message
    report = export(adds_one(where), example(), LENGTH, path)
    (limit,) = report.remarks.limits
    assert f"is 1:{most}, because the trace holds where" in limit and "test_branches.py:" in limit
    with omnigraph.load(path) as session, pytest.raises(InputError, match=f"1:{most}, found"):
        session.run(x=np.zeros((1, most + 1, 8), np.float32))


def test_only_the_dimensions_of_a_comparison_are_named(path: Path):
    def differently(m: Small, x: Tensor, y: Tensor) -> Tensor:
        h = m.layer(x).sum(1) + y.sum(1)
        return h if x.shape[1] != y.shape[1] else h + (x * y).sum(1)

    both = {"x": torch.randn(2, 8, 8), "y": torch.randn(2, 6, 8)}
    axes = {"x": {0: "batch", 1: "long"}, "y": {0: "batch", 1: "wide"}}
    message = refused(Small(differently), both, axes, path)
    assert "'long != wide' at test_branches.py:" in message
    assert option_of(message) == "long=8:8,wide=6:6"
    export(Small(differently), both, axes, path, option_of(message))


def test_a_product_of_sizes_too_large_to_compare_is_refused(path: Path):
    module = Small(lambda m, x: m.layer(x) * (2 if x.shape[0] * x.shape[1] > 10_000 else 1))
    message = refused(module, example(), LENGTH, path)
    assert "'batch*length <= 10000' at test_branches.py:" in message
    export(module, example(), LENGTH, path, option_of(message))
