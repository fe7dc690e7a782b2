"""What lies beside a model for generating text, and what an export makes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hugging_face_folders import save

import omnigraph
from omnigraph.errors import UnsupportedError, UsageError
from omnigraph.frontends.hugging_face import model_from_folder
from omnigraph.frontends.left_padding import ignores_left_padding
from omnigraph.frontends.resolve import resolve
from omnigraph.frontends.text_files import TextFiles, text_files
from omnigraph.models import OmniNet, OmniNetConfig
from omnigraph.models.programs import programs


def write(folder: Path, name: str, fields: Any) -> None:
    (folder / name).write_text(json.dumps(fields))


def test_the_defaults_are_those_of_the_folder(tmp_path):
    write(
        tmp_path,
        "generation_config.json",
        {"_from_model_config": True, "transformers_version": "5", "top_k": 7, "top_p": None},
    )
    write(
        tmp_path,
        "config.json",
        {"eos_token_id": [2, 3], "text_config": {"pad_token_id": 0, "eos_token_id": 9}},
    )
    assert text_files(tmp_path).defaults == {"top_k": 7, "eos_token_id": [2, 3], "pad_token_id": 0}


def test_a_folder_may_have_neither(tmp_path):
    assert text_files(tmp_path) == TextFiles()
    assert TextFiles().manifest() == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [("[1]", "object of JSON"), ("{", "cannot be read"), ('{"top_p": Infinity}', "not finite")],
)
def test_a_file_that_no_artifact_can_hold_is_refused(tmp_path, text: str, message: str):
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(UsageError, match=message):
        text_files(tmp_path)


@pytest.mark.parametrize(
    ("name", "ignores"), [("gpt2", False), ("llama", True), ("llama-dynamic", False)]
)
def test_padding_moves_the_tokens_of_learned_positions(tmp_path, name: str, ignores: bool):
    save(name, tmp_path)
    found = {p.name: ignores_left_padding(p) for p in model_from_folder(tmp_path).programs}
    assert found == {"forward": False, "decode": ignores}


@pytest.mark.parametrize("positions", ["absolute", "sinusoidal", "rotary", "alibi", "relative"])
def test_padding_moves_no_token_of_omninet(positions: str):
    config = OmniNetConfig.named("tiny", kind="decoder", positions=positions)
    model = OmniNet.from_seed(config, trained_like=True).eval()
    assert {p.name: ignores_left_padding(p) for p in programs(model)}["decode"]


def test_an_artifact_generates_as_its_folder_says(tmp_path):
    folder = tmp_path / "net"
    save("llama", folder)
    fields = json.loads((folder / "generation_config.json").read_text())
    fields |= {"max_new_tokens": 4, "eos_token_id": 60, "bad_words_ids": [[7]], "unknown": 1}
    write(folder, "generation_config.json", fields)
    out = tmp_path / "net.omni"
    omnigraph.export(folder, "onnx", programs=["decode"], out=out)
    with omnigraph.load(out) as net:
        config = net.generation_config
        assert (config.max_new_tokens, config.eos_token_id, config.pad) == (4, (60,), 0)
        assert config.bad_words_ids == ((7,),) and "unknown" in config.ignored
        assert net.artifact.manifest["generation"]["pads_left"] is True
        assert net.generate([5, 6]).ids.shape == (1, 6)
        assert net.generate([5, 6], max_new_tokens=2).ids.shape == (1, 4)


def test_a_model_that_does_not_generate_has_no_defaults(tmp_path):
    save("bert", tmp_path)
    assert text_files(tmp_path).defaults
    assert resolve(tmp_path).text == TextFiles()


def test_what_a_folder_asks_for_and_is_not_made_is_said_when_it_generates(tmp_path):
    folder = tmp_path / "net"
    save("llama", folder)
    write(folder, "generation_config.json", {"guidance_scale": 2.0})
    omnigraph.export(folder, "onnx", programs=["decode"], out=tmp_path / "net.omni")
    with omnigraph.load(tmp_path / "net.omni") as net:
        assert net.run(input_ids=np.array([[1]]))["logits"].shape == (1, 1, 61)
        with pytest.raises(UnsupportedError, match="guidance_scale"):
            net.generate([5, 6])
        assert len(net.generate([5, 6], guidance_scale=1.0)) == 1
