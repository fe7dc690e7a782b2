"""Decoders of many kinds generate as in transformers, on each target that runs on CPUs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from hugging_face_folders import FOLDERS, save

import omnigraph

#: phi3-longrope reads its whole text anew where that outgrows a length, which no cache here does;
#: mamba has no keys and values.
_OTHERS = {"phi3-longrope", "mamba"}
DECODERS = [
    name
    for name, (kind, _, _) in FOLDERS.items()
    if ("CausalLM" in kind or "LMHead" in kind) and name not in _OTHERS
]
#: Those whose positions are the columns of the tokens, or depend on how long a text is.
APART = {"gpt2", "gpt-neo", "gpt-bigcode", "llama-dynamic"}


@pytest.mark.slow
@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_generates_as_in_transformers(name: str, tmp_path, prompts, mask):
    save(name, tmp_path / "net")
    reports = omnigraph.export(
        tmp_path / "net", ["onnx", "openvino"], programs=["decode"], out=tmp_path / "out"
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "net").eval()
    padded = np.where(mask == 1, prompts, 3)
    for fields in ({}, {"num_beams": 3, "early_stopping": True}):
        fields = {**fields, "max_new_tokens": 20, "pad_token_id": 3, "eos_token_id": [2, 17]}
        with torch.no_grad():
            wanted = [
                model.generate(torch.tensor(prompts), **fields).numpy(),
                model.generate(
                    torch.tensor(padded), attention_mask=torch.tensor(mask), **fields
                ).numpy(),
            ]
        for report in reports:
            with omnigraph.load(report.path, threads=1) as net:
                facts = net.artifact.manifest["generation"]
                assert facts.get("pads_left", False) == (name not in APART)
                np.testing.assert_array_equal(net.generate(prompts, **fields).ids, wanted[0])
                found = net.generate(padded, mask, **fields).ids
                np.testing.assert_array_equal(found, wanted[1])
