"""What is asked for of the programs of a model, in its Graphs and in its references."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime
import openvino
import pytest

from omnigraph.contract.graph_check import GraphRunner
from omnigraph.contract.reference import Reference
from omnigraph.errors import UsageError
from omnigraph.exporting.output_choice import OutputChoice
from omnigraph.lowering import Lowered, find_target
from omnigraph.passes.base import run_passes
from omnigraph.passes.hoist_selections import HoistSelections
from omnigraph.passes.pipelines import canonical
from omnigraph.tracing.trace import output_specs


@pytest.mark.parametrize("program", ["forward", "decode"])
def test_the_references_are_those_of_what_is_left(traced, program: str):
    made = traced(program, kind="decoder", positions="alibi")
    choice = OutputChoice(last=("logits",))
    graph, specs = made.graph.clone(), output_specs(made.graph)
    references = choice.apply(graph, made.program.inputs, specs, made.references)
    assert output_specs(graph)[0].shape == ("batch", 1, 256)
    assert choice.state(specs, made.program.state) == made.program.state
    run_passes(graph, (*canonical(), HoistSelections()))
    runner = GraphRunner(graph)
    for reference in references:
        found = runner.run(reference.feeds)
        assert set(found) == set(reference.outputs)
        for name, expected in reference.outputs.items():
            assert found[name].shape == expected.shape
            assert abs(found[name] - expected).max() < 1e-4, (reference.case, name)


def test_state_goes_with_its_outputs(traced):
    made = traced("decode", kind="decoder", positions="alibi")
    choice = OutputChoice(outputs=("logits",))
    specs = output_specs(made.graph)
    assert made.program.state and choice.state(specs, made.program.state) == ()
    graph = made.graph.clone()
    (first, *_) = choice.apply(graph, made.program.inputs, specs, made.references)
    assert isinstance(first, Reference) and list(first.outputs) == ["logits"]


def test_a_program_without_the_output_keeps_its_own(traced):
    made = traced("encode", kind="encoder", positions="alibi")
    choice = OutputChoice(outputs=("logits",), last=("logits",))
    graph, specs = made.graph.clone(), output_specs(made.graph)
    choice.apply(graph, made.program.inputs, specs, made.references)
    assert [v.name for v in graph.graph.outputs] == [spec.name for spec in specs]


def test_a_name_that_no_program_has_is_refused():
    programs = {"forward": ["logits"], "encode": ["last_hidden_state"]}
    OutputChoice(outputs=("logits",)).check(programs)
    with pytest.raises(UsageError, match="No program has an output 'logit'"):
        OutputChoice(last=("logit",)).check(programs)


@pytest.mark.parametrize(("target", "precision"), [("onnx", "fp32"), ("openvino", "fp32")])
@pytest.mark.parametrize("program", ["forward", "decode"])
def test_every_target_computes_the_last_token(
    traced, program: str, target: str, precision: str, tmp_path: Path
):
    made = traced(program, kind="decoder", positions="alibi")
    choice, chosen = OutputChoice(outputs=("logits",), last=("logits",)), find_target(target)
    graph, specs = made.graph.clone(), output_specs(made.graph)
    references = choice.apply(graph, made.program.inputs, specs, made.references)
    run_passes(graph, (*chosen.pipeline(precision), HoistSelections()))
    chosen.check_nodes(program, graph, precision)
    inputs, outputs = made.program.inputs, output_specs(graph)
    lowered = Lowered(program, graph, inputs, outputs, made.program.dims)
    chosen.emit([lowered], tmp_path, precision=precision, options={})
    for reference in references:
        found = RUN[target](tmp_path, program, reference.feeds)
        expected = reference.outputs["logits"]
        assert found.shape == expected.shape
        assert abs(found - expected).max() < 1e-4, reference.case


def test_tensorrt_takes_what_selects_the_last_token(traced):
    made = traced("decode", kind="decoder", positions="alibi")
    graph, specs = made.graph.clone(), output_specs(made.graph)
    OutputChoice(last=("logits",)).apply(graph, made.program.inputs, specs, made.references)
    chosen = find_target("tensorrt")
    run_passes(graph, (*chosen.pipeline("fp16"), HoistSelections()))
    chosen.check_nodes("decode", graph, "fp16")


def _onnx(directory: Path, program: str, feeds: Mapping[str, np.ndarray]) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(directory / f"{program}.onnx"))
    (logits,) = session.run(["logits"], dict(feeds))
    return logits


def _openvino(directory: Path, program: str, feeds: Mapping[str, np.ndarray]) -> np.ndarray:
    core = openvino.Core()
    model = core.read_model(directory / f"{program}.xml", directory / "weights.bin")
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return np.array(compiled(dict(feeds))["logits"])


RUN = {"onnx": _onnx, "openvino": _openvino}
