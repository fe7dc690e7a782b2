"""Experts and rotary positions that decide by values: traced as tensors, right at every length."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import nn

from omnigraph.contract.graph_check import GraphRunner
from omnigraph.errors import TraceError
from omnigraph.frontends.module import program_from_module
from omnigraph.program import Case, Program
from omnigraph.tracing import transformers_forms
from omnigraph.tracing.trace import reference_for, trace
from omnigraph.tracing.transformers_forms import forgotten_lengths, traceable_forms

_SIZES: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
#: The length up to which frequencies are the original ones.
_BORDER = 16
_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [2.0, 4.0, 6.0, 8.0],
    "original_max_position_embeddings": _BORDER,
    "factor": 4.0,
}
_DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 3.3}


def mixtral(**fields: Any) -> nn.Module:
    config = transformers.MixtralConfig(
        **_SIZES, num_local_experts=4, num_experts_per_tok=2, sliding_window=None
    )
    return transformers.MixtralForCausalLM._from_config(config, **fields)


def qwen_moe() -> nn.Module:
    config = transformers.Qwen2MoeConfig(
        **_SIZES, num_experts=5, moe_intermediate_size=24, shared_expert_intermediate_size=40
    )
    return transformers.Qwen2MoeForCausalLM(config)


def longrope() -> nn.Module:
    config = transformers.Phi3Config(
        **_SIZES,
        max_position_embeddings=64,
        original_max_position_embeddings=_BORDER,
        rope_parameters=_LONGROPE,
    )
    return transformers.Phi3ForCausalLM(config)


def dynamic() -> nn.Module:
    config = transformers.LlamaConfig(
        **_SIZES, max_position_embeddings=_BORDER, rope_parameters=_DYNAMIC
    )
    return transformers.LlamaForCausalLM(config)


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make().eval()


class Logits(nn.Module):
    """The logits of a language model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        out = self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        return out.logits


def program_of(model: nn.Module) -> Program:
    ids = torch.arange(18).reshape(2, 9)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return program_from_module(Logits(model), inputs)


def rotary_state(model: Any) -> dict[str, Any]:
    """All that a rotary module remembers: its fields, and its buffers with their memory."""
    rotary = model.model.rotary_emb
    fields = {k: v for k, v in rotary.__dict__.items() if k != "_buffers"}
    buffers = {k: (id(v), v.tolist()) for k, v in rotary._buffers.items()}
    return {**fields, "_buffers": buffers}


@pytest.mark.parametrize(
    "make", [mixtral, pytest.param(qwen_moe, marks=pytest.mark.slow), longrope, dynamic]
)
def test_the_graph_is_what_a_fresh_model_computes_at_every_length(make: Callable[[], nn.Module]):
    model = seeded(make)
    runner = GraphRunner(trace(program_of(model)))
    # Up and down again: what was long before changes nothing.
    for batch, length in [
        (1, 1),
        (2, 33),
        (3, _BORDER + 1),
        (2, _BORDER),
        (4, 6),
        (1, 60),
        (1, 17),
    ]:
        ids = torch.randint(0, 61, (batch, length))
        mask = torch.ones_like(ids)
        mask[-1, : length // 3] = 0
        with torch.no_grad():
            expected = Logits(seeded(make))(ids, mask).numpy()
        (found,) = runner.run({"input_ids": ids.numpy(), "attention_mask": mask.numpy()}).values()
        shown = mask.numpy().astype(bool)
        np.testing.assert_allclose(found[shown], expected[shown], atol=3e-5)


@pytest.mark.parametrize("make", [longrope, dynamic])
def test_a_reference_does_not_depend_on_those_before_it(make: Callable[[], nn.Module]):
    model = seeded(make)
    program = program_of(model)
    cases = [Case(str(n), {"batch": 2, "sequence": n}, seed=n) for n in (20, 60, 20, 5, 20)]
    outputs = [reference_for(program, case).outputs["output"] for case in cases]
    fresh = [reference_for(program_of(seeded(make)), case).outputs["output"] for case in cases]
    for found, expected in zip(outputs, fresh, strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("make", [longrope, dynamic])
def test_what_a_model_remembers_stays_as_it_was(make: Callable[[], nn.Module]):
    model = seeded(make)
    ids = torch.randint(0, 61, (1, 40))
    model(ids)
    before = rotary_state(model)
    with traceable_forms(model):
        model(ids)
    program = program_of(model)
    reference_for(program, Case("short", {"batch": 1, "sequence": 4}))
    assert rotary_state(model) == before


@pytest.mark.parametrize("form", ["eager", "grouped_mm", "batched_mm"])
def test_the_form_of_experts_is_put_back(form: str):
    model: Any = mixtral(experts_implementation=form)
    with traceable_forms(model):
        assert model.config._experts_implementation == "batched_mm"
    assert model.config._experts_implementation == form


def test_a_form_that_differs_beyond_the_border_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(transformers_forms, "_border", lambda *_: _BORDER + 3)
    with pytest.raises(TraceError, match="rotary positions of Phi3RotaryEmbedding"):
        trace(program_of(seeded(longrope)))


def test_modules_of_others_are_left_alone():
    net = nn.Linear(2, 2)
    before = dict(net.__dict__)
    with traceable_forms(net), forgotten_lengths(net):
        assert net.__dict__ == before
