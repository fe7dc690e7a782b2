"""The precision of each layer: budgets, gates, and what is said of the choice."""

from __future__ import annotations

import json
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import pytest
import token_samples
from token_samples import CPU, TINY, TOKENS, data, evaluated, shifted

import omnigraph
from omnigraph.cli.main import main
from omnigraph.errors import UsageError
from omnigraph.inspection.inspect import inspect
from omnigraph.lowering import find_target
from omnigraph.passes.base import run_passes
from omnigraph.passes.calibrated_pass import QuantizationFacts
from omnigraph.passes.pipelines import common
from omnigraph.program import TensorSpec
from omnigraph.quantization.budget import BudgetSearch, Unit, units_of
from omnigraph.quantization.evaluation import evaluation_of
from omnigraph.quantization.judge import Judge, JudgedProgram
from omnigraph.quantization.metrics.metric import Example, Loss
from omnigraph.quantization.metrics.registry import metric_named
from omnigraph.quantization.options import Quantization, checked_loss
from omnigraph.quantization.plan_report import plan_fields
from omnigraph.quantization.region_timing import RegionTimes, Timing, regions, time_regions

RNG = np.random.default_rng(0)


LOSSES = {"a": 0.001, "b": 0.004, "c": 0.002}
FEEDS = [{"input_ids": RNG.integers(0, 9, (1, 30))} for _ in range(6)]
SAMPLES = evaluated(shifted(0.0), *FEEDS)


def by_choices(_: str, choices, more: float = 1.0):
    """A program whose perplexity grows by the loss of each layer; twice that in four bits."""
    total = more * sum(
        LOSSES[layer] * (2 if "4" in precision else 1)
        for layer, precision in choices.items()
        if precision != "float"
    )
    return shifted(total * 3)


@contextmanager
def on_a_worse_target(name: str, choices):
    """The same on a target whose kernels lose half as much again."""
    yield by_choices(name, choices, 1.5)


def search(
    candidates=("int8",), times=None, sizes=(100, 100, 100), compile_=None, samples=SAMPLES
) -> BudgetSearch:
    units = [Unit((name,), size) for name, size in zip("abc", sizes, strict=True)]
    program = JudgedProgram("forward", frozenset("abc"), samples, "six samples")
    judge = Judge([program] if samples is not None else [], by_choices, compile_)
    return BudgetSearch(units, candidates, judge, times or {})


def loss_with(**choices: str) -> float:
    everything = {"a": "float", "b": "float", "c": "float", **choices}
    return SAMPLES.loss(by_choices("forward", everything)).relative


def test_a_budget_takes_the_cheapest_losses_first_and_stops():
    two = loss_with(a="int8", c="int8")
    plan = search().run(two * 1.01)
    assert plan.by_layer == {"a": "int8", "b": "float", "c": "int8"}
    assert plan.losses is not None and plan.losses.worst.upper <= two * 1.01
    reasons = {choice.layers[0]: choice.reason for choice in plan.choices}
    assert reasons == {"a": "kept", "b": "the budget is spent", "c": "kept"}
    assert set(search().run(1.0).by_layer.values()) == {"int8"}
    nothing = search().run(0.0)
    assert set(nothing.by_layer.values()) == {"float"} and nothing.losses.worst.relative == 0


def test_what_saves_most_for_its_loss_comes_first():
    plan = search(sizes=(100, 10_000, 100)).run(loss_with(b="int8") * 1.01)
    assert plan.by_layer["b"] == "int8"


def test_coarser_precisions_come_after_finer_ones():
    plan = search(("int8-weights", "int4-weights")).run(
        loss_with(a="int4", b="int8", c="int8") * 1.01
    )
    assert plan.by_layer == {"a": "int4-weights", "b": "int8-weights", "c": "int8-weights"}
    row = next(choice for choice in plan.choices if choice.layers == ("b",))
    assert row.reason == "kept; int4-weights: the budget is spent"


def test_a_table_saves_what_the_target_stores_of_it():
    units = [Unit(("a",), 100, table=True), Unit(("b",), 100)]
    judge = Judge([], by_choices, None)
    names = ("int8-weights", "int4-weights")
    plan = BudgetSearch(units, names, judge, {}, table_bits=dict.fromkeys(names, 8.0)).run(None)
    assert plan.by_layer == {"a": "int8-weights", "b": "int4-weights"}
    assert plan.choices[0].reason == "kept; int4-weights: saves nothing"
    plan = BudgetSearch(units, ("fp8",), judge, {}, table_bits={"fp8": 32.0}).run(None)
    assert plan.by_layer == {"a": "float", "b": "fp8"}
    assert plan.choices[0].reason == "nothing is saved"


def test_the_gate_rejects_what_is_not_faster():
    times = {
        0: RegionTimes({"float": 1.0, "int8": 0.5}),
        1: RegionTimes({"float": 1.0, "int8": 0.99}),  # within the noise
        2: RegionTimes({"float": 1.0, "int8": 1.5}),
    }
    plan = search(times=times).run(None)
    assert plan.by_layer == {"a": "int8", "b": "float", "c": "float"}
    row = plan.choices[2]
    assert row.milliseconds == (1.0, 1.5)
    assert row.reason == "rejected: int8 takes 1.500 ms, float 1.000 ms"


def test_a_bound_needs_something_to_measure_on():
    with pytest.raises(UsageError, match="--evaluation DATA"):
        search(samples=None).run(0.1)


def test_a_bound_cannot_be_kept_on_one_sample():
    one = evaluated(shifted(0.0), FEEDS[0])
    assert one.loss(shifted(0.0)).upper == np.inf
    with pytest.raises(UsageError, match="cannot be kept on one sample"):
        search(samples=one).run(0.1)
    both = {"input_ids": RNG.integers(0, 9, (2, 30))}  # two rows of a batch are two samples
    plan = search(samples=evaluated(shifted(0.0), both)).run(1.0)
    assert set(plan.by_layer.values()) == {"int8"}


def test_what_the_target_loses_more_steps_back_and_is_said():
    bound = loss_with(a="int8", c="int8") * 1.01
    plan = search(compile_=on_a_worse_target).run(bound)
    assert plan.by_layer == {"a": "int8", "b": "float", "c": "float"}
    assert plan.stepped_back == ("c",)
    assert plan.losses is not None and plan.losses.worst.upper <= bound
    reasons = {choice.layers[0]: choice.reason for choice in plan.choices}
    assert reasons["c"] == "beyond the budget on the target, within it in onnxruntime"
    assert reasons["b"] == "the budget is spent"
    same = search(compile_=lambda n, c: nullcontext(by_choices(n, c))).run(bound)
    assert same.by_layer == search().run(bound).by_layer and not same.stepped_back


def test_every_program_counts():
    def of_both(name: str, choices):
        return by_choices(name, choices, {"forward": 1.0, "decode": 3.0}[name])

    programs = [
        JudgedProgram(name, frozenset("abc"), SAMPLES, "six samples")
        for name in ("forward", "decode")
    ]
    judge = Judge(programs, of_both, None)
    units = [Unit((name,), 100) for name in "abc"]
    bound = loss_with(a="int8", c="int8") * 1.01
    plan = BudgetSearch(units, ("int8",), judge, {}).run(bound)
    assert plan.by_layer == {"a": "int8", "b": "float", "c": "float"}
    fields = plan_fields(plan, judge, bound, "target onnx")
    assert fields["program"] == "decode" and fields["loss_upper"] <= bound
    assert set(fields["programs"]) == {"forward", "decode"}


def test_a_program_without_logits_counts_for_layers_that_no_other_has():
    outputs = [TensorSpec("y", "float32", ("batch", 3))]
    feeds = [{"x": RNG.standard_normal((2, 3))} for _ in range(3)]
    examples = [Example(one, one, (), outputs) for one in feeds]
    hidden = evaluation_of(lambda f: {"y": f["x"]}, examples, [metric_named("agreement")])
    assert hidden is not None

    def counted(*layers: str) -> list[str]:
        programs = [
            JudgedProgram("forward", frozenset("abc"), SAMPLES, ""),
            JudgedProgram("encode", frozenset(layers), hidden, "", leads=False),
        ]
        return [program.name for program in Judge(programs, by_choices, None).counted]

    assert counted("a", "b") == ["forward"]
    assert counted("a", "d") == ["forward", "encode"]
    encode = JudgedProgram("encode", frozenset("a"), hidden, "", leads=False)
    alone = Judge([encode], by_choices, None)
    assert [program.name for program in alone.counted] == ["encode"]


@pytest.mark.parametrize(
    ("text", "share"), [("0.5%", 0.005), ("0.01", 0.01), (0.2, 0.2), ("0%", 0)]
)
def test_a_bound_is_a_share_or_percents(text, share):
    assert checked_loss(text) == pytest.approx(share)


@pytest.mark.parametrize("text", ["half", "-1%", "inf", "nan", ""])
def test_what_is_no_bound(text):
    with pytest.raises(UsageError, match="not a fraction"):
        checked_loss(text)


def test_units_are_layers_and_what_shares_a_table(traced):
    graph = traced("forward", kind="decoder").graph.clone()
    run_passes(graph, common())
    units = units_of([graph, graph], lambda layer: layer.endswith("down"))
    names = [unit.layers for unit in units]
    assert ("token_embedding", "output") in names
    assert {unit.layers for unit in units if unit.table} == {("token_embedding", "output")}
    assert not any("down" in name for layers in names for name in layers)
    assert sorted(names) == sorted(set(names))
    assert len(regions(graph)) == 2 * 4 + 1  # two layers: q, k and v; output; up; down; logits


@pytest.mark.parametrize("target", CPU)
def test_regions_are_timed_on_the_target(traced, target: str):
    graph = traced("forward", kind="decoder").graph.clone()
    run_passes(graph, common())
    found = regions(graph)
    chosen = find_target(target)
    schemes = {name: chosen.schemes[name] for name in ("int8-weights", "int4-weights")}
    timing = Timing(chosen, "int8", schemes, 8, QuantizationFacts(), {})
    reports: list[str] = []
    times = list(time_regions(found, timing, reports.append))
    assert len(reports) == 5 and len(times) == len(found)  # each kind once
    for one in times:
        assert set(one.milliseconds) == {"float", "int8-weights", "int4-weights"}
        assert all(0 < value < 1000 for value in one.milliseconds.values())


def test_an_export_within_a_budget_says_what_it_chose(tmp_path: Path, capsys):
    arguments = ["export", "omninet", "--config", "tiny", "--set", "kind=decoder", "--target"]
    arguments += [
        "onnx",
        "--programs",
        "forward",
        "--calibration",
        f"{token_samples.__file__}:data",
    ]
    arguments += [
        "--evaluation",
        f"{token_samples.__file__}:other_data",
        "--out",
        str(tmp_path / "a.omni"),
    ]
    assert main([*arguments, "--precision", "int4-weights", "--max-loss", "0.2%"]) == 0
    shown = capsys.readouterr()
    assert "loss alone" in shown.out and "95 of 100" in shown.err
    budget = inspect(tmp_path / "a.omni")["quantization"]["budget"]
    assert budget["loss_upper"] <= budget["max_loss"] == 0.002
    assert budget["evaluation"].endswith("other_data")
    layers = {name for row in budget["layers"] for name in row["layers"]}
    assert {"output", "token_embedding"} <= layers
    (row,) = (row for row in budget["layers"] if "token_embedding" in row["layers"])
    assert (row["choice"], row["reason"]) == ("int8-weights", "kept; int4-weights: saves nothing")
    assert main([*arguments, "--precision", "int8", "--speed-gate", "8", "--json"]) == 0
    (artifact,) = json.loads(capsys.readouterr().out)["artifacts"]
    rows = artifact["quantization"]["budget"]["layers"]
    assert all(row["milliseconds"]["float"] > 0 for row in rows)


def test_auto_chooses_for_itself(tmp_path: Path):
    (report,) = omnigraph.export(
        "omninet",
        "openvino",
        precision="auto",
        calibration=data,
        out=tmp_path / "a.omni",
        **TINY,
    )
    budget = report.quantization["budget"]
    assert budget["max_loss"] == 0.005 and budget["loss_upper"] <= 0.005
    assert {row["choice"] for row in budget["layers"]} <= {"float", "int8", "int4-weights"}
    with omnigraph.load(report.path, verify=True) as session:
        session.run(input_ids=TOKENS[:1])


def test_a_gate_needs_the_target_here(tmp_path: Path):
    if find_target("tensorrt").unrunnable() is None:
        pytest.skip("there is a GPU")
    with pytest.raises(UsageError, match="does not run here"):
        omnigraph.export(
            "omninet",
            "tensorrt",
            precision="int8",
            quantization=Quantization(calibration=data, speed_gate=8),
            out=tmp_path / "a.omni",
            **TINY,
        )


def test_a_loss_prints_for_a_person():
    found = Loss("agreement", 0.0123)
    assert str(found).startswith("agreement +1.230% (how much more other samples lose")
    found = Loss("agreement", 0.0123, 0.02, 9)
    assert str(found) == "agreement +1.230% (below +2.000% at 95 of 100)"
    found = Loss("perplexity", 0.1, 0.2, 9, 3.0, 3.3)
    assert str(found) == "perplexity 3.3000 for 3.0000, +10.000% (below +20.000% at 95 of 100)"
