"""Tiny decoders of Hugging Face, as transformers runs them and as artifacts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hugging_face_folders import save

import omnigraph
from omnigraph.runtimes.base import Session


@dataclass(frozen=True)
class Pair:
    """A model and its artifact."""

    folder: Path
    path: Path
    model: Any
    session: Session

    def theirs(self, ids: Any, mask: Any = None, **fields: Any) -> np.ndarray:
        """What transformers generates."""
        given = {} if mask is None else {"attention_mask": torch.tensor(mask)}
        with torch.no_grad():
            found = self.model.generate(torch.tensor(ids), **given, **fields)
        return found.numpy()

    def ours(self, ids: Any, mask: Any = None, **fields: Any) -> np.ndarray:
        """What the artifact generates."""
        return self.session.generate(np.array(ids), mask, **fields).ids


@pytest.fixture(scope="session", params=["gpt2", "llama"])
def pair(request, tmp_path_factory) -> Iterator[Pair]:
    """GPT-2 has learned positions, which padding would move; Llama has rotary ones."""
    folder = tmp_path_factory.mktemp("generation") / request.param
    save(request.param, folder)
    (report,) = omnigraph.export(
        folder, "onnx", programs=["decode"], out=folder.with_suffix(".omni")
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    with omnigraph.load(report.path, threads=1) as session:
        yield Pair(folder, report.path, model, session)


@pytest.fixture(scope="session")
def prompts() -> np.ndarray:
    """Three prompts [3, 6]."""
    return np.random.default_rng(0).integers(4, 61, (3, 6))


@pytest.fixture(scope="session")
def mask() -> np.ndarray:
    """Padding before two of three prompts [3, 6]."""
    shown = np.ones((3, 6), np.int64)
    shown[1, :2] = shown[2, :5] = 0
    return shown
