"""Models of transformers, both with attention written out and with torch's own: one Attention each.

Every model is traced, compared with torch at other sizes than it was traced at, fused, and compared
again. The faster ones are here always, the rest is slow.
"""

from __future__ import annotations

import pytest
from hugging_face_models import MODELS
from hugging_face_programs import attention_calls, program

from omnigraph.contract.graph_check import (
    check_graph,
    compare_graph,
)
from omnigraph.graph import Graph, count_ops
from omnigraph.input_sets import contract_cases
from omnigraph.passes.base import PassRecord, run_passes
from omnigraph.passes.pipelines import common
from omnigraph.program import Program
from omnigraph.testing import tolerance_of
from omnigraph.tracing.trace import check_trace, reference_for, trace

#: Forms of a model that is here in its other form, and takes long.
LONG = {("t5", "sdpa"), ("t5", "eager"), ("bart", "eager")}


def cases() -> list[object]:
    return [
        pytest.param(
            name,
            form,
            id=f"{name}-{form}",
            marks=[pytest.mark.slow] * (model.slow or (name, form) in LONG),
        )
        for name, model in MODELS.items()
        for form in model.forms
    ]


def fused(made: Program) -> tuple[Graph, list[PassRecord]]:
    """A program's Graph after the passes that all targets begin with, its numbers compared."""
    graph = trace(made)
    check_graph(graph, "trace")
    references = [reference_for(made, case) for case in contract_cases(made)]
    check_trace(made, graph, references)
    tolerance = tolerance_of(graph)
    records = run_passes(graph, common(), [lambda _, pass_, g: check_graph(g, pass_.name)])
    feeds = [reference.feeds for reference in references]
    outputs = [reference.outputs for reference in references]
    compare_graph(graph, feeds, outputs, tolerance, "fusing")
    return graph, records


@pytest.mark.parametrize(("name", "form"), cases())
def test_each_site_becomes_one_attention(name: str, form: str):
    made = program(name, form)
    assert attention_calls(made) == MODELS[name].sites
    graph, records = fused(made)
    misses = [
        f"{finding.site} of {finding.module}: {finding.reason}"
        for record in records
        for finding in record.findings
        if record.name == "fuse-attention" and finding.reason is not None
    ]
    assert not misses
    ops = count_ops(graph)
    assert (ops["Attention"], ops["Softmax"]) == (MODELS[name].sites, 0)
