"""`GenerationConfig`: names and defaults of transformers, what is ignored, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from transformers import GenerationConfig as TheirConfig

from omnigraph.errors import UnsupportedError, UsageError
from omnigraph.runtimes.generation.config import GenerationConfig

#: Ours alone.
OWN = {"presence_penalty", "frequency_penalty", "ignored"}


def names() -> set[str]:
    return {field.name for field in dataclasses.fields(GenerationConfig)}


def test_the_names_are_those_of_transformers():
    assert names() - OWN <= set(TheirConfig().to_dict()) | {"forced_bos_token_id"}


def test_the_defaults_are_those_of_transformers():
    defaults = TheirConfig._get_default_generation_params()
    ours = GenerationConfig()
    for name in names() & defaults.keys() - {"max_length"}:  # the default means 20 new tokens
        assert getattr(ours, name) == defaults[name], name


def test_what_transformers_writes_is_read(tmp_path):
    TheirConfig(
        do_sample=True,
        temperature=0.6,
        top_p=0.9,
        eos_token_id=[1, 2],
        pad_token_id=0,
        bad_words_ids=[[3], [4, 5]],
        stop_strings="end",
        sequence_bias=[[[1, 2], 0.5]],
    ).save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "generation_config.json").read_text())
    config = GenerationConfig.from_dict(fields)
    assert config == GenerationConfig(
        do_sample=True,
        temperature=0.6,
        top_p=0.9,
        eos_token_id=(1, 2),
        pad_token_id=0,
        bad_words_ids=((3,), (4, 5)),
        stop_strings=("end",),
        sequence_bias=(((1, 2), 0.5),),
        ignored=config.ignored,
    )
    assert GenerationConfig.from_dict(config.to_dict()) == dataclasses.replace(config, ignored=())


def test_unknown_fields_are_named_and_a_null_is_the_default():
    config = GenerationConfig.from_dict({"top_k": None, "dreams": 3, "use_cache": True})
    assert config.top_k == 50
    assert config.ignored == ("dreams", "use_cache")


@pytest.mark.parametrize(
    "fields",
    [
        {"guidance_scale": 1.5},
        {"watermarking_config": {"bias": 2.0}},
        {"num_beam_groups": 2},
        {"penalty_alpha": 0.6},
        {"force_words_ids": [[1]]},
    ],
)
def test_what_would_change_the_tokens_is_refused(fields: dict[str, Any]):
    with pytest.raises(UnsupportedError, match=next(iter(fields))):
        GenerationConfig.from_dict(fields)


def test_the_same_fields_are_taken_where_they_change_nothing():
    harmless = {"guidance_scale": 1.0, "num_beam_groups": 1, "token_healing": False}
    assert GenerationConfig.from_dict(harmless) == GenerationConfig()


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 0.0},
        {"temperature": "hot"},
        {"top_p": 1.5},
        {"top_k": -1},
        {"num_beams": 0},
        {"max_new_tokens": 0},
        {"early_stopping": "soon"},
        {"do_sample": "yes"},
        {"eos_token_id": [1, "2"]},
        {"bad_words_ids": [[]]},
        {"stop_strings": [""]},
        {"repetition_penalty": float("nan")},
        {"num_return_sequences": 2},
        {"num_return_sequences": 4, "num_beams": 3, "do_sample": True},
    ],
)
def test_a_value_that_cannot_be_is_refused_with_a_hint(fields: dict[str, Any]):
    with pytest.raises(UsageError, match="hint: "):
        GenerationConfig.from_dict(fields)


def test_a_parameter_that_there_is_not_is_refused_with_the_name_that_was_meant():
    with pytest.raises(UsageError, match="did you mean 'temperature'"):
        GenerationConfig().updated({"temprature": 0.5}, strict=True)


def test_negative_special_ids_are_none():
    config = GenerationConfig.from_dict({"pad_token_id": -1, "eos_token_id": -1})
    assert (config.pad_token_id, config.eos_token_id, config.pad) == (None, None, 0)


def test_rows_that_are_finished_are_filled_with_the_pad_or_the_end():
    assert GenerationConfig(eos_token_id=7).pad == 7
    assert GenerationConfig(eos_token_id=7, pad_token_id=0).pad == 0
