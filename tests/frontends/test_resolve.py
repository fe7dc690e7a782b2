"""What a name of a model may be: folders of Hugging Face and of OmniNet, and what is none."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import omnigraph
from omnigraph.errors import UsageError
from omnigraph.frontends.resolve import resolve
from omnigraph.inspection.inspect import inspect
from omnigraph.program import Dim


def test_a_file_that_is_no_model_and_one_that_is_not_there(tmp_path: Path):
    for name in ("net.onnx", "net.pt2"):
        with pytest.raises(UsageError, match=f"There is no file .*{name}"):
            resolve(str(tmp_path / name))
        (tmp_path / name).write_bytes(b"not a model at all")
        with pytest.raises(UsageError, match="that can be read"):
            resolve(str(tmp_path / name))
    with pytest.raises(UsageError, match="has no settings"):
        resolve(str(tmp_path / "net.onnx"), settings={"a": "1"})
    with pytest.raises(UsageError, match="expected a folder with a config"):
        resolve(tmp_path)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Random tiny models as save_pretrained writes them."""
    import transformers as hf

    torch.manual_seed(0)
    small = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "vocab_size": 50,
    }
    models = {
        "bert": hf.BertForSequenceClassification(
            hf.BertConfig(**small, max_position_embeddings=70)
        ),
        "llama": hf.LlamaForCausalLM(hf.LlamaConfig(**small, num_key_value_heads=1)),
        "gpt2": hf.GPT2LMHeadModel(
            hf.GPT2Config(
                n_embd=16, n_layer=2, n_head=2, vocab_size=50, n_positions=70,
                bos_token_id=1, eos_token_id=2,
            )
        ),
        "bart": hf.BartForConditionalGeneration(
            hf.BartConfig(
                vocab_size=50, d_model=16, encoder_layers=1, decoder_layers=1,
                encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32,
                decoder_ffn_dim=32, max_position_embeddings=70,
            )
        ),
        "t5": hf.T5ForConditionalGeneration(
            hf.T5Config(d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, vocab_size=50)
        ),
        "vit": hf.ViTForImageClassification(
            hf.ViTConfig(
                hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
                image_size=16, patch_size=8,
            )
        ),
    }  # fmt: skip
    root = tmp_path_factory.mktemp("folders")
    for name, model in models.items():
        model.eval().save_pretrained(root / name)
    return {name: root / name for name in models}


@pytest.mark.parametrize(
    ("name", "inputs", "outputs"),
    [
        ("bert", {"input_ids", "attention_mask", "token_type_ids"}, {"logits"}),
        ("vit", {"pixel_values"}, {"logits"}),
        *(
            pytest.param(
                name,
                {"input_ids", "attention_mask", "decoder_input_ids", "decoder_attention_mask"},
                {"logits"},
                marks=pytest.mark.slow,
            )
            for name in ("bart", "t5")  # T5 hides with the lowest number, whole rows of padding too
        ),
    ],
)
def test_a_folder_gives_its_model_with_its_head(
    tmp_path: Path, folders, name: str, inputs: set[str], outputs: set[str]
):
    reports = omnigraph.export(folders[name], "onnx,openvino", out=tmp_path)
    for report in reports:
        (program,) = inspect(report.path)["programs"].values()
        assert {spec["name"] for spec in program["inputs"]} == inputs
        assert {spec["name"] for spec in program["outputs"]} == outputs


@pytest.mark.parametrize("name", ["gpt2", pytest.param("llama", marks=pytest.mark.slow)])
def test_a_causal_model_decodes_as_it_runs_at_once(tmp_path: Path, folders, name: str):
    (report,) = omnigraph.export(folders[name], "onnx", out=tmp_path / "net.omni")
    ids = np.array([[4, 8, 15, 16, 23, 42]])
    with omnigraph.load(report.path) as net:
        whole = net.run(input_ids=ids, program="forward")["logits"]
        first = net.run(input_ids=ids[:, :4], program="decode")
        past = {k.replace("present", "past"): v for k, v in first.items() if k != "logits"}
        then = net.run({"input_ids": ids[:, 4:], **past}, program="decode")
    np.testing.assert_allclose(first["logits"], whole[:, :4], atol=1e-5)
    np.testing.assert_allclose(then["logits"], whole[:, 4:], atol=1e-5)


def test_learned_positions_bound_the_lengths(folders):
    bert = resolve(folders["bert"]).programs[0]
    assert bert.dims["sequence"] == Dim(1, 70)
    assert resolve(folders["bert"]).config["architectures"] == ["BertForSequenceClassification"]
    forward, decode = resolve(folders["gpt2"]).programs
    assert (forward.dims["sequence"], decode.dims["past"]) == (Dim(1, 70), Dim(0, 69))
    assert decode.dims["past + sequence"] == Dim(1, 70)


def test_a_folder_whose_model_is_not_all_there_is_refused(tmp_path: Path, folders):
    from safetensors.numpy import load_file, save_file

    with pytest.raises(UsageError, match="has no setting 'layers'"):
        resolve(folders["bert"], settings={"layers": "1"})
    copy = Path(shutil.copytree(folders["bert"], tmp_path / "copy"))
    weights = load_file(copy / "model.safetensors")
    del weights["classifier.weight"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UsageError, match=r"lacks weights of .*classifier.weight"):
        resolve(copy)
    (copy / "model.safetensors").unlink()
    with pytest.raises(UsageError, match=r"cannot be loaded from its model.safetensors"):
        resolve(copy)
    config = (copy / "config.json").read_text().replace("BertForSequence", "HertzForSequence")
    (copy / "config.json").write_text(config)
    with pytest.raises(UsageError, match=r"found HertzForSequenceClassification"):
        resolve(copy)


@pytest.mark.parametrize("stored", [torch.float32, torch.float16])
def test_a_folder_that_omninet_saved_is_a_model(tmp_path: Path, stored: torch.dtype):
    from omnigraph.models import OmniNet, OmniNetConfig

    config = OmniNetConfig.from_overrides({"kind": "decoder"}, name="tiny")
    OmniNet.from_seed(config, 3).to(stored).save(tmp_path / "mine")
    source = resolve(tmp_path / "mine")
    assert source.name == "mine" and source.config["kind"] == "decoder"
    assert [program.name for program in source.programs] == ["forward", "decode"]
    weights = dict(OmniNet.load(tmp_path / "mine").named_parameters())
    for name, parameter in source.programs[0].module.named_parameters():
        original = weights[name.split("module.")[-1].removeprefix("model.")]
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, original.float())


def test_a_damaged_folder_of_omninet_is_refused(tmp_path: Path):
    from omnigraph.models import OmniNet, OmniNetConfig

    OmniNet.from_seed(OmniNetConfig.from_overrides({}, name="tiny"), 3).save(tmp_path)
    with pytest.raises(UsageError, match="has no settings"):
        resolve(tmp_path, settings={"positions": "alibi"})
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(
        config.replace('"num_layers"', '"num_layers_": 2,"num_layers"')
    )
    with pytest.raises(UsageError, match="num_layers_"):
        resolve(tmp_path)
    (tmp_path / "config.json").write_text(config)
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(UsageError, match="cannot be read"):
        resolve(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UsageError, match=r"expected a file model.safetensors"):
        resolve(tmp_path)


def test_the_bars_of_transformers_are_hidden_for_factories(tmp_path: Path, folders, capfd):
    from transformers.utils import logging

    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "def net():\n"
        "    from transformers import AutoModelForSequenceClassification as Kind\n"
        f"    return Kind.from_pretrained({str(folders['bert'])!r}), "
        "{'input_ids': torch.ones(2, 5, dtype=torch.int64)}\n"
    )
    logging.enable_progress_bar()
    capfd.readouterr()
    resolve(f"{tmp_path / 'mine.py'}:net")
    assert "Loading weights" not in capfd.readouterr().err
    assert logging.is_progress_bar_enabled()
