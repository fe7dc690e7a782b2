"""`encode` and `decode` of encoder-decoder folders: the tokens that transformers generates."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from encoder_decoder_steps import Run, generated, greedy, in_torch, sources, uncached
from hugging_face_folders import FOLDERS, save
from hugging_face_models import _SEQ2SEQ

import omnigraph
from omnigraph.errors import UsageError
from omnigraph.exporting.program_choice import choose_programs
from omnigraph.frontends.resolve import resolve
from omnigraph.program import Dim

#: Positions that are relative, learned, fixed, and counted without padding; texts and sounds.
NAMES = ("t5", "bart", "whisper", "pegasus", "m2m100", "marian", "mbart")
STEPS = 12
#: Rounding of fp32, of the depth of these models.
TOLERANCE = 4e-6
STEP_PROGRAMS = ("encode", "decode")

Folder = Callable[[str], Path]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    root = tmp_path_factory.mktemp("folders")

    def saved(name: str) -> Path:
        if not (root / name).exists():
            save(name, root / name)
        return root / name

    return saved


def assert_right(run: Run, path: Path) -> None:
    """The tokens are those of `generate`, and the logits those of the model without a cache."""
    kind = transformers.AutoConfig.from_pretrained(path).architectures[0]
    model = getattr(transformers, kind).from_pretrained(path).eval()
    source = sources(model)
    tokens, logits = greedy(run, source, STEPS)
    assert len(np.unique(tokens[:, 1:])) > 1
    np.testing.assert_array_equal(tokens, generated(model, source, STEPS))
    wanted = uncached(model, source, tokens[:, :-1])
    np.testing.assert_allclose(logits, wanted, rtol=0, atol=TOLERANCE * np.abs(wanted).max())


def exported(path: Path, target: str, out: Path, **options: Any) -> Path:
    (report,) = omnigraph.export(path, target, out=out, programs=STEP_PROGRAMS, **options)
    assert report.programs == STEP_PROGRAMS
    return report.path


@pytest.mark.parametrize("name", NAMES)
def test_steps_are_those_of_generate(folder: Folder, name: str):
    source = resolve(folder(name))
    assert [program.name for program in source.programs] == ["forward", *STEP_PROGRAMS]
    assert not source.not_made
    assert_right(in_torch(source.programs), folder(name))


@pytest.mark.slow  # T5's artifact generates in tests/runtimes/generation
@pytest.mark.parametrize("name", NAMES)
def test_an_artifact_decodes_as_generate_does(folder: Folder, tmp_path: Path, name: str):
    with omnigraph.load(exported(folder(name), "onnx", tmp_path / "net.omni")) as net:
        assert_right(lambda program, inputs: net.run(inputs, program=program), folder(name))


@pytest.mark.slow
def test_openvino_decodes_as_generate_does(folder: Folder, tmp_path: Path):
    out = exported(folder("t5"), "openvino", tmp_path / "net.omni", precision="fp32")
    with omnigraph.load(out) as net:
        assert_right(lambda program, inputs: net.run(inputs, program=program), folder("t5"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "precision", "name"),
    [("tensorrt", "fp16", "bart"), ("tensorrt", "fp16", "t5"), ("openvino", "bf16", "t5")],
)
def test_steps_keep_the_contract_in_half_types(
    folder: Folder, tmp_path: Path, target: str, precision: str, name: str
):
    if target == "tensorrt":
        pytest.importorskip("tensorrt_rtx")
    path = folder("bart")
    if name == "t5":  # with weights of its own size: its scores are not scaled
        path = tmp_path / "t5"
        config = transformers.T5Config(**{**FOLDERS["t5"][2], "d_kv": 64})
        transformers.T5ForConditionalGeneration(config).save_pretrained(path)
    exported(path, target, tmp_path / "net.omni", precision=precision)


def test_the_programs_have_the_names_of_omninet(folder: Folder):
    of_omninet = {p.name: p for p in resolve("omninet", config="tiny").programs}
    for program in resolve(folder("t5")).programs:
        own = of_omninet[program.name]
        for name, role in program.roles().items():
            assert own.roles()[name] == role
        named = [spec.name for spec in program.inputs if ".2." not in spec.name]
        assert named == [spec.name for spec in own.inputs if spec.name in named]
        assert dict(program.state).items() <= dict(own.state).items()


def test_lengths_follow_the_tables_and_the_encoder(folder: Folder, tmp_path: Path):
    encode, decode = resolve(folder("bart")).programs[1:]
    assert encode.dims["sequence"] == Dim(1, 96)
    assert decode.dims["past"] == Dim(0, 95)
    assert decode.dims["past + decoder_sequence"] == Dim(1, 96)
    shapes = {spec.name: spec.shape for spec in resolve(folder("whisper")).programs[2].inputs}
    assert shapes["cross_key_values.1.value"] == ("batch", 4, 24, 8)
    assert "attention_mask" not in shapes
    save_speech(tmp_path)
    shapes = {spec.name: spec.shape for spec in resolve(tmp_path).programs[2].inputs}
    assert shapes["cross_key_values.1.value"] == ("batch", 4, "encoder_sequence", 8)


def save_speech(path: Path, **preprocessor: Any) -> None:
    config = transformers.Speech2TextConfig(
        **_SEQ2SEQ, input_feat_per_channel=8, conv_channels=16, max_source_positions=300,
        max_target_positions=96,
    )  # fmt: skip
    transformers.Speech2TextForConditionalGeneration(config).save_pretrained(path)
    (path / "preprocessor_config.json").write_text(json.dumps(preprocessor))


def save_prophet(path: Path) -> None:
    config = transformers.ProphetNetConfig(
        vocab_size=61, hidden_size=32, num_encoder_layers=1, num_decoder_layers=1,
        num_encoder_attention_heads=4, num_decoder_attention_heads=4, encoder_ffn_dim=64,
        decoder_ffn_dim=64, max_position_embeddings=96,
    )  # fmt: skip
    transformers.ProphetNetForConditionalGeneration(config).save_pretrained(path)


def save_fsmt(path: Path) -> None:
    sizes = {"src_vocab_size": 61, "tgt_vocab_size": 61, "langs": ["en", "de"]}
    config = transformers.FSMTConfig(**_SEQ2SEQ, **sizes)
    transformers.FSMTForConditionalGeneration(config).save_pretrained(path)


@pytest.mark.parametrize(
    ("saved", "why"),
    [
        (save_prophet, "its step does not run: At the moment `use_cache` is only supported"),
        (save_fsmt, "steps with a cache compute something else than the model without"),
        (
            functools.partial(save_speech, return_attention_mask=True),
            "its mask is of 7 inputs, and the encoder makes 2 states",
        ),
    ],
)
def test_steps_that_are_not_made_have_a_reason(tmp_path: Path, saved: Any, why: str):
    saved(tmp_path)
    source = resolve(tmp_path)
    assert [program.name for program in source.programs] == ["forward"]
    assert why in source.not_made["decode"]
    with pytest.raises(UsageError, match=r"no program 'encode'.*for decode, which is not made"):
        choose_programs(source, ["encode"], {})


def test_a_model_without_logits_has_no_steps(folder: Folder, tmp_path: Path):
    transformers.T5Model(transformers.T5Config(**FOLDERS["t5"][2])).save_pretrained(tmp_path)
    source = resolve(tmp_path)
    assert [program.name for program in source.programs] == ["forward"]
    assert not source.not_made
