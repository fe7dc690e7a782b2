"""The greedy tokens of whole exports: counted on the target, and said everywhere."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from token_samples import CPU, TINY, TOKENS, data, other_data

import omnigraph
from omnigraph.cli.main import main
from omnigraph.inspection.inspect import inspect
from omnigraph.quantization.options import Quantization


def torch_s_tokens(ids: np.ndarray) -> np.ndarray:
    import torch

    from omnigraph.frontends.resolve import resolve

    source = resolve("omninet", config="tiny", settings=TINY["settings"])
    module = next(p.module for p in source.programs if p.name == "forward")
    with torch.no_grad():
        result = module(
            input_ids=torch.from_numpy(ids), attention_mask=torch.ones_like(torch.from_numpy(ids))
        )
    logits = result[0] if isinstance(result, tuple | list) else result
    return logits.argmax(-1).numpy()


@pytest.mark.parametrize("target", CPU)
def test_the_report_says_how_many_tokens_of_the_evaluation_set_are_torch_s(
    tmp_path: Path, target: str
):
    (report,) = omnigraph.export(
        "omninet",
        target,
        precision="int4-weights",
        quantization=Quantization(calibration=data, evaluation=other_data),
        out=tmp_path / "a.omni",
        **TINY,
    )
    (found,) = report.greedy_tokens
    assert found.source == "other_data" and found.measured_on == f"target {target}"
    assert found.total == TOKENS.size
    ids = np.roll(TOKENS, 3, axis=1)
    with omnigraph.load(report.path, verify=True) as session:
        given = np.concatenate(
            [session.run(input_ids=row[None])["logits"].argmax(-1) for row in ids]
        )
    expected = np.concatenate([torch_s_tokens(row[None]) for row in ids])
    assert found.same == (given == expected).sum() < found.total
    assert report.to_dict()["greedy_tokens"] == [found.to_dict()]
    assert inspect(report.path)["quantization"]["greedy_tokens"] == [found.to_dict()]


def test_without_data_the_command_says_that_the_text_is_random(tmp_path: Path, capsys):
    arguments = ["export", "omninet", "--config", "tiny", "--set", "kind=decoder", "--target"]
    arguments += ["onnx", "--precision", "int8-weights", "--out", str(tmp_path / "a.omni")]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    for program in ("forward", "decode"):
        assert f"greedy tokens of {program}: " in said
    assert "on random token ids, run by target onnx" in said
    assert main([*arguments, "--json"]) == 0
    (artifact,) = json.loads(capsys.readouterr().out)["artifacts"]
    assert [row["program"] for row in artifact["greedy_tokens"]] == ["forward", "decode"]


def test_floats_are_counted_on_the_contract_s_inputs(tmp_path: Path):
    reports = omnigraph.export("omninet", CPU, precision="fp16", out=tmp_path, **TINY)
    for report in reports:
        (found,) = report.greedy_tokens
        assert found.source == "the contract's inputs, with random token ids"
        assert found.total > 100 and found.same / found.total > 0.97
        assert "quantization" not in inspect(report.path)


def test_the_last_token_and_caches_in_int8(tmp_path: Path):
    settings = {"config": "tiny", "settings": {"kind": "decoder"}}
    (report,) = omnigraph.export(
        "omninet",
        "onnx",
        precision="int8",
        calibration=data,
        last=["logits"],
        kv_cache="int8",
        out=tmp_path / "a.omni",
        **settings,
    )
    assert [found.program for found in report.greedy_tokens] == ["forward", "decode"]
    assert all(found.total == len(TOKENS) for found in report.greedy_tokens)
    assert report.greedy_tokens[0].source == "data"


def test_what_is_no_language_model_has_none(tmp_path: Path):
    (report,) = omnigraph.export(
        "omninet",
        "onnx",
        config="tiny",
        programs=["encode"],
        out=tmp_path / "a.omni",
        settings={"kind": "encoder"},
    )
    assert not report.greedy_tokens and report.to_dict()["greedy_tokens"] == []


def test_long_data_are_cut_to_what_torch_computes_quickly(tmp_path: Path):
    long = np.random.default_rng(1).integers(0, 200, (4, 3, 300))
    (report,) = omnigraph.export(
        "omninet",
        "onnx",
        precision="int8",
        calibration=[{"input_ids": ids} for ids in long],
        out=tmp_path / "a.omni",
        **{**TINY, "settings": {"kind": "decoder", "positions": "alibi"}},
    )
    assert report.greedy_tokens[0].total == 4 * 300
