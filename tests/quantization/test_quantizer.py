"""Exports that quantize: options, tolerances, what is said, what is kept, and budgets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import omnigraph
from omnigraph.cli.main import main
from omnigraph.contract.tolerance import Deviation, Tolerance
from omnigraph.errors import ContractError, UnsupportedError, UsageError
from omnigraph.frontends.resolve import resolve
from omnigraph.inspection.bisect import bisect
from omnigraph.inspection.inspect import describe_text, inspect
from omnigraph.lowering import find_target
from omnigraph.passes.analysis.quantization.linear_layers import linear_layers
from omnigraph.passes.analysis.quantization.statistics import Observation, Statistics
from omnigraph.passes.base import run_passes
from omnigraph.passes.calibrated_pass import QuantizationFacts
from omnigraph.passes.insert_qdq import InsertQdq
from omnigraph.passes.pipelines import common
from omnigraph.program import TensorSpec
from omnigraph.quantization.budget import BudgetSearch, Unit, units_of
from omnigraph.quantization.calibration import calibrate
from omnigraph.quantization.data import open_data
from omnigraph.quantization.evaluation import (
    Loss,
    cross_entropy,
    loss_of,
    next_tokens,
    sample_of,
    targets_of_labels,
)
from omnigraph.quantization.noise import check_quantized, noise_of, quantized_tolerance
from omnigraph.quantization.options import Quantization, checked_loss
from omnigraph.quantization.region_timing import RegionTimes, Timing, regions, time_regions
from omnigraph.tracing.trace import trace

TINY = {
    "config": "tiny",
    "settings": {"kind": "decoder", "positions": "rotary"},
    "programs": ["forward"],
}
CPU = ("onnx", "openvino")
INTEGERS = ("int8", "int8-dynamic", "int8-weights", "int4-weights")
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(0, 200, (24, 20))


def data() -> Iterator[dict[str, np.ndarray]]:
    """Samples of token ids."""
    return ({"input_ids": row[None]} for row in TOKENS)


def other_data() -> Iterator[dict[str, np.ndarray]]:
    """Others, to judge on."""
    return ({"input_ids": np.roll(row, 3)[None]} for row in TOKENS)


@pytest.mark.parametrize("precision", INTEGERS)
def test_every_precision_keeps_its_contract_and_is_small(tmp_path: Path, precision: str):
    reports = omnigraph.export(
        "omninet", CPU, precision=precision, calibration=data, out=tmp_path, **TINY
    )
    for report in reports:
        assert report.precision == precision
        rows = [row for row in report.layers["forward"] if row.op == "MatMul"]
        wanted = "uint4" if precision == "int4-weights" else "int8"
        assert {row.weights for row in rows} <= {wanted, "int8"} and rows[0].weights == wanted
        assert max(row.bits for row in rows) < (9 if wanted == "int8" else 8.6)
        with omnigraph.load(report.path, verify=True) as session:
            outputs = session.run(input_ids=TOKENS[:2])
        assert np.isfinite(outputs["logits"]).all()
        manifest = inspect(report.path)
        assert manifest["programs"]["forward"]["layers"] == [
            r.to_dict() for r in report.layers["forward"]
        ]
        shown = describe_text(manifest)
        assert "bits on disk" in shown and wanted in shown


def both_sides() -> Iterator[dict[str, np.ndarray]]:
    """Samples of an encoder-decoder, padded on the right."""
    mask = (np.arange(20) < 14).astype(np.int64)[None]
    for row in TOKENS:
        ids = row[None]
        yield {
            "input_ids": ids,
            "attention_mask": mask,
            "decoder_input_ids": ids[:, ::-1],
            "decoder_attention_mask": mask,
        }


def test_programs_that_data_do_not_suit_use_what_others_observed(tmp_path: Path):
    (report,) = omnigraph.export(
        "omninet",
        "onnx",
        config="tiny",
        settings={"kind": "encoder-decoder", "positions": "alibi"},
        precision="int8",
        calibration=both_sides,
        out=tmp_path,
    )
    assert set(report.layers) == {"forward", "encode", "decode"}
    for rows in report.layers.values():
        linear_layers = [row for row in rows if row.op == "MatMul"]
        assert linear_layers and {(r.weights, r.activations) for r in linear_layers} == {
            ("int8", "uint8")
        }


def test_a_model_of_hugging_face(tmp_path: Path):
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    sizes = {"vocab_size": 99, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64}
    GPT2LMHeadModel(GPT2Config(**sizes)).eval().save_pretrained(tmp_path / "gpt2")
    reports = omnigraph.export(
        tmp_path / "gpt2", CPU, precision="int8", kv_cache="int8", out=tmp_path / "out"
    )
    for report in reports:
        for rows in report.layers.values():
            linear_layers = {(r.weights, r.activations) for r in rows if r.op != "Gather"}
            assert linear_layers == {("int8", "uint8")}


def test_statistics_are_kept_used_again_and_named_in_the_manifest(tmp_path: Path):
    saved = tmp_path / "seen.npz"
    asked = Quantization(calibration=data, samples=10, method="percentile", save=saved)
    (first,) = omnigraph.export(
        "omninet", "onnx", precision="int8", quantization=asked, out=tmp_path / "a", **TINY
    )
    told = first.quantization
    assert (told["source"], told["samples"], told["method"]) == ("data", 10, "percentile")
    assert told["statistics"] == Statistics.load(saved).digest
    (again,) = omnigraph.export(
        "omninet", "onnx", precision="int8", calibration=saved, out=tmp_path / "b", **TINY
    )
    assert again.quantization["statistics"] == told["statistics"]
    one, other = (json.loads((tmp_path / n / "manifest.json").read_text()) for n in "ab")
    # The contract's input sets differ, for statistics hold no tokens; the weights do not.
    stored = [n for n in one["files"] if not n.startswith("golden")]
    assert stored and all(one["files"][n] == other["files"][n] for n in stored)


def test_targets_share_what_was_observed(tmp_path: Path):
    read = 0

    def counted() -> Iterator[dict[str, np.ndarray]]:
        nonlocal read
        read += 1
        return data()

    def reads(targets: list[str]) -> int:
        nonlocal read
        read = 0
        omnigraph.export(
            "omninet",
            targets,
            precision="int8",
            calibration=counted,
            out=tmp_path / "-".join(targets),
            **TINY,
        )
        return read

    assert reads(["onnx", "openvino"]) == reads(["onnx"])


def test_layers_that_are_kept_stay_in_float(tmp_path: Path):
    asked = Quantization(calibration=data, keep=("*.feed_forward.*", "output", "token_embedding"))
    (report,) = omnigraph.export(
        "omninet", "onnx", precision="int8", quantization=asked, out=tmp_path / "a", **TINY
    )
    for row in report.layers["forward"]:
        kept = "feed_forward" in row.layer or row.layer in ("output", "token_embedding")
        assert (row.weights == "fp32") == kept, row


@pytest.mark.parametrize(("group", "symmetric"), [(32, True), (128, False), (16, None)])
def test_four_bits_in_groups_and_with_and_without_zero_points(
    tmp_path: Path, group: int, symmetric: bool | None
):
    asked = Quantization(calibration=data, group_size=group, symmetric=symmetric)
    reports = omnigraph.export(
        "omninet", CPU, precision="int4-weights", quantization=asked, out=tmp_path, **TINY
    )
    for report in reports:
        rows = [row for row in report.layers["forward"] if row.block]
        kinds = {(row.weights, row.block) for row in rows}
        assert kinds == {("int4" if symmetric else "uint4", group)}


def test_without_data_it_is_said_loudly(tmp_path: Path, capsys):
    arguments = ["export", "omninet", "--config", "tiny", "--set", "kind=encoder", "--target"]
    out = ["--out", str(tmp_path / "a.omni")]
    assert main([*arguments, "onnx", "--precision", "int8", *out]) == 0
    said = capsys.readouterr().err
    assert "RANDOM TOKEN IDS" in said and "--calibration DATA" in said
    assert inspect(tmp_path / "a.omni")["quantization"]["source"] == "random token ids"
    assert main([*arguments, "onnx", "--precision", "int8-weights", *out]) == 0
    assert "RANDOM" not in capsys.readouterr().err


def test_ranges_that_do_not_suit_are_refused_and_nothing_is_written(tmp_path: Path):
    omnigraph.export(
        "omninet",
        "onnx",
        precision="int8",
        quantization=Quantization(calibration=data, save=tmp_path / "seen.npz"),
        out=tmp_path / "good.omni",
        **TINY,
    )
    before = (tmp_path / "good.omni").read_bytes()
    seen = Statistics.load(tmp_path / "seen.npz")
    tiny = {
        name: replace(found, low=found.low / 50, high=found.high / 50)
        for name, found in seen.observations.items()
    }
    Statistics(tiny, "min-max", "a mistake", 1).save(tmp_path / "wrong.npz")
    with pytest.raises(ContractError, match="Quantization changes output"):
        omnigraph.export(
            "omninet",
            "onnx",
            precision="int8",
            calibration=tmp_path / "wrong.npz",
            out=tmp_path / "good.omni",
            **TINY,
        )
    assert (tmp_path / "good.omni").read_bytes() == before


@pytest.mark.parametrize(
    ("asked", "precision", "said"),
    [
        ({"method": "best"}, "int8", "min-max or percentile or entropy or mse"),
        ({"samples": 0}, "int8", "needs samples"),
        ({"group_size": 48}, "int4-weights", "16 or 32 or 64 or 128"),
        ({"keep": ("a",)}, "fp32", "nothing is quantized"),
        ({"max_loss": -1.0}, "int8", "not a fraction"),
        ({"speed_gate": 0}, "int8", "tokens to time with"),
        ({"save": "x.npz"}, "int8-weights", "no statistics to save"),
        ({"calibration": [{"x": TOKENS}]}, "int8", "lack inputs of every program"),
    ],
)
def test_options_that_mean_nothing_are_refused(tmp_path: Path, asked, precision: str, said: str):
    with pytest.raises(UsageError, match=said):
        omnigraph.export(
            "omninet",
            "onnx",
            precision=precision,
            quantization=Quantization(**asked),
            out=tmp_path / "a.omni",
            **TINY,
        )
    assert not list(tmp_path.iterdir())


def test_a_precision_that_a_target_cannot_do():
    with pytest.raises(UnsupportedError, match="cannot do precision 'fp8'"):
        omnigraph.export("omninet", "onnx", precision="fp8", **TINY)


def test_every_pass_is_compared_where_that_is_asked(tmp_path: Path):
    omnigraph.export(
        "omninet",
        "onnx",
        precision="int8",
        calibration=data,
        verify_each=True,
        out=tmp_path / "a.omni",
        **TINY,
    )


@pytest.mark.parametrize("target", ["onnx", pytest.param("openvino", marks=pytest.mark.slow)])
def test_bisect_finds_nothing_where_the_contract_is_kept(target: str):
    asked = Quantization(calibration=data)
    assert not bisect("omninet", target, precision="int8", quantization=asked, **TINY)


def test_bisect_names_the_pass_where_ranges_do_not_suit(tmp_path: Path):
    quiet = [{"input_ids": np.zeros((1, 6), np.int64)}]
    (found,) = bisect(
        "omninet",
        "onnx",
        precision="int8",
        passes="-smooth-activations,-correct-biases",
        quantization=Quantization(calibration=wrong_statistics(tmp_path / "wrong.npz", quiet)),
        **TINY,
    )
    assert found.stage == "pass 'insert-qdq'"
    assert found.error is not None and "Quantization changes output" in found.error


def wrong_statistics(path: Path, samples: object) -> Path:
    """Statistics whose ranges are a fiftieth of what was seen."""
    program = resolve("omninet", config="tiny", settings=TINY["settings"]).programs[0]
    graph = trace(program)
    run_passes(graph, common())
    feeds = open_data(samples).feeds(program.inputs)
    seen = calibrate(graph, linear_layers(graph), feeds).observations
    tiny = {n: replace(s, low=s.low / 50, high=s.high / 50) for n, s in seen.items()}
    Statistics(tiny, "min-max", "a mistake", 1).save(path)
    return path


# The noise ----------------------------------------------------------------------------------------


def test_the_noise_that_is_foreseen_is_that_of_a_product(trace_of_one_product):
    graph, references, statistics = trace_of_one_product
    for precision in ("int8", "int8-weights", "int4-weights"):
        quantized = graph.clone()
        scheme = find_target("onnx").schemes[precision]
        insert = InsertQdq(scheme=scheme, facts=QuantizationFacts(statistics))
        expected, hidden = noise_of(quantized, insert)
        run_passes(quantized, [insert])
        found = check_quantized(quantized, references, expected, Tolerance(0, 0), "one")
        # What the runtime rounds by itself is less than what 8 bits of any range are.
        assert (hidden == 0) == (precision == "int8") and hidden < 0.018
        # Clipping may leave less of it; it is a mean over weights that differ.
        assert 0.4 * expected < found.rms < 1.3 * expected


@pytest.fixture(scope="module")
def trace_of_one_product():
    from graph_checks import graph_with_weights

    from omnigraph.contract.reference import Reference
    from omnigraph.program import Case

    weight = RNG.standard_normal((128, 64)).astype(np.float32)
    x = RNG.standard_normal((400, 128)).astype(np.float32)
    text = "g (float[B,128] x, float[128,64] w) => (float[B,64] y) { y = MatMul(x, w) }"
    graph = graph_with_weights(text, w=weight)
    low, high = float(x.min()), float(x.max())
    rms = float(np.sqrt(np.mean(np.square(x))))
    seen = Observation(low, high, low, high, rms, np.abs(x).max(0), x.mean(0))
    references = [Reference(Case("all", {}), {"x": x}, {"y": x @ weight})]
    return graph, references, Statistics({"w": seen}, "min-max", "a test", 1)


def test_a_tolerance_grows_with_the_noise_and_keeps_that_of_floats():
    floats = Tolerance(1e-5, 16e-5)
    none = quantized_tolerance(Deviation(0.0, 0.0), 0.0, floats)
    assert (none.rms, none.peak) == (floats.rms, floats.peak)
    some = quantized_tolerance(Deviation(0.01, 0.5), 0.0, floats)
    assert some.rms == pytest.approx(0.02, rel=1e-2) and some.peak > 1.0
    assert quantized_tolerance(Deviation(0.01, 0.0), 0.03, floats).rms > 0.06


# Evaluation ---------------------------------------------------------------------------------------


SEQUENCE = ("batch", "sequence")
INPUTS = (
    TensorSpec("input_ids", "int64", SEQUENCE, role="tokens"),
    TensorSpec("attention_mask", "int64", SEQUENCE, 1, role="mask"),
)
LOGITS = TensorSpec("logits", "float32", (*SEQUENCE, 9), role="logits")


def sample(run, feeds, given=None):
    inputs = [spec for spec in INPUTS if spec.name in feeds]
    return sample_of(run, feeds, given or feeds, inputs, [LOGITS])


def test_targets_are_labels_or_the_next_token():
    ids = np.array([[5, 6, 7, 8]])
    feeds = {"input_ids": ids, "attention_mask": np.array([[1, 1, 1, 0]])}
    assert next_tokens(feeds, INPUTS[:1], LOGITS, (1, 4)).tolist() == [[6, 7, 8, -1]]
    assert next_tokens(feeds, INPUTS, LOGITS, (1, 4)).tolist() == [[6, 7, -1, -1]]
    assert next_tokens(feeds, INPUTS, LOGITS, (1, 3)) is None
    labels = np.array([[1, -100, 2, 3]])
    assert targets_of_labels(labels, (1, 4)).tolist() == [[1, -1, 2, 3]]
    with pytest.raises(UsageError, match="labels"):
        targets_of_labels(labels[:, :3], (1, 4))


def test_targets_are_of_the_side_that_the_logits_are_of():
    encoder = TensorSpec("a", "int64", SEQUENCE, role="tokens")
    decoder = TensorSpec("b", "int64", ("batch", "decoder_sequence"), role="tokens")
    feeds = {"a": np.array([[1, 2, 3]]), "b": np.array([[5, 6, 7]])}
    for side, expected in ((encoder, [[2, 3, -1]]), (decoder, [[6, 7, -1]])):
        logits = TensorSpec("y", "float32", (*side.shape, 9), role="logits")
        for inputs in ((encoder, decoder), (decoder, encoder)):
            assert next_tokens(feeds, inputs, logits, (1, 3)).tolist() == expected


def test_labels_of_the_data_come_before_the_next_tokens():
    feeds = {"input_ids": np.array([[5, 6, 7, 8]])}
    labels = {"labels": np.array([[1, -100, 2, 3]])}
    assert sample(shifted(0.0), feeds, labels).targets.tolist() == [[1, -1, 2, 3]]
    assert sample(shifted(0.0), feeds).targets.tolist() == [[6, 7, 8, -1]]


def test_cross_entropy_is_torch_s():
    import torch

    logits = RNG.standard_normal((3, 700, 11)).astype(np.float32)
    targets = RNG.integers(-1, 11, (3, 700))
    expected = torch.nn.functional.cross_entropy(
        torch.from_numpy(logits).double().flatten(0, 1),
        torch.from_numpy(targets).flatten(),
        ignore_index=-1,
        reduction="sum",
    )
    assert cross_entropy(logits, targets) == pytest.approx(float(expected), rel=1e-9)


def shifted(by: float):
    """A "model" whose logits for a token are its one-hot row, and one that is worse by so much."""

    def run(feeds):
        ids = feeds["input_ids"]
        logits = np.zeros((*ids.shape, 9), np.float32)
        following = np.roll(ids, -1, axis=1)
        np.put_along_axis(logits, following[..., None], 3.0 - by, axis=-1)
        return {"logits": logits}

    return run


def test_the_loss_is_the_growth_of_the_perplexity():
    feeds = [{"input_ids": RNG.integers(0, 9, (1, 30))} for _ in range(20)]
    samples = [sample(shifted(0.0), f) for f in feeds]
    same = loss_of(shifted(0.0), samples)
    assert same.relative == 0 and same.upper == 0
    worse = loss_of(shifted(0.1), samples)
    model = -np.log(np.exp(3.0) / (np.exp(3.0) + 8))
    found = -np.log(np.exp(2.9) / (np.exp(2.9) + 8))
    assert worse.model == pytest.approx(np.exp(model))
    assert worse.relative == pytest.approx(np.exp(found - model) - 1, rel=1e-4)
    assert "perplexity" in str(worse)
    with pytest.raises(UsageError, match="no samples"):
        loss_of(shifted(0.0), [])


def test_the_upper_end_of_a_loss_covers_what_other_samples_give():
    rng = np.random.default_rng(5)

    def noisy(feeds):
        found = shifted(0.0)(feeds)["logits"]
        noise = np.random.default_rng(int(feeds["input_ids"].sum())).normal(0, 0.5, found.shape)
        return {"logits": found + noise.astype(np.float32)}

    def draw(count: int):
        feeds = [{"input_ids": rng.integers(0, 9, (1, 25))} for _ in range(count)]
        return [sample(shifted(0.0), f) for f in feeds]

    truth = loss_of(noisy, draw(4000)).relative
    below = [loss_of(noisy, draw(30)).upper >= truth for _ in range(100)]
    assert 88 <= sum(below) <= 99  # 95 of 100, as far as a hundred tries can tell


def test_programs_without_logits_are_judged_by_agreement():
    feeds = [{"x": RNG.standard_normal((2, 3))} for _ in range(4)]
    samples = [sample_of(lambda f: {"y": f["x"]}, f, f, (), ()) for f in feeds]
    assert loss_of(lambda f: {"y": f["x"] * 1.02}, samples).relative == pytest.approx(0.02)


# Budgets ------------------------------------------------------------------------------------------

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
    arguments += ["onnx", "--programs", "forward", "--calibration", f"{__file__}:data"]
    arguments += ["--evaluation", f"{__file__}:other_data", "--out", str(tmp_path / "a.omni")]
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
