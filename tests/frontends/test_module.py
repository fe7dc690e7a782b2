"""Anyone's module, from example inputs: traced as what it computes, or an error says why not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from omnigraph.contract.graph_check import GraphRunner, check_graph
from omnigraph.errors import TraceError, UsageError
from omnigraph.frontends.module import program_from_module
from omnigraph.graph import MODULE_KEY, Graph, count_ops
from omnigraph.program import Case, Dim, Program, TensorSpec, contract_cases
from omnigraph.tracing.trace import check_trace, output_specs, reference_for, trace

TEXT = {"input_ids": {0: "batch", 1: "sequence"}, "attention_mask": {0: "batch", 1: "sequence"}}


class Module(nn.Module):
    """A linear layer, and a function of it and of named inputs."""

    def __init__(self, function: Callable[..., Any], **children: nn.Module) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.function = function
        for name, child in children.items():
            self.add_module(name, child)

    def forward(self, **inputs: Tensor) -> Any:
        return self.function(self, **inputs)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def floats(*shape: int) -> Tensor:
    return torch.randn(shape or (2, 7, 8))


def compile_(program: Program) -> Graph:
    """Trace and compare, as an export does."""
    graph = trace(program)
    check_graph(graph, "trace")
    check_trace(program, graph, [reference_for(program, c) for c in contract_cases(program)])
    return graph


def compiled(function: Callable[..., Any], inputs: Mapping[str, Tensor], **options: Any) -> Graph:
    return compile_(program_from_module(Module(function), inputs, **options))


def outputs(graph: Graph) -> dict[str, tuple[str, tuple[int | str, ...]]]:
    return {spec.name: (spec.dtype, spec.shape) for spec in output_specs(graph)}


# -- what a module may return ----------------------------------------------------------------------

WHOLE = ("float32", ("batch", "sequence", 8))
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


def test_a_length_that_is_computed_is_said_in_the_dimensions_of_the_program():
    graph = compiled(lambda m, x: m.layer(x)[:, ::2], {"x": floats()})
    batch, length, _ = outputs(graph)["output"][1]
    assert batch == "batch"
    assert str(length).replace(" ", "") == "((sequence+1)//2)"


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


@pytest.mark.parametrize("shape", [(1, 7, 8), (2, 1, 8), (1, 1, 8), (8, 8, 8), (7, 7, 8)])
def test_examples_of_any_size_leave_both_dimensions_open(shape: tuple[int, ...]):
    graph = compiled(lambda m, x: m.layer(x), {"x": floats(*shape)})
    assert outputs(graph)["output"] == WHOLE


# -- which axes are open ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        ({"x": (2, 7, 8)}, {"x": ("batch", "sequence", 8)}),
        ({"x": (2, 8)}, {"x": ("batch", 8)}),
        ({"x": (2,)}, {"x": ("batch",)}),
        ({"x": (2, 3, 9, 9)}, {"x": ("batch", "sequence", 9, 9)}),
        (
            {"x": (2, 7, 8), "mask": (2, 7), "pair": (2, 2), "fixed": (8,)},
            {
                "x": ("batch", "sequence", 8),
                "mask": ("batch", "sequence"),
                "pair": ("batch", 2),
                "fixed": (8,),
            },
        ),
        ({"k": (), "x": (2, 7, 8)}, {"k": (), "x": ("batch", "sequence", 8)}),
    ],
)
def test_the_usual_axes(inputs, expected):
    module = Module(lambda m, **given: sum(t.sum() for t in given.values()) + m.layer.bias)
    program = program_from_module(
        module, {name: floats(*s) if s else torch.tensor(1.0) for name, s in inputs.items()}
    )
    assert {spec.name: spec.shape for spec in program.inputs} == expected


def test_axes_by_name_with_a_sum():
    def function(m: Module, x: Tensor, past: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        both = torch.cat([past, x], 1)
        return m.layer(both) * mask.unsqueeze(-1), both

    graph = compiled(
        function,
        {"x": floats(2, 3, 8), "past": floats(2, 4, 8), "mask": torch.ones(2, 7)},
        dynamic={
            "x": {0: "batch", 1: "sequence"},
            "past": {0: "batch", 1: "past"},
            "mask": {0: "batch", 1: "past + sequence"},
        },
    )
    assert outputs(graph)["output.1"] == ("float32", ("batch", "past + sequence", 8))


def test_a_sum_whose_terms_no_input_has_alone():
    graph = compiled(
        lambda m, x, mask: (m.layer(x), mask * 2),
        {"x": floats(2, 3, 8), "mask": floats(2, 7)},
        dynamic={"x": {0: "batch", 1: "sequence"}, "mask": {0: "batch", 1: "past + sequence"}},
    )
    assert outputs(graph)["output.1"] == ("float32", ("batch", "past + sequence"))


def test_no_open_axes():
    graph = compiled(lambda m, x: m.layer(x), {"x": floats()}, dynamic={})
    assert outputs(graph)["output"] == ("float32", (2, 7, 8))


@pytest.mark.parametrize(
    ("dims", "shape"),
    [
        ({"sequence": Dim(7, 7)}, ("batch", 7, 8)),
        ({"batch": Dim(1, 1)}, (1, "sequence", 8)),
        ({"batch": Dim(1, 1), "sequence": Dim(1, 1)}, (1, 1, 8)),
        ({"batch": Dim(1, 2), "sequence": Dim(1, 2)}, ("batch", "sequence", 8)),
        ({"batch": Dim(3, 4), "sequence": Dim(30, 40)}, ("batch", "sequence", 8)),
    ],
)
def test_dimensions_of_one_size_and_of_few(dims: dict[str, Dim], shape: tuple[int | str, ...]):
    program = program_from_module(Module(lambda m, x: m.layer(x)), {"x": floats()}).with_dims(dims)
    assert outputs(compile_(program))["output"] == ("float32", shape)
    for case in contract_cases(program):
        assert all(case.sizes[dim] in allowed for dim, allowed in dims.items())


def test_sums_of_which_a_term_is_fixed():
    def function(m: Module, x: Tensor, past: Tensor, mask: Tensor) -> Tensor:
        return m.layer(torch.cat([past, x], 1)) * mask.unsqueeze(-1)

    program = program_from_module(
        Module(function),
        {"x": floats(2, 3, 8), "past": floats(2, 4, 8), "mask": torch.ones(2, 7)},
        dynamic={
            "x": {0: "batch", 1: "sequence"},
            "past": {0: "batch", 1: "past"},
            "mask": {0: "batch", 1: "past + sequence"},
        },
    )
    fixed = program.with_dims({"past": Dim(3, 3), "sequence": Dim(1, 9)})
    assert fixed.inputs[2].shape == ("batch", "sequence + 3")
    assert outputs(compile_(fixed))["output"] == ("float32", ("batch", "sequence + 3", 8))


def test_a_range_beyond_what_the_model_takes_is_refused():
    program = program_from_module(Module(lambda m, x: m.layer(x)), {"x": floats()})
    with pytest.raises(UsageError, match=r"dimension 'sequence' in the range 1:[\s\S]*hint: "):
        program.with_dims({"sequence": Dim(1, 9)}).with_dims({"sequence": Dim(1)})


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
    assert "does not run on its own example inputs, at test_module_program.py:" in message
    assert "(14x9 and 8x8)" in message
    assert "unexpected keyword" in refusal(TraceError, nn.Linear(8, 8), {"x": floats()})


@pytest.mark.parametrize("returned", [None, "text", {}, [None]], ids=repr)
def test_a_module_that_returns_no_tensor(returned: Any):
    module = Module(lambda m, x: returned)
    assert "returns no tensors" in refusal(TraceError, module, {"x": floats()})


# -- modules of others -----------------------------------------------------------------------------


@pytest.mark.parametrize("norm_first", [False, True])
def test_the_encoder_of_torch(norm_first: bool):
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=norm_first)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=not norm_first)
    program = program_from_module(
        encoder,
        {
            "src": floats(2, 7, 16),
            "src_key_padding_mask": torch.zeros(2, 7, dtype=torch.bool),
        },
    )
    graph = compile_(program)
    assert count_ops(graph)["Attention"] == 2
    modules = dict(encoder.named_modules())
    assert all(node.metadata_props[MODULE_KEY] in {*modules, "model"} for node in graph.graph)
    assert torch.backends.mha.get_fastpath_enabled()


def test_the_encoder_of_torch_without_a_mask():
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 1)
    assert outputs(compile_(program_from_module(encoder, {"src": floats(2, 7, 16)})))["output"] == (
        "float32",
        ("batch", "sequence", 16),
    )


SMALL = {"vocab_size": 99}


def bert() -> nn.Module:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        **SMALL,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=37,
        max_position_embeddings=64,
        attn_implementation="sdpa",
    )
    return BertModel(config)


def distilbert() -> nn.Module:
    from transformers import DistilBertConfig, DistilBertModel

    config = DistilBertConfig(
        **SMALL,
        dim=32,
        n_layers=2,
        n_heads=2,
        hidden_dim=37,
        max_position_embeddings=64,
        attn_implementation="sdpa",
    )
    return DistilBertModel(config)


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        **SMALL,
        n_embd=32,
        n_layer=2,
        n_head=2,
        n_positions=64,
        bos_token_id=1,
        eos_token_id=1,
        attn_implementation="sdpa",
    )
    return GPT2LMHeadModel(config)


def text_inputs() -> dict[str, Tensor]:
    return {
        "input_ids": torch.randint(0, 99, (2, 7)),
        "attention_mask": torch.ones(2, 7, dtype=torch.int64),
    }


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (
            bert,
            {
                "last_hidden_state": ("float32", ("batch", "sequence", 32)),
                "pooler_output": ("float32", ("batch", 32)),
            },
        ),
        (distilbert, {"last_hidden_state": ("float32", ("batch", "sequence", 32))}),
        (gpt2, {"logits": ("float32", ("batch", "sequence", 99))}),  # its cache is no tensor
    ],
    ids=["bert", "distilbert", "gpt2"],
)
def test_models_of_hugging_face(make: Callable[[], nn.Module], expected):
    model = make()
    program = program_from_module(model, text_inputs(), dynamic=TEXT)
    graph = compile_(program.with_dims({"sequence": Dim(1, 64)}))
    assert outputs(graph) == expected
    assert count_ops(graph)["Attention"] == 2
    modules = dict(model.named_modules())
    for node in graph.graph:
        path = node.metadata_props[MODULE_KEY]
        assert path in modules or path == "model", path
    names = {*dict(model.named_parameters(remove_duplicate=False)), *dict(model.named_buffers())}
    own = [n for n in graph.graph.initializers if "lifted" not in n]
    assert {name for name in own if name not in names} == set()


def test_the_longest_input_of_a_model_is_found_and_can_be_declared():
    program = program_from_module(bert(), text_inputs())
    with pytest.raises(TraceError) as caught:
        trace(program)
    assert "module 'embeddings' does something else, or fails, beyond 64" in str(caught.value)
    assert "--dynamic sequence=1:64" in str(caught.value)
    graph = trace(program.with_dims({"sequence": Dim(1, 64)}))
    longest = reference_for(program, Case("longest", {"batch": 1, "sequence": 64}))
    found = GraphRunner(graph).run(longest.feeds)
    for name, expected in longest.outputs.items():
        np.testing.assert_allclose(found[name], expected, atol=1e-5)


def test_one_head_of_keys_for_all_queries_stays_one_attention():
    def multi_query(m: Module, x: Tensor) -> Tensor:
        query = m.layer(x).unflatten(-1, (4, 2)).transpose(1, 2)
        key = x[:, None, :, :2]
        return nn.functional.scaled_dot_product_attention(query, key, key + 1)

    graph = compiled(multi_query, {"x": floats()})
    (node,) = (n for n in graph.graph if n.op_type == "Attention")
    assert [v.shape[1] for v in node.inputs[:3] if v and v.shape] == [4, 1, 1]


def test_arithmetic_in_bfloat16_rounds_as_torch_does():
    def half(m: Module, x: Tensor) -> Tensor:
        return (m.layer(x).bfloat16() * x.bfloat16() + 1).float()

    graph = compiled(half, {"x": floats()})
    assert count_ops(graph)["Mul"] == 1
