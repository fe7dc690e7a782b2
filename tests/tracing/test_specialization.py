"""A trace that fixed a dimension is an error that names the dimension and the module."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from omnigraph.errors import TraceError
from omnigraph.frontends.module import program_from_module
from omnigraph.input_sets import contract_cases
from omnigraph.program import Case, Dim, Program
from omnigraph.tracing.specialization import longest_declared
from omnigraph.tracing.trace import check_trace, reference_for, trace


class Step(nn.Module):
    """A module that does with [B, T, C] what a test wants done."""

    def __init__(self, step: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.step = step

    def forward(self, hidden: Tensor) -> Tensor:
        return self.step(hidden)


class Net(nn.Module):
    """An embedding, a harmless layer, the step that a test is about, and a layer after it."""

    def __init__(self, step: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 8)
        self.before = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
        self.inner = nn.ModuleList([Step(lambda hidden: hidden.tanh()), Step(step)])
        self.after = nn.Linear(8, 8)

    def forward(self, input_ids: Tensor) -> Tensor:
        hidden = self.before(self.embed(input_ids))
        for module in self.inner:
            hidden = module(hidden)
        return self.after(hidden)


def program(step: Callable[[Tensor], Tensor], **dims: Dim) -> Program:
    made = program_from_module(Net(step), {"input_ids": torch.randint(0, 50, (2, 7))})
    return made.with_dims(dims)


def compile_(made: Program) -> None:
    """Trace and compare, as an export does."""
    graph = trace(made)
    check_trace(made, graph, [reference_for(made, case) for case in contract_cases(made)])


def error_of(made: Program) -> str:
    with pytest.raises(TraceError) as caught:
        compile_(made)
    message = str(caught.value)
    assert "\nhint: " in message
    assert message.count("\n") == 1
    return message


# -- fixed to one size: seen while tracing ---------------------------------------------------------

EXAMPLE = torch.arange(7.0)

FIXED = {
    "a branch on one size": (lambda x: x * 2 if x.shape[1] == 7 else x + 1, "sequence", 7),
    "a size made a number": (lambda x: x / int(x.shape[1]), "sequence", 7),
    "positions made of a number": (
        lambda x: x + torch.arange(int(x.shape[1]))[None, :, None],
        "sequence",
        7,
    ),
    "positions of the example": (lambda x: x + EXAMPLE[None, :, None], "sequence", 7),
    "a loop over tokens": (
        lambda x: torch.stack([x[:, i] for i in range(x.shape[1])], 1),
        "sequence",
        7,
    ),
    "halves of the batch": (lambda x: torch.cat(x.chunk(2, dim=0)[::-1], 0), "batch", 2),
    "a table of the batch": (lambda x: x + torch.ones(2, 1, 8), "batch", 2),
}


@pytest.mark.parametrize("case", FIXED)
def test_a_size_that_became_a_number_is_named_with_its_module(case: str):
    step, dim, size = FIXED[case]
    message = error_of(program(step))
    assert f"fixed dimension {dim!r}, which was declared dynamic, in module 'inner.1'" in message
    assert f"found the constant {size}" in message
    assert f"--dynamic {dim}={size}:{size}" in message


@pytest.mark.parametrize("case", ["a size made a number", "positions of the example"])
def test_what_the_hint_says_to_do_works(case: str):
    compile_(program(FIXED[case][0], sequence=Dim(7, 7)))


# -- held for fewer sizes than declared: seen while tracing ----------------------------------------


def longest_10(x: Tensor) -> Tensor:
    assert x.shape[1] <= 10, "too long"
    return x * 2


NARROWED = {
    "another formula for long inputs": (lambda x: x * 2 if x.shape[1] > 100 else x, 100),
    "a limit that is asserted": (longest_10, 10),
    "a table that ends": (lambda x: x + torch.arange(64.0)[: x.shape[1], None], 64),
}


@pytest.mark.parametrize("case", NARROWED)
def test_sizes_that_were_lost_are_named_with_their_module(case: str):
    step, most = NARROWED[case]
    message = error_of(program(step))
    assert "holds for fewer sizes of dimension 'sequence' than were declared" in message
    assert f"module 'inner.1' does something else, or fails, beyond {most}" in message
    assert f"--dynamic sequence=1:{most}" in message


@pytest.mark.parametrize("case", NARROWED)
def test_the_sizes_that_are_left_can_be_declared(case: str):
    step, most = NARROWED[case]
    compile_(program(step, sequence=Dim(1, most)))
    assert f"beyond {most}" in error_of(program(step, sequence=Dim(1, most + 1)))


def test_the_module_that_runs_is_blamed_and_not_one_it_calls_next():
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.child = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.child(x + torch.ones(1, 9, 1)[:, : x.shape[1]])

    outer = nn.Sequential(nn.Linear(8, 8), Outer())
    made = program_from_module(outer, {"input": torch.randn(2, 7, 8)})
    assert "module '1' does something else" in error_of(made)


def test_a_limit_on_a_sum_of_dimensions_is_named():
    class Cached(nn.Module):
        def forward(self, x: Tensor, past: Tensor, mask: Tensor) -> Tensor:
            table = torch.arange(40.0)[: mask.shape[1], None]
            return torch.cat([past, x], 1) * mask[..., None] + table

    inputs = {"x": torch.randn(2, 3, 8), "past": torch.randn(2, 4, 8), "mask": torch.ones(2, 7)}
    axes = {
        "x": {0: "batch", 1: "sequence"},
        "past": {0: "batch", 1: "past"},
        "mask": {0: "batch", 1: "past + sequence"},
    }
    made = program_from_module(Cached(), inputs, dynamic=axes)
    message = error_of(made)
    assert "dimension 'past + sequence'" in message
    assert "--dynamic 'past + sequence=" in message
    bounded = replace(made, dims={**made.dims, "past + sequence": Dim(1, 40)})
    trace(bounded)


def test_the_bound_of_a_sum_is_its_own_or_that_of_its_terms():
    made = program(lambda x: x)
    sized = replace(made, dims={"a": Dim(1, 5), "b": Dim(0, 7), "c": Dim(1), "a + c": Dim(1, 9)})
    assert longest_declared(sized, "a") == 5
    assert longest_declared(sized, "a + b") == 12
    assert longest_declared(sized, "a + 3") == 8
    assert longest_declared(sized, "a + c") == 9
    assert longest_declared(sized, "b + c") is None
    assert longest_declared(sized, "unknown") is None


# -- slipped past torch.export: seen by comparing numbers ------------------------------------------

SLIPPED = {
    # torch.export takes it for granted that no size is 0 or 1.
    "another formula for one row": (
        lambda x: x if x.shape[0] == 1 else x - x.mean(0, keepdim=True),
        "batch",
    ),
    "right only for several rows": (
        lambda x: (x - x.mean(0)) / (1 + x.std(0)) if x.shape[0] > 1 else x,
        "batch",
    ),
    "another formula for one token": (lambda x: x * 3 if x.shape[1] < 2 else x, "sequence"),
    # A lower bound alone is no error: see SpecializationWatch.
    "another formula for short inputs": (
        lambda x: x * 2 if x.shape[1] > 6 else x + 1,
        "sequence",
    ),
    "padding to an even length": (
        lambda x: x.cumsum(1) if x.shape[1] % 2 else x,
        "sequence",
    ),
    "blocks of four": (lambda x: x * 2 if x.shape[1] % 4 == 0 else x, "sequence"),
}


@pytest.mark.parametrize("case", SLIPPED)
def test_what_torch_did_not_see_is_seen_in_the_numbers(case: str):
    step, dim = SLIPPED[case]
    made = program(step)
    graph = trace(made)
    with pytest.raises(TraceError) as caught:
        check_trace(made, graph, [reference_for(made, c) for c in contract_cases(made)])
    message = str(caught.value)
    assert "not what the model computes at other sizes than it was traced at" in message
    assert f"dimension {dim!r} was specialized in module 'inner.1'" in message
    assert "found output with an error of " in message
    assert "\nhint: compute with tensor.shape there" in message


def test_two_dimensions_that_only_together_part_are_both_named():
    made = program(lambda x: x if x.shape[0] * x.shape[1] == 1 else x - x.mean())
    graph = trace(made)
    one = reference_for(made, Case("one", {"batch": 1, "sequence": 1}))
    with pytest.raises(TraceError, match="dimension 'batch' and 'sequence' was specialized"):
        check_trace(made, graph, [one])


def test_numbers_that_part_at_any_size_blame_no_dimension():
    made = program(lambda x: x)
    graph = trace(made)
    with torch.no_grad():
        made.module.inner[0].step = lambda x: x.sigmoid()  # the model is not what was traced
    message = error_of_check(made, graph)
    assert "whatever the sizes: the numbers part in module 'inner.0'" in message
    assert "specialized" not in message


def error_of_check(made: Program, graph) -> str:
    with pytest.raises(TraceError) as caught:
        check_trace(made, graph, [reference_for(made, c) for c in contract_cases(made)])
    return str(caught.value)


def test_a_node_that_fails_at_other_sizes_is_named():
    # torch writes a squeeze that may do nothing as one that must do something.
    made = program(lambda x: x.squeeze(0) + 0)
    message = error_of(made)
    assert "Squeeze" in message
    assert "of module 'inner.1' (test_specialization.py:" in message


# -- cannot be traced at all -----------------------------------------------------------------------

UNTRACEABLE = {
    "a branch on a value": lambda x: x * 2 if x.sum() > 0 else x,
    "a branch on an item": lambda x: x * 2 if x.sum().item() > 0 else x,
    "a size taken from a value": lambda x: x[:, : int(x.abs().sum().item()) % 5],
    "numpy": lambda x: x + torch.from_numpy(x.detach().numpy()),
}


@pytest.mark.parametrize("case", UNTRACEABLE)
def test_what_cannot_be_traced_is_an_error_with_its_place(case: str):
    message = error_of(program(UNTRACEABLE[case]))
    assert "Program 'forward' could not be traced, at test_specialization.py:" in message
    assert ".item()" in message
    assert "Traceback" not in message


def test_the_error_of_torch_is_kept_as_the_cause():
    with pytest.raises(TraceError) as caught:
        trace(program(UNTRACEABLE["a branch on a value"]))
    assert caught.value.__cause__ is not None


def test_an_item_that_only_numbers_depend_on_is_traced():
    compile_(program(lambda x: x * x.abs().mean().item()))


def test_an_operation_that_onnx_lacks_is_named():
    message = error_of(program(lambda x: x + torch.special.i1e(x)))
    assert "was traced, but torch could not convert it to ONNX" in message
    assert "i1e" in message


# -- things that no artifact can hold --------------------------------------------------------------


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.register_buffer("calls", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        self.calls[:1].add_(1)
        return self.layer(x) * self.calls[0]


def test_state_that_a_module_keeps_is_refused():
    made = program_from_module(nn.Sequential(Counting()), {"input": torch.randn(2, 7, 8)})
    message = error_of(made)
    assert "changes its own tensor '0.calls'" in message
    assert "return it as an output" in message


def test_a_module_that_changes_copies_is_fine():
    def step(x: Tensor) -> Tensor:
        y = x.clone()
        y[:, :1].add_(1)
        return y.mul_(2)

    compile_(program(step))


@pytest.mark.parametrize(
    "step",
    [lambda x: x + torch.rand_like(x), lambda x: nn.functional.dropout(x, 0.5, training=True)],
    ids=["noise", "dropout"],
)
def test_random_numbers_are_refused(step):
    message = error_of(program(step))
    assert "draws random numbers" in message
    assert "of module 'inner.1' (test_specialization.py:" in message
    assert "model.eval()" in message


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_of_half_precision_are_refused(dtype: torch.dtype):
    made = program(lambda x: x)
    made.module.after.to(dtype)
    with pytest.raises(TraceError, match=r"'after\.weight'.*float32[\s\S]*model\.float\(\)"):
        trace(made)


def test_a_module_that_computes_in_bfloat16_is_refused():
    class Cast(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return x @ x.transpose(1, 2)

    made = program_from_module(Cast(), {"x": torch.randn(2, 7, 8)})
    with pytest.raises(TraceError, match=r"'output'.*found bfloat16\.\nhint: switch autocast off"):
        reference_for(made, contract_cases(made)[0])


def test_sizes_that_the_module_itself_does_not_take_are_named():
    made = program(lambda x: x.unfold(1, 3, 1).sum(-1))
    message = error_of(made)
    assert "does not run at sequence=1, which its dimensions allow" in message
    assert "at test_specialization.py:" in message
    assert "--dynamic" in message
    compile_(program(lambda x: x.unfold(1, 3, 1).sum(-1), sequence=Dim(3)))


def test_inputs_and_outputs_must_be_those_that_the_program_names():
    made = program(lambda x: x)
    with pytest.raises(TraceError, match=r"expected first, second, found 1 tensors[\s\S]*hint: "):
        trace(replace(made, outputs=("first", "second")))
    with pytest.raises(TraceError, match=r"expected input_ids, found tokens[\s\S]*hint: "):
        trace(replace(made, make_inputs=lambda case: {"tokens": torch.zeros(2, 7)}))
