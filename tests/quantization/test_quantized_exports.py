"""Exports that quantize: options, tolerances, what is said, and what is kept."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from token_samples import CPU, TINY, TOKENS, data

import omnigraph
from omnigraph.cli.main import main
from omnigraph.errors import ContractError, UnsupportedError, UsageError
from omnigraph.frontends.resolve import resolve
from omnigraph.inspection.bisect import bisect
from omnigraph.inspection.inspect import describe_text, inspect
from omnigraph.passes.analysis.quantization.linear_layers import linear_layers
from omnigraph.passes.analysis.quantization.statistics import Statistics
from omnigraph.passes.base import run_passes
from omnigraph.passes.pipelines import common
from omnigraph.quantization.calibration import calibrate
from omnigraph.quantization.data import open_data
from omnigraph.quantization.options import Quantization
from omnigraph.quantization.samples import Samples
from omnigraph.tracing.trace import trace

INTEGERS = ("int8", "int8-dynamic", "int8-weights", "int4-weights")


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


@pytest.mark.slow
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
    # Statistics hold no samples, which compensation needs.
    asked = Quantization(
        calibration=data, samples=10, method="percentile", save=saved, rounding="nearest"
    )
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


def never_zero() -> Iterator[dict[str, np.ndarray]]:
    """Samples in which the last two of six features are always zero."""
    draw = np.random.default_rng(3)
    for _ in range(12):
        features = draw.standard_normal((1, 9, 64)).astype(np.float32)
        features[..., -2:] = 0
        yield {"input": features}


def wide_layer():
    """A layer of 64 features, and inputs in which all of them are used."""
    import torch

    torch.manual_seed(0)
    return torch.nn.Linear(64, 32), {"input": torch.randn(2, 5, 64)}


def test_weights_that_calibration_never_needed_are_kept_and_counted(tmp_path: Path, capsys):
    out = str(tmp_path / "a.omni")
    arguments = ["export", f"{__file__}:wide_layer", "--target", "onnx", "--out", out]
    arguments += ["--precision", "int4-weights", "--calibration", f"{__file__}:never_zero"]
    assert main(arguments) == 0
    assert "64 weights are rounded to the nearest" in capsys.readouterr().err
    assert inspect(out)["quantization"]["unseen_weights"] == 2 * 32
    only = np.zeros((1, 1, 64), np.float32)
    only[..., -2:] = 1
    layer = wide_layer()[0]
    expected = layer.weight[:, -2:].sum(1) + layer.bias
    with omnigraph.load(out) as session:
        (found,) = session.run(input=only).values()
    error = found[0, 0] - expected.detach().numpy()
    assert np.abs(error).max() < 0.03  # two roundings of a fifteenth of 0.25, and the runtime's own


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
        ({"method": "best"}, "int8", "min-max or mean or percentile or mse"),
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


def test_bisect_calibrates_on_the_samples_that_an_export_does(monkeypatch: pytest.MonkeyPatch):
    class Enough(Exception):
        pass

    seen = []

    def calibrator(options: Quantization, samples: Samples, *_: object) -> None:
        seen.append(len(list(samples.data.read())))
        raise Enough

    monkeypatch.setattr(sys.modules[bisect.__module__], "Calibrator", calibrator)
    monkeypatch.setattr(sys.modules[omnigraph.export.__module__], "Calibrator", calibrator)
    asked = Quantization(calibration=data, max_loss=0.01)
    for command in (omnigraph.export, bisect):
        with pytest.raises(Enough):
            command("omninet", "onnx", precision="int8", quantization=asked, **TINY)
    assert seen == [len(TOKENS) * 3 // 4] * 2


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
