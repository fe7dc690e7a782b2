"""Integers and booleans that rounded floats choose are compared by the count of wrong ones."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_sessions import reseal
from torch import nn

import omnigraph
from omnigraph import driver
from omnigraph.artifact import MANIFEST, Artifact
from omnigraph.contract.flips import chosen_by_floats
from omnigraph.contract.tolerance import most_wrong, wrong_elements
from omnigraph.errors import ArtifactError, ContractError
from omnigraph.testing import graph_with_weights

ROUNDED = [("openvino", "bf16"), ("onnx", "int8")]


class Tagger(nn.Module):
    """Logits, the largest of each token, and where tokens are 7, which no float leads to."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embedding, self.head = nn.Embedding(300, 64), nn.Linear(64, 200, bias=False)
        self.up, self.down = nn.Linear(64, 256), nn.Linear(256, 64)

    def forward(self, input_ids):
        x = self.embedding(input_ids)
        logits = self.head(x + self.down(torch.relu(self.up(x))))
        return {"logits": logits, "best": logits.argmax(-1), "seven": input_ids == 7}


def export(out: Path, target: str, precision: str, seed: int = 1, **options: object) -> Path:
    given = {"input_ids": torch.randint(0, 300, (2, 6))}
    net = Tagger(seed).eval()
    omnigraph.export(net, target, precision=precision, inputs=given, out=out, **options)
    return out


# Seeds at which few or no choices flip in the emulation, and others in the runtime.
@pytest.mark.parametrize(
    ("target", "precision", "seed"),
    [
        ("openvino", "bf16", 1),
        ("openvino", "bf16", 5),
        ("openvino", "bf16", 6),
        ("onnx", "int8", 2),
    ],
)
def test_an_honest_choice_is_not_refused(tmp_path: Path, target: str, precision: str, seed: int):
    path = export(tmp_path / "net", target, precision, seed)
    tolerance = json.loads((path / MANIFEST).read_text())["programs"]["forward"]["tolerance"]
    assert tolerance["most_wrong"].keys() == {"best"}
    with omnigraph.load(path) as session:
        assert all(check.passed for check in session.verify())


def wrong_axis(outputs: Mapping[str, np.ndarray]) -> np.ndarray:
    logits = outputs["logits"]
    return np.resize(logits.argmax(1), outputs["best"].shape)


def shifted(outputs: Mapping[str, np.ndarray]) -> np.ndarray:
    return np.roll(outputs["logits"], 1, axis=-1).argmax(-1)


def one_of_the_rest(outputs: Mapping[str, np.ndarray]) -> np.ndarray:
    wrong = outputs["best"].copy()
    wrong.flat[0] += 1
    return wrong


def spoiled(monkeypatch, change, *, output: str = "best", unrounded: bool = False) -> None:
    """Let the runtime give another output, as it is shipped or also without rounding."""

    def spoil(open_program):
        @contextmanager
        def opened(artifact, program):
            with open_program(artifact, program) as run:

                def other(feeds):
                    outputs = dict(run(feeds))
                    return {**outputs, output: change(outputs)}

                yield other

        return opened

    check = driver.check_artifact

    def checked(directory, references, bounds, openers, *others):
        openers = replace(openers, program=spoil(openers.program))
        if unrounded:
            openers = replace(openers, unrounded=spoil(openers.unrounded))
        return check(directory, references, bounds, openers, *others)

    monkeypatch.setattr(driver, "check_artifact", checked)


@pytest.mark.parametrize("change", [wrong_axis, shifted])
@pytest.mark.parametrize(("target", "precision"), [*ROUNDED, ("onnx", "fp32")])
def test_a_wrong_choice_is_refused(
    tmp_path: Path, monkeypatch, target: str, precision: str, change
):
    spoiled(monkeypatch, change)
    with pytest.raises(ContractError, match=r"Output 'best' of"):
        export(tmp_path / "net", target, precision)


@pytest.mark.parametrize(("target", "precision"), ROUNDED)
def test_one_wrong_is_refused_where_nothing_rounds(
    tmp_path: Path, monkeypatch, target: str, precision: str
):
    spoiled(monkeypatch, one_of_the_rest, unrounded=True)
    with pytest.raises(ContractError, match=r"Output 'best' .* neither rounds"):
        export(tmp_path / "net", target, precision)


def test_one_wrong_is_refused_in_fp32(tmp_path: Path, monkeypatch):
    spoiled(monkeypatch, one_of_the_rest)
    with pytest.raises(ContractError, match=r"Output 'best' of"):
        export(tmp_path / "net", "onnx", "fp32")


@pytest.mark.parametrize(("target", "precision"), ROUNDED)
def test_what_no_float_leads_to_is_exact(tmp_path: Path, monkeypatch, target: str, precision: str):
    def one(outputs):
        wrong = outputs["seven"].copy()
        wrong.flat[0] ^= True
        return wrong

    spoiled(monkeypatch, one, output="seven")
    with pytest.raises(ContractError, match=r"Output 'seven' of"):
        export(tmp_path / "net", target, precision)


def test_a_golden_pair_that_is_all_wrong_does_not_verify(tmp_path: Path):
    path = export(tmp_path / "net", "onnx", "int8")
    file = Artifact(path).programs["forward"].golden
    assert file is not None
    arrays = Artifact(path).arrays(file)
    count = arrays["output/best"].size

    def passed(wrong: int) -> bool:
        best = arrays["output/best"].copy()
        best.flat[:wrong] += 1
        np.savez(path / file, **{**arrays, "output/best": best})  # type: ignore[arg-type]
        reseal(path)
        with omnigraph.load(path) as session:
            return all(check.passed for check in session.verify())

    assert passed(1)
    assert not passed(count)
    fields = json.loads((path / MANIFEST).read_text())["programs"]
    # Whatever the manifest says, more than half are never right.
    fields["forward"]["tolerance"]["most_wrong"]["best"] = 10**6
    reseal(path, programs=fields)
    assert not passed(count)


@pytest.mark.parametrize("counts", [{"best": -1}, {"best": 0.5}, {"logits": 1}, {"other": 1}])
def test_a_manifest_with_a_count_for_no_integers_is_refused(tmp_path: Path, counts):
    path = export(tmp_path / "net", "onnx", "fp32")
    fields = json.loads((path / MANIFEST).read_text())["programs"]
    fields["forward"]["tolerance"]["most_wrong"] = counts
    reseal(path, programs=fields)
    with pytest.raises(ArtifactError, match="most_wrong"):
        omnigraph.load(path)


GRAPHS = {
    "g (float[N] x) => (int64 y) { y = ArgMax<keepdims = 0>(x) }": {"y"},
    "g (float[N] x, int64[N] i) => (bool[N] y, int64[N] z) { y = Less(x, x) z = Add(i, i) }": {"y"},
    "g (int64[N] i) => (bool[N] y) { t = Constant<value_int = 7>() y = Equal(i, t) }": set(),
    "g (float[N] x) => (int64[1] y) { y = Shape(x) }": set(),
    "g (float[N] x) => (float[N] y, int8[N] c) { y = Relu(x) c = Cast<to = 3>(x) }": set(),
    """g (float[N] x, bool b, int64 i) => (int64 y) {
        y = If(b) <then_branch = t () => (int64 p) { p = ArgMax<keepdims = 0>(x) },
                   else_branch = e () => (int64 q) { q = Identity(i) }> }""": {"y"},
}


@pytest.mark.parametrize("text", GRAPHS)
def test_what_floats_lead_to_is_found(text: str):
    assert chosen_by_floats(graph_with_weights(text)) == GRAPHS[text]


def seen_at_most(count: int, mean: float) -> float:
    """The probability that a draw of Poisson's distribution is ``count`` at most."""
    return math.fsum(
        math.exp(k * math.log(mean) - mean - math.lgamma(k + 1)) for k in range(count + 1)
    )


def mean_seen_so_rarely(count: int, probability: float) -> float:
    """The mean at which a draw is ``count`` at most so rarely, by halving."""
    low, high = 1e-9, 3 * count + 30.0
    for _ in range(60):
        middle = (low + high) / 2
        if seen_at_most(count, middle) > probability:
            low = middle
        else:
            high = middle
    return high


@pytest.mark.parametrize("flips", [0, 1, 4, 25, 400])
def test_few_draws_are_beyond_the_bound(flips: int):
    most = most_wrong(flips, 10**9)
    # A mean at which so few flips are seen once in 20 times gives more once in 200 times at most.
    mean = mean_seen_so_rarely(flips, 0.05)
    assert 1 - seen_at_most(most, mean) < 0.005
    assert most < 2 * flips + 20


def test_half_may_be_wrong_at_most():
    assert [most_wrong(0, count) for count in (1, 2, 3, 10, 100)] == [1, 1, 2, 5, 8]
    assert most_wrong(90, 100) == 50
    assert wrong_elements(np.zeros(3, int), np.zeros(4, int)) == 4
