"""Modules of torch and of Hugging Face, and attention that their authors wrote themselves."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from traced_modules import Module, compile_, compiled, floats, outputs

from omnigraph.contract.graph_check import GraphRunner
from omnigraph.errors import TraceError
from omnigraph.frontends.module import program_from_module
from omnigraph.graph import MODULE_KEY, count_ops
from omnigraph.program import Case, Dim
from omnigraph.tracing.trace import reference_for, trace

TEXT = {"input_ids": {0: "batch", 1: "sequence"}, "attention_mask": {0: "batch", 1: "sequence"}}


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
