"""Limits that a module has by itself become the ranges of its dimensions, and are said."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_exports import LENGTH, Small, check, export, option_of, refused, refuses
from torch import Tensor, nn

from omnigraph.frontends.module import program_from_module
from omnigraph.program import Dim
from omnigraph.tracing.limits import with_own_limits


def floats(*shape: int) -> Tensor:
    return torch.randn(shape)


# -- a largest size --------------------------------------------------------------------------------


def looked_up(m: Small, x: Tensor) -> Tensor:
    return m.layer(x) + m.table(torch.arange(x.shape[1]))


def sliced(m: Small, x: Tensor) -> Tensor:
    return m.layer(x) + m.table[: x.shape[1]]


def raising(m: Small, x: Tensor) -> Tensor:
    if x.shape[1] > 512:
        raise ValueError("at most 512 tokens")
    return m.layer(x)


TABLES = {
    "positions that are looked up": (looked_up, {"table": nn.Embedding(128, 8)}, 128),
    "positions that are cut from a table": (sliced, {"table": torch.randn(77, 8)}, 77),
    "a table longer than any trial": (sliced, {"table": torch.randn(3000, 8)}, 3000),
    "a limit that is raised": (raising, {}, 512),
}


@pytest.mark.parametrize("case", TABLES)
def test_a_limit_of_the_module_becomes_the_largest_size(case: str, path: Path):
    function, children, most = TABLES[case]
    module = Small(function, **children)
    report = export(module, {"x": floats(2, 9, 8)}, LENGTH, path)
    (limit,) = report.remarks.limits
    assert f"'length' of program 'forward' is 1:{most}, because at {most + 1} the " in limit
    assert "test_limits.py:" in limit
    assert report.to_dict()["limits"] == [limit]
    check(module, path, *({"x": floats(*s, 8)} for s in [(1, 1), (3, 8), (1, most)]))
    refuses(path, f"expected 1:{most}, found {most + 1}", {"x": floats(1, most + 1, 8)})


def test_a_range_that_is_declared_beyond_the_limit_is_refused(path: Path):
    module, inputs = Small(looked_up, table=nn.Embedding(128, 8)), {"x": floats(2, 9, 8)}
    message = refused(module, inputs, LENGTH, path, "length=1:200")
    assert "does not run at length=200, which its dimensions allow, at test_limits.py:" in message
    assert option_of(message) == "length=1:128"
    assert export(module, inputs, LENGTH, path, option_of(message)).remarks.limits == ()


def test_an_open_end_that_is_declared_goes_as_far_as_the_module(path: Path):
    module = Small(looked_up, table=nn.Embedding(40, 8))
    report = export(module, {"x": floats(2, 9, 8)}, LENGTH, path, "length=4:")
    assert "is 4:40" in report.remarks.limits[0]


def test_a_limit_of_the_batch(path: Path):
    module = Small(lambda m, x: m.layer(x) + m.rows[: x.shape[0]], rows=torch.randn(4, 1, 8))
    report = export(module, {"x": floats(2, 9, 8)}, LENGTH, path)
    assert "dimension 'batch' of program 'forward' is 1:4" in report.remarks.limits[0]
    check(module, path, {"x": floats(4, 3, 8)}, {"x": floats(1, 3, 8)})


def with_past(m: Small, x: Tensor, past: Tensor) -> Tensor:
    both = torch.cat([past, x], 1)
    return m.layer(both) + m.table(torch.arange(both.shape[1]))


def test_a_limit_of_a_sum(path: Path):
    module = Small(with_past, table=nn.Embedding(40, 8))
    axes = {**LENGTH, "past": {0: "batch", 1: "past"}}
    inputs = {"x": floats(2, 9, 8), "past": floats(2, 4, 8)}
    report = export(module, inputs, axes, path, "past=0:")
    assert "'length + past' of program 'forward' has at most 40" in report.remarks.limits
    sizes = [(1, 39), (40, 0), (20, 20), (1, 0)]
    check(module, path, *({"x": floats(1, t, 8), "past": floats(1, p, 8)} for t, p in sizes))
    program = program_from_module(module, inputs, dynamic=axes)
    dims = with_own_limits(program.with_dims({"past": Dim(0)})).dims
    assert (dims["length"], dims["past"]) == (Dim(1, 40), Dim(0, 39))
    assert dims["length + past"] == Dim(1, 40)


# -- a least size ----------------------------------------------------------------------------------


class Waves(nn.Module):
    """Convolutions over samples, as speech models begin: none of fewer than 400."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(1, 4, 80, stride=40)
        self.second = nn.Conv1d(4, 8, 9, stride=4)

    def forward(self, samples: Tensor) -> Tensor:
        hidden = self.second(self.first(samples[:, None]).relu())
        return hidden.transpose(1, 2).softmax(1)


WAVES = {"samples": {0: "batch", 1: "samples"}}


def test_a_limit_of_the_module_becomes_the_least_size(path: Path):
    module = Waves()
    report = export(module, {"samples": floats(2, 800)}, WAVES, path)
    (limit,) = report.remarks.limits
    assert (
        "dimension 'samples' of program 'forward' is 400:, because at 399 the module fails" in limit
    )
    assert "test_limits.py:" in limit
    check(module, path, *({"samples": floats(*s)} for s in [(1, 400), (3, 401), (2, 1999)]))


def test_a_range_below_the_least_size_is_refused(path: Path):
    message = refused(Waves(), {"samples": floats(2, 800)}, WAVES, path, "samples=1:900")
    assert "does not run at samples=" in message
    assert option_of(message) == "samples=400:900"
    export(Waves(), {"samples": floats(2, 800)}, WAVES, path, option_of(message))


def test_a_range_with_no_size_that_runs_is_refused_with_one_that_has(path: Path):
    message = refused(Waves(), {"samples": floats(2, 800)}, WAVES, path, "samples=1:9")
    assert option_of(message).startswith("samples=400:")
    export(Waves(), {"samples": floats(2, 800)}, WAVES, path, option_of(message))


def test_both_ends(path: Path):
    def function(m: Small, x: Tensor) -> Tensor:
        return (m.layer(x).unfold(1, 6, 1).mean(-1)) + m.table[: x.shape[1] - 5]

    module = Small(function, table=torch.randn(60, 8))
    report = export(module, {"x": floats(2, 9, 8)}, LENGTH, path)
    assert "is 6:65, because at 5 the module fails" in report.remarks.limits[0]
    check(module, path, *({"x": floats(*s, 8)} for s in [(1, 6), (3, 7), (1, 65)]))


def test_height_and_width_of_pictures(path: Path):
    module = nn.Sequential(nn.Conv2d(3, 4, 8, stride=8), nn.GELU(), nn.Conv2d(4, 4, 2))
    axes = {"input": {0: "batch", 2: "height", 3: "width"}}
    report = export(module, {"input": floats(2, 3, 32, 24)}, axes, path)
    assert sorted(limit[11:17] for limit in report.remarks.limits) == ["height", "width'"]
    assert all("is 16:" in limit for limit in report.remarks.limits)

    class Named(nn.Module):
        def forward(self, input: Tensor) -> Tensor:
            return module(input)

    check(Named(), path, *({"input": floats(*s)} for s in [(1, 3, 16, 16), (2, 3, 17, 50)]))


# -- no range --------------------------------------------------------------------------------------


def in_fours(m: Small, x: Tensor) -> Tensor:
    batch, length, _ = x.shape
    return m.layer(x).reshape(batch, length // 4, 32)


def test_multiples_are_refused_and_said(path: Path):
    module, inputs = Small(in_fours), {"x": floats(2, 16, 8)}
    message = refused(module, inputs, LENGTH, path)
    assert "does not take any size of dimension 'length' (axis 1 of input 'x')" in message
    assert "at test_limits.py:" in message
    assert "found multiples of 4: " in message
    assert option_of(message) == "length=16:16"
    export(module, inputs, LENGTH, path, option_of(message))
    check(module, path, {"x": floats(3, 16, 8)})


def test_halves_of_the_batch_are_refused_and_said(path: Path):
    def function(m: Small, x: Tensor) -> Tensor:
        return m.layer(x).reshape(x.shape[0] // 2, 2, *x.shape[1:]).mean(1)

    message = refused(Small(function), {"x": floats(4, 9, 8)}, LENGTH, path)
    assert "does not take any size of dimension 'batch'" in message
    assert "found multiples of 2: " in message
    export(Small(function), {"x": floats(4, 9, 8)}, LENGTH, path, option_of(message))


def test_two_dimensions_that_must_agree_are_refused_and_said(path: Path):
    module = Small(lambda m, x, y: m.layer(x) * m.layer(y))
    inputs = {"x": floats(2, 9, 8), "y": floats(2, 9, 8)}
    message = refused(module, inputs, {**LENGTH, "y": {0: "batch", 1: "other"}}, path)
    assert "dimension 'length' beside 'other', at test_limits.py:" in message
    assert "hint: give both axes one name, 'length'" in message
    export(module, inputs, {**LENGTH, "y": LENGTH["x"]}, path)
    check(module, path, {"x": floats(1, 3, 8), "y": floats(1, 3, 8)})


def test_a_mask_that_goes_with_another_input_may_be_wrong_in_one_size(path: Path):
    def function(m: Small, x: Tensor, mask: Tensor) -> Tensor:
        return m.layer(x).masked_fill(mask[..., None] == 0, 0.0)

    axes = {**LENGTH, "mask": {0: "rows", 1: "length"}}
    inputs = {"x": floats(3, 9, 8), "mask": torch.ones(3, 9)}
    message = refused(Small(function), inputs, axes, path)
    assert "'batch' beside 'rows'" in message or "'rows' beside 'batch'" in message


# -- axes that were guessed ------------------------------------------------------------------------


def test_channels_that_were_taken_for_a_length_say_how_to_name_the_axes(path: Path):
    module = nn.Sequential(nn.Conv1d(8, 4, 3), nn.ReLU())
    message = refused(module, {"input": floats(2, 8, 40)}, None, path)
    assert "does not take any size of dimension 'sequence' (axis 1 of input 'input')" in message
    assert "found 8 alone: " in message
    assert "axes [0, 1] of 'input' were taken for batch and sequence" in message
    assert "(module, inputs, {'input': {0: 'batch', 2: 'length'}})" in message
    assert ".item()" not in message
    axes = {"input": {0: "batch", 2: "length"}}
    report = export(module, {"input": floats(2, 8, 40)}, axes, path)
    assert "dimension 'length' of program 'forward' is 3:" in report.remarks.limits[0]


# -- what is left alone ----------------------------------------------------------------------------


@pytest.mark.parametrize("ranges", [{"length": Dim(1, 30)}, {"length": Dim(5, 30), "batch": Dim()}])
def test_ranges_that_are_declared_are_left_alone(ranges: dict[str, Dim]):
    module = Small(looked_up, table=nn.Embedding(128, 8))
    program = program_from_module(module, {"x": floats(2, 9, 8)}, dynamic=LENGTH)
    limited = with_own_limits(program.with_dims(ranges))
    assert limited.dims["length"] == ranges["length"]
    assert limited.limits == ()


def test_a_module_without_limits_has_none():
    module = Small(lambda m, x: m.layer(x).softmax(1))
    program = program_from_module(module, {"x": floats(2, 9, 8)}, dynamic=LENGTH)
    assert with_own_limits(program) == program


def test_limits_are_the_same_each_time():
    module = Small(looked_up, table=nn.Embedding(100, 8))
    program = program_from_module(module, {"x": floats(2, 9, 8)}, dynamic=LENGTH)
    first, second = with_own_limits(program), with_own_limits(program)
    assert (first.dims, first.limits) == (second.dims, second.limits)
    assert first.dims["length"] == Dim(1, 100)
