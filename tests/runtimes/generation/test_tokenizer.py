"""The tokenizer of an artifact, and the command that generates text with it."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chat_tokenizers import make_tokenizer
from hugging_face_folders import save
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_sessions import unpacked
from transformers import AutoTokenizer

import omnigraph
from omnigraph.cli.main import main
from omnigraph.errors import ArtifactError, DeviceError, UnsupportedError, UsageError
from omnigraph.runtimes.base import Session
from omnigraph.runtimes.generation.chat_template import render


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("text") / "net"
    save("llama", made)
    make_tokenizer(made)
    return made


@pytest.fixture(scope="module")
def path(folder: Path) -> Path:
    out = folder.with_suffix(".omni")
    omnigraph.export(folder, "onnx", programs=["decode"], out=out)
    return out


@pytest.fixture(scope="module")
def session(path: Path) -> Iterator[Session]:
    with omnigraph.load(path, threads=1) as opened:
        yield opened


def test_its_files_are_in_the_artifact_and_hashed(folder: Path, session: Session):
    files = session.artifact.manifest["tokenizer"]
    assert {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"} <= set(files)
    for name, inside in files.items():
        assert session.artifact.read(inside).tobytes() == (folder / name).read_bytes()
        assert inside in session.artifact.manifest["files"]


@settings(max_examples=60, deadline=None)
@given(text=st.text("abc hinté漢\n", max_size=30))
def test_texts_have_the_ids_that_transformers_gives_them(folder: Path, session: Session, text: str):
    theirs = AutoTokenizer.from_pretrained(folder)
    ids = session.tokenizer.encode(text)
    assert ids == theirs(text)["input_ids"]
    assert session.tokenizer.decode(ids) == theirs.decode(ids, skip_special_tokens=True) == text
    stream = session.tokenizer.stream()
    pieces = [stream.add(each) for each in ids]
    assert "".join(pieces) + stream.rest() == text
    assert "\ufffd" not in "".join(pieces)


@pytest.mark.parametrize("more", [{}, {"add_generation_prompt": False}, {"tools": [{"a": "é<"}]}])
def test_a_chat_has_the_ids_that_transformers_gives_it(folder: Path, session: Session, more):
    messages = [
        {"role": "system", "content": "be"},
        {"role": "user", "content": "hi  "},
        {"role": "assistant", "content": " an end "},
        {"role": "user", "content": "<s>é"},
    ]
    theirs = AutoTokenizer.from_pretrained(folder)
    fields = {"add_generation_prompt": True, **more}
    wanted = theirs.apply_chat_template(messages, tokenize=False, **fields)
    assert session.tokenizer.chat_text(messages, **more) == wanted
    ids = theirs(wanted, add_special_tokens=False)["input_ids"]
    assert session.tokenizer.chat(messages, **more) == ids


def test_a_template_may_refuse_and_may_not_leave_its_sandbox(session: Session):
    with pytest.raises(UsageError, match="no role poet"):
        session.tokenizer.chat([{"role": "poet", "content": ""}])
    for template in ("{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}", "{% if %}"):
        with pytest.raises(ArtifactError, match="chat template of the artifact fails"):
            render(template, {"messages": []})


def test_a_text_that_ends_a_row_is_read_with_it(session: Session):
    ids = session.tokenizer.encode("ab")
    options = {"max_new_tokens": 12, "eos_token_id": 60, "suppress_tokens": [0, 1, 2]}
    found = session.generate(ids, **options)
    stop = session.tokenizer.decode(found.new[0][3:5])
    ended = session.generate(ids, stop_strings=stop, **options)
    assert ended.finish == ("stop_string",)
    assert session.tokenizer.decode(ended.new[0]).count(stop) == 1


@pytest.mark.slow
def test_a_damaged_tokenizer_and_none_are_said(tmp_path, path: Path, tiny_artifacts):
    directory = unpacked(path, tmp_path / "net")
    (directory / "tokenizer" / "tokenizer.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"tokenizer\.json in .* has another size"):
        omnigraph.load(directory)
    with (
        omnigraph.load(tiny_artifacts["onnx"]) as net,
        pytest.raises(UnsupportedError, match=r"has no tokenizer[\s\S]*hint: give token ids"),
    ):
        _ = net.tokenizer


def test_a_package_that_is_missing_is_named(session: Session, monkeypatch):
    from omnigraph.runtimes.generation.tokenizer import ArtifactTokenizer

    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(DeviceError, match=r"pip install 'omnigraph\[generate\]'"):
        ArtifactTokenizer(session.artifact)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(DeviceError, match=r"pip install 'omnigraph\[generate\]'"):
        render("another text", {})


# The command -------------------------------------------------------------------------------------


def run(capsys, *words: Any) -> str:
    assert main(["generate", *map(str, words)]) == 0
    return capsys.readouterr().out


def test_a_prompt_is_continued(capsys, path: Path, session: Session):
    ids = session.tokenizer.encode("ab")
    found = session.generate(ids, max_new_tokens=9, eos_token_id=60)
    new = found.new[0]
    whole = session.tokenizer.decode([*ids, *new])
    words = (path, "--prompt", "ab", "--max-new-tokens", 9, "--set", "eos_token_id=60")
    shown = run(capsys, *words)
    assert shown == whole.removeprefix("ab") + "\n"
    fields = json.loads(run(capsys, *words, "--json"))
    assert fields == {"text": shown[:-1], "ids": new.tolist(), "finish": found.finish[0]}


def test_ids_are_continued_without_a_tokenizer(capsys, tiny_artifacts):
    with omnigraph.load(tiny_artifacts["onnx"]) as net:
        greedy = net.generate([5, 6], max_new_tokens=5).new[0].tolist()
        beams = net.generate([5, 6], max_new_tokens=5, num_beams=3).new[0].tolist()
    words = (tiny_artifacts["onnx"], "--prompt-ids", "5,6", "--max-new-tokens", 5)
    assert run(capsys, *words) == " ".join(map(str, greedy)) + "\n"
    assert json.loads(run(capsys, *words, "--json"))["ids"] == greedy
    assert run(capsys, *words, "--set", "num_beams=3") == " ".join(map(str, beams)) + "\n"


def test_a_seed_and_settings_are_taken(capsys, path: Path, session: Session):
    ids = session.tokenizer.encode("an")
    options = {"do_sample": True, "top_k": 3, "stop_strings": "zz"}
    new = session.generate(ids, max_new_tokens=8, seed=4, **options).new[0]
    words = [path, "--prompt", "an", "--max-new-tokens", 8, "--seed", 4, "--json"]
    for text in ("do_sample=true", "top_k=3", "stop_strings=zz"):
        words += ["--set", text]
    assert json.loads(run(capsys, *words))["ids"] == new.tolist()


def test_a_chat_answers_each_line(capsys, monkeypatch, path: Path, session: Session):
    monkeypatch.setattr(sys, "stdin", io.StringIO("hi\n\nand then?\n"))
    words = (path, "--chat", "--system", "be", "--max-new-tokens", 4, "--json")
    messages = json.loads(run(capsys, *words))["messages"]
    assert [each["role"] for each in messages] == [
        "system", "user", "assistant", "user", "assistant",
    ]  # fmt: skip
    ids = session.tokenizer.chat(messages[:4])
    wanted = session.generate(np.array(ids), max_new_tokens=4).new[0]
    assert session.tokenizer.decode(wanted).strip() == messages[4]["content"].strip()


@pytest.mark.parametrize(
    "words",
    [
        ("--prompt-ids", "1,a"),
        ("--prompt", "a", "--set", "top_k"),
        ("--prompt", "a", "--set", "tempo=1"),
        ("--prompt", "a", "--system", "b"),
    ],
)
def test_what_is_no_request_is_refused_with_a_hint(capsys, path: Path, words):
    assert main(["generate", str(path), *words]) == 2
    assert "hint: " in capsys.readouterr().err
