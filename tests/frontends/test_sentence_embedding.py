"""The embedding of a sentence, by the stages that a folder of sentence-transformers lists."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hugging_face_folders import save
from safetensors.torch import save_file

import omnigraph
from omnigraph.frontends.resolve import resolve
from omnigraph.frontends.sentence_embedding import UnknownStage, sentence_embedding

TOKENS = torch.tensor([[[1.0, -2.0], [3.0, 4.0], [5.0, 0.0]], [[2.0, 1.0], [6.0, 3.0], [0.0, 9.0]]])
#: All of the first sentence, and the last two tokens but one of the second, padded on both sides.
MASK = torch.tensor([[1, 1, 1], [0, 1, 0]])
#: By mode, the embeddings of both sentences, computed by hand.
POOLED = {
    "cls": [[1, -2], [6, 3]],
    "max": [[5, 4], [6, 3]],
    "mean": [[3, 2 / 3], [6, 3]],
    "mean_sqrt_len_tokens": [[9 / 3**0.5, 2 / 3**0.5], [6, 3]],
    "weightedmean": [[22 / 6, 1], [6, 3]],
    "lasttoken": [[5, 0], [6, 3]],
}

Stage = tuple[str, Mapping[str, Any]]


def write(folder: Path, *stages: Stage) -> Path:
    """The modules.json of stages after the model, each with its configuration."""
    folder.mkdir(exist_ok=True)
    entries = [{"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"}]
    for index, (kind, fields) in enumerate(stages, 1):
        path = folder / f"{index}_{kind}"
        path.mkdir()
        if fields:
            (path / "config.json").write_text(json.dumps(fields))
        kind = f"sentence_transformers.models.{kind}"
        entries.append({"idx": index, "path": path.name, "type": kind})
    (folder / "modules.json").write_text(json.dumps(entries))
    return folder


def embed(folder: Path) -> torch.Tensor:
    module = sentence_embedding(folder)
    assert module is not None
    with torch.no_grad():
        return module(TOKENS, MASK)


@pytest.mark.parametrize(("mode", "expected"), POOLED.items())
def test_each_mode_pools_what_the_mask_shows(
    tmp_path: Path, mode: str, expected: Sequence[Sequence[float]]
):
    found = embed(write(tmp_path, ("Pooling", {"pooling_mode": mode})))
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float32))


def test_older_fields_switch_modes_on_and_their_vectors_stand_side_by_side(tmp_path: Path):
    fields = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}
    found = embed(write(tmp_path, ("Pooling", {**fields, "pooling_mode_max_tokens": False})))
    assert found[0].tolist() == pytest.approx([1, -2, 3, 2 / 3])


def test_dense_and_normalize_follow(tmp_path: Path):
    dense = {
        "in_features": 2,
        "out_features": 1,
        "bias": True,
        "activation_function": "torch.nn.modules.activation.Tanh",
    }
    stages = ("Pooling", {"pooling_mode": "mean"}), ("Dense", dense)
    folder = write(tmp_path / "dense", *stages)
    weights = {"linear.weight": torch.tensor([[0.1, 0.3]]), "linear.bias": torch.tensor([0.2])}
    save_file(weights, folder / "2_Dense" / "model.safetensors")
    assert embed(folder)[0].tolist() == pytest.approx([np.tanh(0.7)])
    normalized = embed(write(tmp_path / "unit", stages[0], ("Normalize", {})))
    torch.testing.assert_close(normalized.norm(dim=-1), torch.ones(2))


@pytest.mark.parametrize(
    ("stages", "why"),
    [
        ([("Pooling", {"pooling_mode": "middle"})], "is middle"),
        ([("Pooling", {"include_prompt": False})], "the prompt"),
        ([("WordWeights", {})], "not Transformer and Pooling"),
        ([("Pooling", {}), ("LSTM", {})], "LSTM is not known"),
        ([("Pooling", {}), ("Dense", {"use_residual": True})], "a residual"),
        ([("Pooling", {}), ("Normalize", {"module_input_name": "token_embeddings"})], "of other"),
    ],
)
def test_a_stage_that_is_not_known_has_a_reason(tmp_path: Path, stages: Sequence[Stage], why: str):
    with pytest.raises(UnknownStage, match=why):
        sentence_embedding(write(tmp_path, *stages))


def test_a_folder_without_stages_has_none(tmp_path: Path):
    assert sentence_embedding(tmp_path) is None


def test_a_folder_of_sentence_transformers_gives_embeddings(tmp_path: Path):
    folder = tmp_path / "bert"
    save("bert", folder)
    write(folder, ("Pooling", {"pooling_mode": "mean"}), ("Normalize", {}))
    (report,) = omnigraph.export(folder, "onnx", out=tmp_path / "net.omni")
    ids = np.array([[5, 6, 7, 8], [9, 10, 0, 0]])
    mask = (ids > 0).astype(np.int64)
    with omnigraph.load(report.path) as net:
        found = net.run(input_ids=ids, attention_mask=mask)
    total = (found["last_hidden_state"] * mask[..., None]).sum(1)
    expected = total / np.linalg.norm(total, axis=-1, keepdims=True)
    np.testing.assert_allclose(found["sentence_embedding"], expected, atol=1e-6)


def test_a_stage_that_is_not_known_leaves_the_vectors_of_tokens(tmp_path: Path):
    save("bert", tmp_path)
    write(tmp_path, ("Pooling", {"include_prompt": False}))
    source = resolve(tmp_path)
    assert "sentence_embedding" not in source.programs[0].outputs
    assert "prompt" in source.not_made["forward with sentence_embedding"]
    (tmp_path / "modules.json").write_text('[{"idx": 0}]')
    assert "are damaged" in resolve(tmp_path).not_made["forward with sentence_embedding"]
