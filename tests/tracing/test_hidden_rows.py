"""A row that is hidden wholly: 0 where torch gives 0 or NaN, also in weights that are an output."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import omnigraph
from omnigraph.frontends.resolve import resolve
from omnigraph.tracing.hidden_rows import hidden_row

HEADS, WIDTH = 2, 16
HIDDEN = {"infinity": float("-inf"), "lowest": torch.finfo(torch.float32).min}


class Attention(nn.Module):
    """Attention written out, whose weights are an output too."""

    def __init__(self, hidden: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, WIDTH)
        self.projections = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.hidden = hidden

    def forward(self, input_ids, attention_mask):
        x = self.embedding(input_ids)
        query, key, value = (
            layer(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for layer in self.projections[:3]
        )
        scores = query @ key.transpose(-1, -2) / (WIDTH // HEADS) ** 0.5
        scores = scores.masked_fill(attention_mask[:, None, None] == 0, self.hidden)
        weights = scores.softmax(-1)
        mixed = (weights @ value).transpose(1, 2).flatten(2)
        return {"y": self.projections[3](mixed), "weights": weights}


class Fused(Attention):
    """The same by torch's fused attention."""

    def forward(self, input_ids, attention_mask):
        x = self.embedding(input_ids)
        query, key, value = (
            layer(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for layer in self.projections[:3]
        )
        shown = (attention_mask != 0)[:, None, None]
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, shown)
        return {"y": self.projections[3](mixed.transpose(1, 2).flatten(2))}


class Mean(nn.Module):
    """A mean over the tokens that are shown: 0/0 without any."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, WIDTH)

    def forward(self, input_ids, attention_mask):
        shown = attention_mask[..., None].float()
        return (self.embedding(input_ids) * shown).sum(1) / shown.sum(1)


def inputs() -> dict[str, torch.Tensor]:
    return {
        "input_ids": torch.arange(14).reshape(2, 7),
        "attention_mask": torch.ones(2, 7, dtype=torch.int64),
    }


MODULES = {
    "infinity": lambda: Attention(HIDDEN["infinity"]),
    "lowest": lambda: Attention(HIDDEN["lowest"]),
    "fused": lambda: Fused(0.0),
}


@pytest.mark.parametrize("target", ["onnx", "openvino"])
@pytest.mark.parametrize("kind", MODULES)
def test_a_hidden_row_is_in_the_contract_and_gives_numbers(kind: str, target: str, tmp_path: Path):
    torch.manual_seed(0)
    module = MODULES[kind]().eval()
    (report,) = omnigraph.export(module, target, inputs=inputs(), out=tmp_path / "net")
    assert report.checks
    feeds = {name: tensor.numpy().copy() for name, tensor in inputs().items()}
    feeds["attention_mask"][-1] = 0
    with omnigraph.load(tmp_path / "net") as session:
        found = session.run(feeds)
    with torch.no_grad():
        expected = module(**{name: torch.from_numpy(array) for name, array in feeds.items()})
    np.testing.assert_allclose(found["y"][0], expected["y"][0], rtol=1e-4, atol=1e-5)
    if kind == "infinity":
        assert expected["y"][1].isnan().all() and (found["weights"][1] == 0).all()
        bias = module.projections[3].bias.detach().numpy()
        np.testing.assert_allclose(found["y"][1], np.broadcast_to(bias, (7, WIDTH)), rtol=1e-5)
    else:
        np.testing.assert_allclose(found["y"][1], expected["y"][1], rtol=1e-4, atol=1e-5)


def test_a_module_that_divides_by_the_number_of_tokens_has_no_such_row():
    source = resolve(Mean().eval(), inputs=inputs())
    assert hidden_row(source.programs[0], seed=0) is None
