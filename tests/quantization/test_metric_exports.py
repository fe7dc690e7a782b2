"""Exports within a bound by a metric: what is reported is what the artifact loses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from token_samples import CPU, TOKENS, data, other_data
from torch import nn

import omnigraph
from omnigraph.cli.main import main
from omnigraph.errors import UsageError
from omnigraph.inspection.inspect import inspect
from omnigraph.quantization.options import Quantization
from omnigraph.quantization.plan_report import loss_lines


class Small(nn.Module):
    """A few layers on the vectors of tokens, or on their mean: it embeds, or it classifies."""

    def __init__(self, output: str, width: int, pools: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.output = output
        self.table = nn.Embedding(200, 64)
        self.layers = nn.Sequential(nn.Linear(64, 96), nn.GELU(), nn.Linear(96, width))
        self.pools = pools

    def forward(self, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        vectors = self.table(input_ids)
        return {self.output: self.layers(vectors.mean(1) if self.pools else vectors)}


def embedding():
    """A factory for the command line."""
    return Small("sentence_embedding", 32), {"input_ids": torch.randint(0, 200, (2, 20))}


def classifier():
    return Small("logits", 4), {"input_ids": torch.randint(0, 200, (2, 20))}


def language():
    return Small("logits", 200, pools=False), {"input_ids": torch.randint(0, 200, (2, 20))}


def many() -> Iterator[dict[str, np.ndarray]]:
    """Enough samples to see small shares: twenty batches of forty."""
    ids = np.random.default_rng(7).integers(0, 200, (20, 40, 20))
    return ({"input_ids": batch} for batch in ids)


def labelled() -> Iterator[dict[str, np.ndarray]]:
    """The same, with the model's classes as labels, but for one of forty."""
    module, _ = classifier()
    for number, sample in enumerate(many()):
        with torch.no_grad():
            found = module(torch.from_numpy(sample["input_ids"]))["logits"].argmax(-1).numpy()
        found[number] = (found[number] + 1) % 4  # of forty, one is wrong
        yield {**sample, "labels": found}


def exported(made, target: str, path: Path, given, metric: str | None, most: float, **options):
    module, inputs = made()
    (report,) = omnigraph.export(
        module,
        target,
        inputs=inputs,
        precision=options.pop("precision", "int8"),
        quantization=Quantization(
            calibration=given, evaluation=given, max_loss=most, metric=metric, **options
        ),
        out=path,
    )
    return report


def results(made, path: Path, samples, name: str) -> tuple[np.ndarray, np.ndarray]:
    """What torch gives on some samples, and what the artifact gives."""
    module, _ = made()
    model, found = [], []
    with omnigraph.load(path) as session, torch.no_grad():
        for sample in samples():
            ids = sample["input_ids"]
            model.append(module(torch.from_numpy(ids))[name].numpy())
            found.append(session.run(input_ids=ids)[name])
    return np.concatenate(model).astype(float), np.concatenate(found).astype(float)


@pytest.mark.parametrize(("target", "precision"), [("onnx", "int8"), ("openvino", "int8-weights")])
def test_the_loss_of_an_embedding_is_what_the_artifact_loses(
    tmp_path: Path, target: str, precision: str
):
    path = tmp_path / "a.omni"
    report = exported(embedding, target, path, many, None, 0.003, precision=precision)
    budget = report.quantization["budget"]
    a, b = results(embedding, path, many, "sentence_embedding")
    unit = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in (a, b)]
    assert budget["metric"] == "cosine" and budget["measured_on"] == f"target {target}"
    assert budget["loss"] == pytest.approx(1 - (unit[0] * unit[1]).sum(1).mean(), rel=1e-3)
    assert 0 < budget["loss"] < budget["loss_upper"] <= 0.003
    assert {row["choice"] for row in budget["layers"]} == {precision}

    report = exported(
        embedding,
        target,
        path,
        many,
        "nearest-neighbour",
        0.25,
        precision=precision,
        samples=6,
    )
    budget = report.quantization["budget"]
    a, b = results(embedding, path, lambda: list(many())[:6], "sentence_embedding")
    nearest = []
    for vectors in (a, b):
        near = vectors @ vectors.T
        near /= np.sqrt(np.outer(near.diagonal(), near.diagonal()))
        np.fill_diagonal(near, -2)
        nearest.append(near.argmax(1))
    assert budget["metric"] == "nearest-neighbour" and budget["ranked_by"] == "cosine"
    assert budget["loss"] == pytest.approx((nearest[0] != nearest[1]).mean(), abs=1e-9)
    assert budget["loss"] < budget["loss_upper"] <= 0.25


@pytest.mark.parametrize(("target", "samples"), [("onnx", many), ("openvino", labelled)])
def test_the_loss_of_a_classifier_is_what_the_artifact_loses(tmp_path: Path, target: str, samples):
    path = tmp_path / "a.omni"
    report = exported(classifier, target, path, samples, "accuracy", 0.05, precision="int4-weights")
    budget = report.quantization["budget"]
    chosen = [array.argmax(1) for array in results(classifier, path, samples, "logits")]
    if samples is many:
        assert "model" not in budget
        assert budget["loss"] == pytest.approx((chosen[0] != chosen[1]).mean(), abs=1e-9)
    else:
        known = np.concatenate([sample["labels"] for sample in labelled()])
        right = [(one == known).mean() for one in chosen]
        assert (budget["model"], budget["found"]) == pytest.approx(right)
        assert budget["loss"] == pytest.approx(right[0] - right[1])
    assert budget["samples"] == 800 and budget["loss"] < budget["loss_upper"] <= 0.05


@pytest.mark.parametrize("target", CPU)
def test_the_loss_of_a_language_model_is_what_the_artifact_loses(tmp_path: Path, target: str):
    path = tmp_path / "a.omni"
    report = exported(language, target, path, many, "next-token", 0.3, precision="int4-weights")
    budget = report.quantization["budget"]
    chosen = [array.argmax(2) for array in results(language, path, many, "logits")]
    assert budget["loss"] == pytest.approx((chosen[0] != chosen[1]).mean(), abs=1e-9)
    assert 0 < budget["loss"] < budget["loss_upper"] <= 0.3
    assert (budget["metric"], budget["samples"]) == ("next-token", 800)
    assert budget["ranked_by"] == "perplexity of the model's own choices"


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["next-token", "perplexity"])
def test_a_program_that_a_metric_does_not_fit_is_judged_by_another(tmp_path: Path, metric: str):
    def both_sides() -> Iterator[dict[str, np.ndarray]]:
        return ({"input_ids": row[None], "decoder_input_ids": row[None, :9]} for row in TOKENS)

    (report,) = omnigraph.export(
        "omninet",
        "openvino",
        config="tiny",
        settings={"kind": "encoder-decoder"},
        precision="int8",
        quantization=Quantization(
            calibration=data, evaluation=both_sides, max_loss=0.2, metric=metric
        ),
        out=tmp_path / "a.omni",
    )
    budget = report.quantization["budget"]
    found = {name: (p["metric"], p["counts"]) for name, p in budget["programs"].items()}
    assert found.pop("encode") == ("agreement", False)
    assert set(found.values()) == {(metric, True)} and budget["metric"] == metric
    assert budget["loss_upper"] <= 0.2


def test_the_command_line_names_the_metric_and_its_upper_end(tmp_path: Path, capsys):
    out = str(tmp_path / "a.omni")
    arguments = ["export", f"{__file__}:embedding", "--target", "openvino"]
    arguments += ["--precision", "int8-weights"]
    arguments += ["--calibration", f"{__file__}:many", "--max-loss", "0.3%", "--out", out]
    assert main([*arguments, "--metric", "cosine"]) == 0
    said = capsys.readouterr().err
    assert "forward: cosine on 200 samples of" in said and "at 95 of 100" in said
    budget = inspect(out)["quantization"]["budget"]
    assert budget["metric"] == "cosine" and budget["loss_upper"] <= budget["max_loss"] == 0.003
    arguments[arguments.index("0.3%")] = "30%"
    assert main([*arguments, "--metric", "nearest-neighbour", "--json"]) == 0
    (artifact,) = json.loads(capsys.readouterr().out)["artifacts"]
    assert artifact["quantization"]["budget"]["metric"] == "nearest-neighbour"
    lines = loss_lines(artifact["quantization"]["budget"])
    assert "the loss of each layer alone is by cosine" in lines
    assert main([*arguments, "--metric", "nearest-neighbor"]) == 2
    assert "did you mean 'nearest-neighbour'?" in capsys.readouterr().err


@pytest.mark.parametrize("metric", ["cosine", "nearest-neighbour", "agreement"])
def test_a_tight_bound_leaves_layers_in_float(tmp_path: Path, metric: str):
    most = {"cosine": 1e-7, "nearest-neighbour": 0.004, "agreement": 1e-4}[metric]
    budget = exported(
        embedding, "onnx", tmp_path / "a.omni", many, metric, most, precision="int4-weights"
    ).quantization["budget"]
    assert "float" in {row["choice"] for row in budget["layers"]}
    assert budget["loss_upper"] <= most


# Refusals ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("made", "metric", "expected", "fits"),
    [
        (embedding, "perplexity", "expected logits [B, T, V], and DATA with",
         "--metric cosine or nearest-neighbour or agreement;"),
        (embedding, "next-token", "found program 'forward' gives embeddings sentence_embedding "
         "float32 [batch, 32].", "--metric cosine or nearest-neighbour or agreement;"),
        (classifier, "cosine", "expected vectors", "--metric accuracy or agreement;"),
        (classifier, "nearest-neighbour", "expected one vector for each sample",
         "--metric accuracy or agreement;"),
    ],
)  # fmt: skip
def test_a_metric_that_does_not_fit_is_refused(
    tmp_path: Path, made, metric: str, expected: str, fits: str
):
    with pytest.raises(UsageError, match=f"Metric '{metric}' does not fit .* on many") as error:
        exported(made, "onnx", tmp_path / "a.omni", many, metric, 0.05)
    assert expected in str(error.value) and fits in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("metric", ["perplexity", "accuracy"])
def test_random_ids_predict_nothing_and_have_no_labels(tmp_path: Path, metric: str):
    with pytest.raises(UsageError, match=r"does not fit .* on random token ids") as error:
        exported(language, "onnx", tmp_path / "a.omni", None, metric, 0.2)
    assert "--metric next-token or agreement" in str(error.value)


def test_labels_of_another_shape_are_refused(tmp_path: Path):
    def wrong() -> Iterator[dict[str, np.ndarray]]:
        return ({**sample, "labels": sample["input_ids"]} for sample in many())

    with pytest.raises(UsageError, match="not of the shape of the logits"):
        exported(classifier, "onnx", tmp_path / "a.omni", wrong, "accuracy", 0.05)


def test_a_share_of_few_samples_cannot_be_small(tmp_path: Path):
    with pytest.raises(UsageError, match=r"too few for a bound of 0\.500%") as error:
        exported(classifier, "onnx", tmp_path / "a.omni", other_data, "accuracy", 0.005)
    assert "expected a bound of 10.2% or more, or more samples" in str(error.value)
    two = lambda: iter(list(other_data())[:2])  # noqa: E731
    with pytest.raises(UsageError, match="cannot be kept on 2 samples"):
        exported(embedding, "onnx", tmp_path / "a.omni", two, "nearest-neighbour", 1.0)


def test_a_metric_needs_a_bound(tmp_path: Path):
    module, inputs = embedding()
    with pytest.raises(UsageError, match="no loss is measured: expected --max-loss"):
        omnigraph.export(
            module,
            "onnx",
            inputs=inputs,
            precision="int8",
            quantization=Quantization(metric="cosine"),
            out=tmp_path / "a.omni",
        )
