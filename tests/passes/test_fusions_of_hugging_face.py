"""Norms, activations and rotary positions of Hugging Face models: each one fused, numbers equal."""

from __future__ import annotations

import pytest
from hugging_face_programs import program

from omnigraph.graph import count_ops
from omnigraph.input_sets import contract_cases
from omnigraph.passes.base import run_passes
from omnigraph.passes.fuse_gelu import FuseGelu
from omnigraph.passes.fuse_norm import FuseNorm
from omnigraph.passes.fuse_rotary import FuseRotary
from omnigraph.passes.fuse_swiglu import FuseSwiglu
from omnigraph.passes.pipelines import canonical
from omnigraph.tracing.trace import check_trace, reference_for, trace

FUSIONS = (FuseNorm(), FuseGelu(), FuseSwiglu(), FuseRotary())
FUSED = ("LayerNormalization", "RMSNormalization", "Gelu", "Swish", "RotaryEmbedding")
#: What is left of one that was not fused.
PARTS = ("Sqrt", "Pow", "Reciprocal", "ReduceMean", "Erf", "Tanh", "Sigmoid", "Neg")

#: By model: how many of `FUSED`, in this order, two layers have.
EXPECTED = {
    "llama": (0, 5, 0, 2, 4),
    "gpt2": (5, 0, 2, 0, 0),
    "bert": (5, 0, 2, 0, 0),
    "bart": (12, 0, 4, 0, 0),
    "t5": (0, 12, 0, 0, 0),
    "bloom": (6, 0, 2, 0, 0),
    "mistral": (0, 5, 0, 2, 4),
    "qwen2": (0, 5, 0, 2, 4),
    "qwen3": (0, 9, 0, 2, 4),
    "gemma": (0, 5, 2, 0, 4),
    "gemma2": (0, 9, 2, 0, 4),
    "gemma3": (0, 13, 2, 0, 4),
    "gpt-neox": (5, 0, 2, 0, 4),
    "gpt-j": (3, 0, 2, 0, 4),
    "phi": (3, 0, 2, 0, 4),
    "phi3": (0, 5, 0, 2, 4),
    "olmo2": (0, 9, 0, 2, 4),
    "cohere": (3, 0, 0, 2, 4),
    "granite": (0, 5, 0, 2, 4),
    "stablelm": (5, 0, 0, 2, 4),
    "modernbert": (5, 0, 2, 0, 4),
    "vit": (5, 0, 2, 0, 0),
    "clip": (5, 0, 0, 2, 0),
}
#: Those with such an op of their own: distances in T5, a soft cap of scores.
OWN = {"t5": {"Neg"}, "gemma2": {"Tanh"}}
FAST = {("llama", "eager"), ("gpt2", "sdpa")}
EAGER_ONLY = {"bloom", "gemma2", "gpt-j"}
CASES = [
    pytest.param(name, form, marks=() if (name, form) in FAST else pytest.mark.slow)
    for name in EXPECTED
    for form in ("eager", "sdpa")
    if form == "eager" or name not in EAGER_ONLY
]


@pytest.mark.parametrize(("name", "form"), CASES)
def test_each_is_fused_and_the_numbers_hold(name: str, form: str):
    made = program(name, form)
    graph = trace(made)
    run_passes(graph, canonical())
    records = run_passes(graph, FUSIONS)
    missed = [f.reason for record in records for f in record.findings if f.reason]
    assert missed == []
    assert not any(record.modified for record in run_passes(graph, FUSIONS))
    assert tuple(count_ops(graph)[op] for op in FUSED) == EXPECTED[name]
    assert {op for op in PARTS if count_ops(graph)[op]} == OWN.get(name, set())
    check_trace(made, graph, [reference_for(made, case) for case in contract_cases(made)])
