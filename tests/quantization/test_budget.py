"""The precision of each layer: budgets, gates, and what is said of the choice."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import token_samples
from token_samples import CPU, TINY, TOKENS, data, sample, shifted

import omnigraph
from omnigraph.cli.main import main
from omnigraph.errors import UsageError
from omnigraph.inspection.inspect import inspect
from omnigraph.lowering import find_target
from omnigraph.passes.base import run_passes
from omnigraph.passes.calibrated_pass import QuantizationFacts
from omnigraph.passes.pipelines import common
from omnigraph.quantization.budget import BudgetSearch, Unit, units_of
from omnigraph.quantization.evaluation import (
    Loss,
    loss_of,
)
from omnigraph.quantization.options import Quantization, checked_loss
from omnigraph.quantization.region_timing import RegionTimes, Timing, regions, time_regions

RNG = np.random.default_rng(0)


LOSSES = {"a": 0.001, "b": 0.004, "c": 0.002}


def by_choices(choices):
    """A program whose perplexity grows by the loss of each layer; twice that in four bits."""
    total = sum(
        LOSSES[layer] * (2 if "4" in precision else 1)
        for layer, precision in choices.items()
        if precision != "float"
    )

    def run(feeds):
        logits = shifted(0.0)(feeds)["logits"]
        return {
            "logits": logits - np.float32(0) if not total else shifted(total * 3)(feeds)["logits"]
        }

    return run


def search(candidates=("int8",), times=None, sizes=(100, 100, 100)) -> BudgetSearch:
    feeds = [{"input_ids": RNG.integers(0, 9, (1, 30))} for _ in range(6)]
    samples = [sample(shifted(0.0), f) for f in feeds]
    units = [Unit((name,), size) for name, size in zip("abc", sizes, strict=True)]
    return BudgetSearch(units, candidates, by_choices, samples, times or {})


def loss_with(**choices: str) -> float:
    feeds = [{"input_ids": RNG.integers(0, 9, (1, 30))} for _ in range(6)]
    samples = [sample(shifted(0.0), f) for f in feeds]
    everything = {"a": "float", "b": "float", "c": "float", **choices}
    return loss_of(by_choices(everything), samples).relative


def test_a_budget_takes_the_cheapest_losses_first_and_stops():
    two = loss_with(a="int8", c="int8")
    plan = search().run(two * 1.01)
    assert plan.by_layer == {"a": "int8", "b": "float", "c": "int8"}
    assert plan.loss is not None and plan.loss.upper <= two * 1.01
    reasons = {choice.layers[0]: choice.reason for choice in plan.choices}
    assert reasons == {"a": "kept", "b": "the budget is spent", "c": "kept"}
    assert set(search().run(1.0).by_layer.values()) == {"int8"}
    nothing = search().run(0.0)
    assert set(nothing.by_layer.values()) == {"float"} and nothing.loss.relative == 0


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
    empty = BudgetSearch([Unit(("a",), 1)], ("int8",), by_choices, [], {})
    with pytest.raises(UsageError, match="--evaluation DATA"):
        empty.run(0.1)


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
    units = units_of(graph, lambda layer: layer.endswith("down"))
    names = [unit.layers for unit in units]
    assert ("token_embedding", "output") in names
    assert not any("down" in name for layers in names for name in layers)
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
    assert str(Loss("agreement", 0.0, 0.0123)) == "outputs differ by 1.230%"
