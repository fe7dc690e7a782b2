"""The files that pages of the documentation take as given, each made once."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from markdown_blocks import ROOT, blocks


@pytest.fixture(scope="session")
def given_files(tmp_path_factory) -> Callable[[str, Path], None]:
    """Copies the files that a page names, and does not make itself, into a folder."""
    store = tmp_path_factory.mktemp("given")

    def copy(page: str, folder: Path) -> None:
        for name, make in _MAKERS.items():
            if not re.search(rf"(?<![\w./-]){re.escape(name)}(?![\w.-])", page):
                continue
            source, copied = store / name, folder / name
            if not source.exists():
                make(source)
            if source.is_dir():
                shutil.copytree(source, copied)
            else:
                shutil.copy(source, copied)

    return copy


def _shown(page: str, name: str) -> str:
    """The Python file that a page shows."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return next(block.text for block in blocks(text) if block.file_name == name)


def _module(page: str, name: str) -> ModuleType:
    """The Python file that a page shows, run."""
    module = ModuleType("shown")
    exec(_shown(page, name), module.__dict__)
    return module


def _ids(path: Path, seed: int) -> None:
    np.savez(path, input_ids=np.random.default_rng(seed).integers(0, 1000, (8, 16)))


def _tokenizer(path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {"[UNK]": 0, "compile": 1, "once": 2, "run": 3, "fast": 4}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(path))


def _bert(path: Path) -> None:
    model, _ = _module("passes.md", "bert.py").net()
    model.save_pretrained(path)


def _chat_model(path: Path) -> None:
    from chat_tokenizers import make_tokenizer
    from hugging_face_folders import save

    save("llama", path)
    make_tokenizer(path)


def _export(path: Path, save: Callable[..., object]) -> None:
    """The model of ``mine.py``, as torch exports it."""
    import torch
    from torch.export import Dim

    model, inputs = _module("own-model.md", "mine.py").net()
    axes = {"input_ids": {0: Dim("batch"), 1: Dim("sequence")}}
    exported = torch.export.export(model.eval(), (), inputs, dynamic_shapes=axes, strict=False)
    save(exported, path)


def _onnx(exported: object, path: Path) -> None:
    import torch

    torch.onnx.export(exported, dynamo=True, external_data=False, verbose=False).save(path)


def _pt2(exported: object, path: Path) -> None:
    import torch

    torch.export.save(exported, path)


#: How each file is made that a page may name without showing it.
_MAKERS: Mapping[str, Callable[[Path], object]] = {
    "mine.py": lambda path: path.write_text(_shown("own-model.md", path.name)),
    "bert.py": lambda path: path.write_text(_shown("passes.md", path.name)),
    "samples.npz": lambda path: _ids(path, 0),
    "other.npz": lambda path: _ids(path, 1),
    "text.txt": lambda path: path.write_text("compile once run fast\n" * 40),
    "tokenizer.json": _tokenizer,
    "net.onnx": lambda path: _export(path, _onnx),
    "net.pt2": lambda path: _export(path, _pt2),
    "bert": _bert,
    "chat-model": _chat_model,
}
