"""Inputs and programs of small folders: by signature, configurations and trial, nothing traced."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from hugging_face_folders import FOLDERS, save

import omnigraph
from omnigraph.errors import UsageError
from omnigraph.exporting.program_choice import choose_programs
from omnigraph.frontends.resolve import ModelSource, resolve
from omnigraph.program import Case, Dim

Folder = Callable[[str], Path]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    root = tmp_path_factory.mktemp("folders")

    def saved(name: str) -> Path:
        if not (root / name).exists():
            save(name, root / name)
        return root / name

    return saved


def shapes(source: ModelSource, program: int = 0) -> dict[str, tuple[int | str, ...]]:
    return {spec.name: spec.shape for spec in source.programs[program].inputs}


def test_texts_and_images_have_batches_of_their_own(folder: Folder):
    source = resolve(folder("clip"))
    assert shapes(source) == {
        "input_ids": ("batch", "sequence"),
        "attention_mask": ("batch", "sequence"),
        "pixel_values": ("image_batch", 3, 16, 16),
    }
    (program,) = source.programs
    assert program.dims["sequence"] == Dim(1, 40)  # the texts' positions, not the images'
    assert {"logits_per_image", "text_embeds", "image_embeds"} <= set(program.outputs)


def test_a_text_says_which_of_two_texts_each_token_is_of(folder: Folder):
    (program,) = resolve(folder("bert")).programs
    segments = next(spec for spec in program.inputs if spec.name == "token_type_ids")
    assert (segments.shape, segments.role, segments.default) == (
        ("batch", "sequence"),
        "segments",
        0,
    )
    for padding in ("none", "left", "right"):
        inputs = program.make_inputs(Case("case", {"batch": 3, "sequence": 20}, padding))
        shown = inputs["token_type_ids"][inputs["attention_mask"] == 1]
        assert set(shown.tolist()) == {0, 1}


def test_a_model_of_one_kind_of_text_takes_no_segments(folder: Folder, tmp_path: Path):
    config = {**FOLDERS["roberta"][2], "type_vocab_size": 1}
    transformers.RobertaModel(transformers.RobertaConfig(**config)).save_pretrained(tmp_path)
    assert set(shapes(resolve(tmp_path))) == {"input_ids", "attention_mask"}
    assert set(shapes(resolve(folder("gpt2")))) == {"input_ids", "attention_mask"}


def test_a_cross_encoder_tells_two_texts_apart(folder: Folder, tmp_path: Path):
    path = folder("bert")
    (report,) = omnigraph.export(path, "onnx", out=tmp_path / "net.omni")
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
    pairs = torch.tensor([[0, 0, 1, 1], [0, 1, 1, 1]])
    model = transformers.BertModel.from_pretrained(path).eval()
    with omnigraph.load(report.path) as net, torch.no_grad():
        for segments in ({}, {"token_type_ids": pairs}):
            expected = model(input_ids=ids, **segments).last_hidden_state
            given = {name: tensor.numpy() for name, tensor in segments.items()}
            found = net.run(input_ids=ids.numpy(), **given)["last_hidden_state"]
            torch.testing.assert_close(torch.tensor(found), expected, atol=1e-5, rtol=1e-5)


def test_waves_are_as_short_as_the_convolutions_take(folder: Folder):
    (program,) = resolve(folder("wav2vec2")).programs
    assert [spec.shape for spec in program.inputs] == [("batch", "samples")]
    assert program.dims["samples"] == Dim(40)  # two frames of 20 samples: 10 + 2 * 5


def test_waves_have_a_mask_where_the_preprocessor_gives_one(folder: Folder, tmp_path: Path):
    save("wav2vec2", tmp_path)
    extractor = transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True)
    extractor.save_pretrained(tmp_path)
    assert shapes(resolve(tmp_path)) == {
        "input_values": ("batch", "samples"),
        "attention_mask": ("batch", "samples"),
    }


def test_spectrograms_have_the_shape_of_the_configuration(folder: Folder):
    source = resolve(folder("whisper"))
    assert shapes(source) == {
        "input_features": ("batch", 8, 48),
        "decoder_input_ids": ("batch", "decoder_sequence"),
        "decoder_attention_mask": ("batch", "decoder_sequence"),
    }
    assert source.programs[0].dims["decoder_sequence"] == Dim(1, 96)
    assert shapes(resolve(folder("audio-spectrogram"))) == {"input_values": ("batch", 24, 16)}


def test_images_are_as_large_as_the_preprocessor_makes_them(folder: Folder, tmp_path: Path):
    assert shapes(resolve(folder("dinov2"))) == {"pixel_values": ("batch", 3, 16, 16)}
    assert shapes(resolve(folder("convnext"))) == {"pixel_values": ("batch", 3, 224, 224)}
    save("dinov2", tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(UsageError, match=r"preprocessor_config.json cannot be read"):
        resolve(tmp_path)
    said = {"do_center_crop": True, "size": {"shortest_edge": 40}}
    for fields, pixels in [({"crop_size": {"height": 24, "width": 32}}, (24, 32)), ({}, (40, 40))]:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps({**said, **fields}))
        assert shapes(resolve(tmp_path)) == {"pixel_values": ("batch", 3, *pixels)}


def test_layers_with_a_window_have_a_step(folder: Folder):
    for name in ("gemma3", "mistral"):
        source = resolve(folder(name))
        assert [program.name for program in source.programs] == ["forward", "decode"]
        assert not source.not_made


def test_a_program_that_is_not_made_has_a_reason(folder: Folder):
    source, why = resolve(folder("mamba")), "no keys and values"
    assert [program.name for program in source.programs] == ["forward"]
    assert why in source.not_made["decode"]
    assert source.to_dict()["not_made"] == source.not_made
    with pytest.raises(UsageError, match=why):
        choose_programs(source, ["decode"], {})


def test_none_is_expected_of_a_model_that_does_not_generate(folder: Folder):
    source = resolve(folder("bert"))
    assert not source.not_made
    assert set(source.to_dict()) == {"config"}


def test_the_settings_of_a_folder_are_listed(folder: Folder):
    with pytest.raises(UsageError, match="no setting 'layers'") as refused:
        resolve(folder("bert"), settings={"layers": "1"})
    for text in ("attn_implementation=eager|sdpa", "experts_implementation=", "dtype=float32|"):
        assert text in str(refused.value)
    with pytest.raises(UsageError, match=r"no attn_implementation=flash: expected .*eager"):
        resolve(folder("bert"), settings={"attn_implementation": "flash"})
    with pytest.raises(UsageError, match="did you mean 'attn_implementation'"):
        resolve(folder("bert"), settings={"attention_implementation": "eager"})
    with pytest.raises(UsageError, match="did you mean 'bfloat16'"):
        resolve(folder("bert"), settings={"dtype": "bf16"})


def test_a_dtype_rounds_the_weights(folder: Folder):
    exact = resolve(folder("bert")).programs[0].module.model.state_dict()
    rounded = resolve(folder("bert"), settings={"dtype": "bfloat16"}).programs[0].module.model
    for name, tensor in rounded.state_dict().items():
        if tensor.is_floating_point():
            assert tensor.dtype == torch.float32
            torch.testing.assert_close(tensor, exact[name].bfloat16().float(), rtol=0, atol=0)


def test_a_model_of_other_inputs_is_refused_by_their_names(tmp_path: Path):
    config = transformers.PerceiverConfig(
        num_latents=4, d_latents=8, d_model=8, num_blocks=1, num_self_attends_per_block=1,
        num_self_attention_heads=1, num_cross_attention_heads=1, max_position_embeddings=16,
    )  # fmt: skip
    transformers.PerceiverForMaskedLM(config).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="its main input is 'inputs'"):
        resolve(tmp_path)
    bad = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=50,
        max_position_embeddings=4, architectures=["BertModel"],
    )  # fmt: skip
    transformers.BertModel(bad).save_pretrained(tmp_path / "short")
    with pytest.raises(UsageError, match="No example inputs can be made for the BertModel"):
        resolve(tmp_path / "short")
