"""Anyone's module, from example inputs: traced as what it computes, or an error says why not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from traced_modules import WHOLE, Module, compile_, compiled, floats, outputs

from omnigraph.errors import TraceError, UsageError
from omnigraph.frontends.module import program_from_module
from omnigraph.input_sets import contract_cases
from omnigraph.program import Case, TensorSpec

# -- what a module may return ----------------------------------------------------------------------

RETURNED = {
    "a tensor": (lambda m, x: m.layer(x), {"output": WHOLE}),
    "a tuple": (lambda m, x: (m.layer(x), x * 2), {"output.0": WHOLE, "output.1": WHOLE}),
    "a mapping": (lambda m, x: {"b": m.layer(x), "a": x * 2}, {"b": WHOLE, "a": WHOLE}),
    "nested": (
        lambda m, x: {"a": m.layer(x), "more": [x + 1, (x + 2,)]},
        {"a": WHOLE, "more.0": WHOLE, "more.1.0": WHOLE},
    ),
    "what is no tensor beside": (
        lambda m, x: (m.layer(x), None, {"a": x * 2, "b": None}, "text"),
        {"output.0": WHOLE, "output.2.a": WHOLE},
    ),
    "its own input": (lambda m, x: x, {"output": WHOLE}),
    "its input beside another": (
        lambda m, x: (m.layer(x), x),
        {"output.0": WHOLE, "output.1": WHOLE},
    ),
    "one tensor twice": (
        lambda m, x: (lambda y: (y, y))(m.layer(x)),
        {"output.0": WHOLE, "output.1": WHOLE},
    ),
    "a view": (
        lambda m, x: (m.layer(x)[:, :1], m.layer(x).transpose(1, 2)),
        {
            "output.0": ("float32", ("batch", 1, 8)),
            "output.1": ("float32", ("batch", 8, "sequence")),
        },
    ),
    "a weight": (
        lambda m, x: (m.layer(x), m.layer.weight),
        {"output.0": WHOLE, "output.1": ("float32", (8, 8))},
    ),
    "one number": (lambda m, x: m.layer(x).mean(), {"output": ("float32", ())}),
    "integers": (
        lambda m, x: m.layer(x).argmax(-1),
        {"output": ("int64", ("batch", "sequence"))},
    ),
    "booleans": (lambda m, x: m.layer(x) > 0, {"output": ("bool", ("batch", "sequence", 8))}),
    "an output called like the input": (lambda m, x: {"x": m.layer(x)}, {"x_out": WHOLE}),
    "a key that spells another's path": (
        lambda m, x: {"a": {"b": m.layer(x)}, "a.b": x * 2},
        {"a.b": WHOLE, "a.b_out": WHOLE},
    ),
    "names that torch uses inside": (
        lambda m, x: {"linear": torch.relu(m.layer(x) + 1), "add": m.layer(x)},
        {"linear": WHOLE, "add": WHOLE},
    ),
    "the name of a weight": (lambda m, x: {"layer.weight": m.layer(x)}, {"layer.weight": WHOLE}),
}


@pytest.mark.parametrize("case", RETURNED)
def test_what_it_returns(case: str):
    function, expected = RETURNED[case]
    graph = compiled(function, {"x": floats()})
    found = outputs(graph)
    assert found == expected
    assert list(found) == list(expected)


# -- what a module may take ------------------------------------------------------------------------


def test_inputs_that_it_does_not_use_stay_inputs():
    graph = compiled(
        lambda m, a, x, z: m.layer(x), {"a": floats(), "x": floats(), "z": floats(2, 7)}
    )
    assert [value.name for value in graph.graph.inputs] == ["a", "x", "z"]


def test_inputs_called_as_torch_calls_values_inside():
    compiled(
        lambda m, linear, relu: torch.relu(m.layer(linear) + 1) + relu,
        {"linear": floats(), "relu": floats()},
    )


@pytest.mark.parametrize(
    "dtype", ["uint8", "int8", "int16", "int32", "int64", "float16", "float64"]
)
def test_numbers_of_any_type(dtype: str):
    example = torch.randint(0, 9, (2, 7, 8)).to(getattr(torch, dtype))
    graph = compiled(lambda m, x: m.layer(x.float()), {"x": example})
    assert graph.graph.inputs[0].dtype.name.lower().replace("double", "float64") == dtype


def test_tokens_of_32_bits():
    table = nn.Embedding(50, 8)
    module = Module(lambda m, ids: m.layer(m.table(ids)), table=table)
    compile_(program_from_module(module, {"ids": torch.randint(0, 50, (2, 7), dtype=torch.int32)}))


@pytest.mark.parametrize(
    "mask",
    [
        torch.ones(2, 7, dtype=torch.bool),
        torch.zeros(2, 7, dtype=torch.bool),
        torch.ones(2, 7, dtype=torch.int64),
        torch.ones(2, 7),
        torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1]]),
    ],
    ids=["true", "false", "ones", "float ones", "padded"],
)
def test_masks_of_any_type(mask: Tensor):
    def function(m: Module, x: Tensor, mask: Tensor) -> Tensor:
        return m.layer(x).masked_fill(mask.unsqueeze(-1) == 0, 0)

    program = program_from_module(Module(function), {"x": floats(), "mask": mask})
    compile_(program)
    most = mask.flatten()[-1].item()
    for case in contract_cases(program):
        drawn = program.make_inputs(case)["mask"]
        assert drawn.dtype == mask.dtype
        assert (drawn == most).any(dim=1).all()
        assert bool((drawn != most).any()) == (case.padding != "none")


def test_a_mask_that_is_added():
    mask = torch.zeros(2, 7)
    mask[0, :2] = -torch.inf
    program = program_from_module(
        Module(lambda m, x, mask: (m.layer(x).mean(-1) + mask).softmax(-1)),
        {"x": floats(), "mask": mask},
    )
    compile_(program)
    drawn = program.make_inputs(Case("padded", {"batch": 3, "sequence": 9}, "left"))["mask"]
    assert drawn.unique().tolist() == [-torch.inf, 0]
    assert (drawn == 0).any(dim=1).all()


def test_a_number_as_input_is_varied():
    program = program_from_module(
        Module(lambda m, x, temperature: m.layer(x) / temperature),
        {"temperature": torch.tensor(2.0), "x": floats()},
    )
    assert program.inputs[0] == TensorSpec("temperature", "float32", ())
    drawn = [program.make_inputs(c)["temperature"].item() for c in contract_cases(program)]
    assert len(set(drawn)) == len(drawn)
    assert all(1 <= value <= 3 for value in drawn)
    compile_(program)


def test_a_number_that_is_baked_in_is_noticed():
    with pytest.raises(TraceError, match=r"(?s)not what the model computes"):
        compiled(
            lambda m, x, scale: m.layer(x) * float(scale.numpy() if not _exporting() else 2.0),
            {"x": floats(), "scale": torch.tensor(2.0)},
        )


def _exporting() -> bool:
    return torch.compiler.is_exporting()


def test_values_are_drawn_like_the_example():
    inputs = {
        "ids": torch.randint(3, 40, (2, 9)),
        "wide": 5 + 0.1 * floats(2, 9, 8),
        "flat": torch.full((2, 9, 8), 3.0),
    }
    program = program_from_module(
        Module(lambda m, ids, wide, flat: m.layer(wide + flat) + ids[..., None]), inputs
    )
    drawn = program.make_inputs(Case("large", {"batch": 20, "sequence": 50}))
    assert int(drawn["ids"].min()) >= 3
    assert int(drawn["ids"].max()) <= 39
    assert drawn["ids"].unique().numel() > 30
    assert abs(drawn["wide"].mean() - 5) < 0.05
    assert 0.08 < drawn["wide"].std() < 0.12
    assert 0.9 < drawn["flat"].std() < 1.1  # a constant would show little of what is computed
    again = program.make_inputs(Case("large", {"batch": 20, "sequence": 50}))
    other = program.make_inputs(Case("large", {"batch": 20, "sequence": 50}, seed=1))
    assert all(drawn[name].equal(again[name]) for name in inputs)
    assert not any(drawn[name].equal(other[name]) for name in inputs)


def test_the_example_and_its_gradients_are_left_alone():
    x = floats().requires_grad_()
    before = x.detach().clone()
    compiled(lambda m, x: m.layer(x.add_(1) * 2), {"x": x})
    assert x.equal(before)
    assert x.requires_grad


# -- what is refused -------------------------------------------------------------------------------


def refusal(error: type[Exception], *arguments: Any, **options: Any) -> str:
    with pytest.raises(error) as caught:
        program_from_module(*arguments, **options)
    message = str(caught.value)
    assert "\nhint: " in message
    assert message.count("\n") == 1
    return message


IDENTITY = Module(lambda m, x: m.layer(x))
REFUSED = {
    "a function": ((lambda x: x, {"x": floats()}), "There is no module to compile"),
    "no inputs": ((IDENTITY, {}), "no example inputs"),
    "a list": ((IDENTITY, {"x": [1, 2]}), "'x' is no tensor: expected a torch tensor, found list"),
    "an option": ((IDENTITY, {"x": floats(), "flag": True}), "'flag' is no tensor"),
    "an array": ((IDENTITY, {"x": np.zeros((2, 7, 8))}), "'x' is no tensor"),
    "bfloat16": ((IDENTITY, {"x": floats().bfloat16()}), "found bfloat16"),
    "complex numbers": ((IDENTITY, {"x": floats().to(torch.complex64)}), "found complex64"),
    "an empty example": ((IDENTITY, {"x": floats(0, 7, 8)}), "'x' is empty"),
    "an unknown input": (
        (IDENTITY, {"x": floats()}, {"y": {0: "batch"}}),
        "no axis 0 of input 'y' to be called 'batch'",
    ),
    "an unknown axis": ((IDENTITY, {"x": floats()}, {"x": {3: "batch"}}), "no axis 3 of input 'x'"),
    "sizes that disagree": (
        (IDENTITY, {"x": floats(), "y": floats(3, 7)}, {"x": {0: "batch"}, "y": {0: "batch"}}),
        "do not agree on the size of dimension 'batch': expected 2 on axis 0 of input 'y', found 3",
    ),
    "a sum that is wrong": (
        (
            IDENTITY,
            {"x": floats(2, 7, 8), "y": floats(2, 9)},
            {"x": {0: "a", 1: "b"}, "y": {1: "a + b + 1"}},
        ),
        "dimension 'a + b + 1': expected 10 on axis 1 of input 'y', found 9",
    ),
    "a dimension that is no name": (
        (IDENTITY, {"x": floats()}, {"x": {0: "my batch"}}),
        "no name that can be used: expected letters",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_example_is_refused(case: str):
    (module, inputs, *dynamic), message = REFUSED[case]
    assert message in refusal(UsageError, module, inputs, dynamic=dynamic[0] if dynamic else None)


def test_a_module_that_does_not_run_on_its_example():
    message = refusal(TraceError, IDENTITY, {"x": floats(2, 7, 9)})
    assert f"does not run on its own example inputs, at {Path(__file__).name}:" in message
    assert "(14x9 and 8x8)" in message
    assert "unexpected keyword" in refusal(TraceError, nn.Linear(8, 8), {"x": floats()})


@pytest.mark.parametrize("returned", [None, "text", {}, [None]], ids=repr)
def test_a_module_that_returns_no_tensor(returned: Any):
    module = Module(lambda m, x: returned)
    assert "returns no tensors" in refusal(TraceError, module, {"x": floats()})


class Cache:
    """What no artifact can give."""


def test_what_is_left_out_is_listed():
    returned = (None, 3, {"cache": Cache(), "none": None, "names": ["a"]}, [])
    program = program_from_module(Module(lambda m, x: (m.layer(x), *returned)), {"x": floats()})
    assert program.outputs == ("output.0",)
    assert program.left_out == (
        "output.2 (int)",
        "output.3.cache (Cache)",
        "output.3.names.0 (str)",
    )


def test_ids_whose_example_is_constant_are_drawn_from_their_table():
    table = nn.Embedding(50, 8)
    module = Module(lambda m, ids, mask: m.layer(table(ids)) * mask[..., None])
    ids = torch.ones(2, 9, dtype=torch.int64)
    program = program_from_module(module, {"ids": ids, "mask": ids.clone()})
    drawn = program.make_inputs(Case("long", {"batch": 4, "sequence": 100}, seed=0))
    assert set(drawn["ids"].ravel().tolist()) == set(range(50))
    assert set(drawn["mask"].ravel().tolist()) == {1}
