"""Generation by a decoder with an encoder, beside transformers' own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hugging_face_folders import save

import omnigraph
from omnigraph.errors import InputError, UnsupportedError, UsageError

#: Two sources, the second with padding after its tokens.
SOURCE = np.random.default_rng(3).integers(4, 60, (2, 7))
MASK = np.ones((2, 7), np.int64)
MASK[1, 4:] = 0


@pytest.fixture(scope="module", params=["t5", pytest.param("bart", marks=pytest.mark.slow)])
def pair(request, tmp_path_factory) -> Iterator[tuple[Any, Any]]:
    """A model, and a session of its artifact."""
    folder = tmp_path_factory.mktemp("seq2seq") / request.param
    save(request.param, folder)
    (report,) = omnigraph.export(
        folder, "onnx", programs=["encode", "decode"], out=folder.with_suffix(".omni")
    )
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    with omnigraph.load(report.path, threads=1) as session:
        yield model, session


@pytest.mark.parametrize(
    "fields",
    [
        {"do_sample": False},
        {"num_beams": 3},
        {"num_beams": 4, "num_return_sequences": 2, "length_penalty": 0.5, "early_stopping": True},
        {"encoder_no_repeat_ngram_size": 2, "encoder_repetition_penalty": 1.7},
        {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2, "min_new_tokens": 5},
        {"forced_bos_token_id": 9, "begin_suppress_tokens": [7], "max_length": 6},
    ],
    ids=lambda fields: ",".join(fields),
)
def test_the_tokens_are_those_of_transformers(pair: tuple[Any, Any], fields: dict[str, Any]):
    model, session = pair
    given = {"max_new_tokens": 10, **fields} if "max_length" not in fields else fields
    with torch.no_grad():
        wanted = model.generate(
            torch.tensor(SOURCE), attention_mask=torch.tensor(MASK), **given
        ).numpy()
    found = session.generate(SOURCE, MASK, **given).ids
    np.testing.assert_array_equal(found, wanted)


def test_a_prompt_of_the_decoder_a_stream_and_a_batch_of_one(pair: tuple[Any, Any]):
    model, session = pair
    begun = np.array([[0, 11, 12], [0, 13, 14]])
    with torch.no_grad():
        wanted = model.generate(
            torch.tensor(SOURCE),
            attention_mask=torch.tensor(MASK),
            decoder_input_ids=torch.tensor(begun),
            max_new_tokens=5,
        ).numpy()
    found = session.generate(SOURCE, MASK, decoder_input_ids=begun, max_new_tokens=5)
    np.testing.assert_array_equal(found.ids, wanted)
    alone = session.generate(
        SOURCE[1, :4], decoder_input_ids=begun[1], max_new_tokens=5, stream=True
    )
    assert [token.id for token in alone] == found.new[1][: found.lengths[1]].tolist()


def test_what_cannot_be_read_is_said(pair: tuple[Any, Any]):
    _, session = pair
    with pytest.raises(InputError, match="The source is not what program 'encode' reads"):
        session.generate(np.ones((1, 2, 3)))
    with pytest.raises(InputError, match="not one prompt for each source"):
        session.generate(SOURCE, decoder_input_ids=np.zeros((3, 1), np.int64))


@pytest.mark.slow
def test_a_start_is_needed_and_an_encoder(tmp_path: Path):
    settings = {"kind": "encoder-decoder"}
    (report,) = omnigraph.export(
        "omninet", "onnx", config="tiny", settings=settings, out=tmp_path / "both"
    )
    with omnigraph.load(report.path, threads=1) as session:
        with pytest.raises(UsageError, match="needs a first token"):
            session.generate([[5, 6, 7]])
        found = session.generate([[5, 6, 7], [8, 9, 4]], decoder_start_token_id=1, max_new_tokens=4)
        alone = session.generate([[8, 9, 4]], decoder_start_token_id=1, max_new_tokens=4)
        assert found.ids.shape == (2, 5)
        np.testing.assert_array_equal(found.ids[1:], alone.ids)
    (report,) = omnigraph.export(
        "omninet",
        "onnx",
        config="tiny",
        settings=settings,
        programs=["decode"],
        out=tmp_path / "half",
    )
    with (
        omnigraph.load(report.path, threads=1) as session,
        pytest.raises(UnsupportedError, match="cannot generate by itself"),
    ):
        session.generate([[5, 6, 7]], decoder_start_token_id=1)
