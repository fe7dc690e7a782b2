"""Input sets with token ids of DATA begin as the samples do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import omnigraph
from omnigraph.input_sets import contract_cases
from omnigraph.program import Case
from omnigraph.quantization.data import open_data
from omnigraph.quantization.options import Quantization
from omnigraph.quantization.real_inputs import with_real_inputs

FIRST = 1


def texts() -> Iterator[dict[str, np.ndarray]]:
    """Texts of seven tokens that begin with the same, and count up."""
    yield from ({"input_ids": np.array([[FIRST, *range(k, k + 6)]])} for k in (10, 20, 30, 40))


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_the_first_position_that_a_mask_shows_begins_a_text(traced, kind: str):
    (program,) = with_real_inputs((traced("forward", kind=kind).program,), open_data(texts))
    seen = []
    for case in contract_cases(program):
        inputs = program.make_inputs(case)
        shown = np.asarray(inputs["attention_mask"]) != 0
        for ids, mask in zip(np.asarray(inputs["input_ids"]), shown, strict=True):
            first = int(np.argmax(mask))
            assert ids[first] == FIRST
            np.testing.assert_array_equal(np.diff(ids[first : first + 7])[1:], 1)
            seen.append((first, int(ids[(first + 1) % len(ids)])))
    assert len({first for first, _ in seen}) > 1  # some are padded on the left
    assert len({second for _, second in seen}) > 2  # rows have texts of their own


def test_what_follows_a_past_goes_on_behind_it(traced):
    source = traced("decode", kind="decoder").program
    (program,) = with_real_inputs((source,), open_data(texts))
    sizes = {"batch": 2, "sequence": 3, "past": 4}
    after = np.asarray(program.make_inputs(Case("any", sizes, seed=3))["input_ids"])
    whole = {**sizes, "sequence": 7, "past": 0}
    before = np.asarray(program.make_inputs(Case("any", whole, seed=103))["input_ids"])
    np.testing.assert_array_equal(after, before[:, 4:])


class Scaled(torch.nn.Module):
    """A layer on features whose channels are of unlike size."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(32, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def test_numbers_are_those_of_the_data_so_that_ranges_fit(tmp_path: Path):
    draw = np.random.default_rng(0)
    sizes = np.exp(2 * draw.normal(size=32))
    data = [{"x": (sizes * draw.normal(size=(1, 6, 32))).astype(np.float32)} for _ in range(40)]
    (report,) = omnigraph.export(
        Scaled().eval(),
        "onnx",
        precision="int8",
        inputs={"x": torch.randn(2, 5, 32)},
        quantization=Quantization(calibration=lambda: iter(data)),
        out=tmp_path / "net",
    )
    assert report.path.exists()
