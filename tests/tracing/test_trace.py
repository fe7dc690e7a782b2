"""Tracing OmniNets: legal Graphs with open dimensions, named after the model, right in number."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import omnigraph.models
from omnigraph.contract.graph_check import (
    GraphRunner,
    check_graph,
    longest_contraction,
    rounding_depth,
)
from omnigraph.contract.tolerance import Tolerance, deviations, output_scales
from omnigraph.graph import MODULE_KEY, OPSET, RANGE_KEY, SOURCE_KEY, count_ops
from omnigraph.models import AttentionPattern
from omnigraph.program import Case, Program
from omnigraph.tracing.trace import check_trace, output_specs, reference_for, trace

SOURCES = Path(omnigraph.models.__file__).parent

WINDOW = AttentionPattern("sliding_window", window=3)
BLOCKS = AttentionPattern("block_sparse", block_size=4, random_blocks=2)
MIXED = (AttentionPattern(), WINDOW, BLOCKS, AttentionPattern("sliding_window", window=9))
LLAMA = {"positions": "rotary", "norm": "rmsnorm", "activation": "swiglu", "tie_embeddings": False}
PRUNED = {"pruned_heads": (("decoder.0.cross", (3,)), ("encoder.0.self", (0, 2)))}

CASES = {
    "whole": ("forward", {"kind": "encoder-decoder", "num_layers": 1}),
    "llama": ("decode", {"kind": "decoder", "num_layers": 1, **LLAMA}),
    "mixed": ("decode", {"kind": "decoder", "attention": (MIXED, BLOCKS), "positions": "alibi"}),
    "post-norm": ("encode", {"kind": "encoder", "positions": "alibi", "norm_order": "post"}),
}
SLOW_CASES = {
    "pruned encode": ("encode", {"positions": "relative", **PRUNED}),
    "pruned decode": ("decode", {"positions": "relative", **PRUNED}),
    "gated": ("forward", {"positions": "sinusoidal", "head_pruning": True}),
    "post-norm decode": ("decode", {"positions": "alibi", "norm_order": "post"}),
    "window": ("decode", {"kind": "decoder", "attention": WINDOW, "sparse_threshold": 1}),
    "blocks": ("forward", {"kind": "encoder", "attention": BLOCKS, "positions": "relative"}),
    "flash": ("forward", {"kind": "decoder", "attention": AttentionPattern("flash"), **LLAMA}),
}


@pytest.fixture(params=[*CASES, *(pytest.param(c, marks=pytest.mark.slow) for c in SLOW_CASES)])
def subject(request, traced):
    name, settings = {**CASES, **SLOW_CASES}[request.param]
    return traced(name, **settings)


def test_the_graph_is_legal_and_runs_at_other_sizes(subject):
    check_graph(subject.graph, "trace")
    assert subject.graph.opset_imports == {"": OPSET}
    assert not subject.graph.functions
    check_trace(subject.program, subject.graph, subject.references)


def test_tensors_and_dimensions_have_the_names_of_the_program(subject):
    program, graph = subject.program, subject.graph
    assert graph.graph.name == program.name
    assert [value.name for value in graph.graph.inputs] == [s.name for s in program.inputs]
    for value, spec in zip(graph.graph.inputs, program.inputs, strict=True):
        assert value.dtype == ir.DataType.from_numpy(np.dtype(spec.dtype))
        assert tuple(d if isinstance(d, int) else str(d) for d in value.shape) == spec.shape
    outputs = output_specs(graph)
    assert [spec.name for spec in outputs] == list(program.outputs)
    for spec in outputs:
        assert spec.dtype == "float32"
        assert spec.shape[0] == "batch"
        length = spec.shape[2 if "key_values" in spec.name else 1]
        if spec.name.startswith("present"):
            assert str(length).startswith("past + ")
        else:
            assert str(length).endswith("sequence")


def test_no_symbol_of_torch_is_left_in_any_shape(subject):
    for node in subject.graph.graph:
        for value in node.outputs:
            assert not re.search(r"\b[su]\d+\b", str(value.shape)), value


def test_each_attention_is_one_node(subject):
    side = {"encode": "encoder", "decode": "decoder", "forward": ""}[subject.program.name]
    sites = [n for n in subject.model.config.attention_names() if n.startswith(side)]
    assert count_ops(subject.graph)["Attention"] == len(sites)
    assert count_ops(subject.graph)["Softmax"] == 0
    paths = [n.metadata_props[MODULE_KEY] for n in subject.graph.graph if n.op_type == "Attention"]
    wanted = [re.sub(r"(\w+)\.(\d+)\.(\w+)", r"\1.blocks.\2.\3_attention", site) for site in sites]
    assert sorted(paths) == sorted(wanted)


def test_every_node_says_which_module_and_line_it_came_from(subject):
    modules = dict(subject.model.named_modules())
    for node in subject.graph.graph:
        path = node.metadata_props[MODULE_KEY]
        assert path in modules or path == "model", path
        file, _, line = node.metadata_props[SOURCE_KEY].partition(":")
        assert 0 < int(line) <= len((SOURCES / file).read_text().splitlines())


def test_nothing_else_is_said_of_nodes_and_values(subject):
    graph = subject.graph
    assert all(key.startswith(RANGE_KEY) for key in graph.metadata_props)
    assert graph.producer_version is None
    for node in graph.graph:
        assert set(node.metadata_props) == {MODULE_KEY, SOURCE_KEY}
        assert not node.doc_string
        for value in node.outputs:
            assert not value.metadata_props
            assert not value.doc_string
    for value in graph.graph.initializers.values():
        assert not value.metadata_props
    text = ir.to_proto(graph.graph).SerializeToString()
    assert b"site-packages" not in text
    assert str(SOURCES).encode() not in text


def test_weights_have_the_names_of_the_model_and_its_memory(subject):
    own = dict(subject.model.named_parameters(remove_duplicate=False))
    own.update(subject.model.named_buffers())
    found = subject.graph.graph.initializers
    assert found
    constants = {n for n in found if "lifted_tensor" in n}  # random blocks: tables, not weights
    for name in found.keys() - constants:
        tensor = found[name].const_value
        assert name in own
        assert tensor.numpy().ctypes.data == own[name].data_ptr()
    assert all(found[name].const_value.nbytes <= 8192 for name in constants)


SIZES = {
    "one of everything": ({"batch": 1, "sequence": 1, "decoder_sequence": 1, "past": 0}, "none"),
    "no past": ({"batch": 3, "sequence": 9, "decoder_sequence": 4, "past": 0}, "left"),
    "past longer than present": (
        {"batch": 2, "sequence": 3, "decoder_sequence": 2, "past": 31},
        "left",
    ),
    "present longer than past": (
        {"batch": 2, "sequence": 29, "decoder_sequence": 23, "past": 2},
        "right",
    ),
    "one more token": ({"batch": 5, "sequence": 1, "decoder_sequence": 1, "past": 16}, "left"),
    "sizes that agree": ({"batch": 4, "sequence": 4, "decoder_sequence": 4, "past": 4}, "right"),
    "longer than traced": (
        {"batch": 1, "sequence": 200, "decoder_sequence": 130, "past": 60},
        "none",
    ),
}


@pytest.mark.parametrize("sizes", SIZES)
def test_numbers_are_those_of_torch(subject, sizes: str):
    wanted, padding = SIZES[sizes]
    case = Case(
        sizes, {d: wanted[d] for d in subject.program.dim_names()}, padding, seed=len(sizes)
    )
    reference = reference_for(subject.program, case)
    found = GraphRunner(subject.graph).run(reference.feeds)
    tolerance = Tolerance.for_precision(
        "fp32",
        depth=rounding_depth(subject.graph),
        contraction=longest_contraction(subject.graph),
    )
    for name, part in deviations(found, reference.outputs).items():
        assert found[name].dtype == reference.outputs[name].dtype
        assert part.within(tolerance), (name, part, tolerance)


def test_the_contract_covers_each_kind_of_size(subject):
    for dim in subject.program.dim_names():
        least = subject.program.dims[dim].min
        sizes = [reference.case.sizes[dim] for reference in subject.references]
        assert least in sizes
        assert any(size % 2 for size in sizes)
        assert any(size % 4 == 0 and size for size in sizes)
    assert {r.case.padding for r in subject.references} == {"none", "left", "right"}
    scales = output_scales([reference.outputs for reference in subject.references])
    assert all(scale > 0 for scale in scales.values())


def test_tracing_changes_nothing_in_the_model(traced):
    name, settings = CASES["post-norm"]
    subject = traced(name, **settings)
    before = {name: tensor.clone() for name, tensor in subject.model.state_dict().items()}
    modes = [module.training for module in subject.model.modules()]
    graph = trace(subject.program)
    assert [module.training for module in subject.model.modules()] == modes
    for module in subject.model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    for name, tensor in subject.model.state_dict().items():
        assert tensor.equal(before[name])
    # And the same trace gives the same Graph.
    assert ir.to_proto(graph.graph) == ir.to_proto(subject.graph.graph)


def test_tracing_knows_no_frontend():
    for path in (Path(__file__).parents[2] / "omnigraph" / "tracing").glob("*.py"):
        assert "frontends" not in path.read_text()


def test_a_program_may_give_its_own_graph(traced):
    name, settings = CASES["post-norm"]
    subject = traced(name, **settings)
    given: list[str] = []

    def to_graph(program: Program) -> ir.Model:
        given.append(program.name)
        graph = subject.graph.clone()
        graph.metadata_props.clear()
        return graph

    graph = trace(replace(subject.program, module=None, to_graph=to_graph))
    assert given == ["encode"]
    assert ir.to_proto(graph) == ir.to_proto(subject.graph)
