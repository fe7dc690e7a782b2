"""Varied exports without a fault: the contract must refuse none of them."""

from __future__ import annotations

import random
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.faults.catalogue import exports
from benchmarks.faults.models import scale_weights
from benchmarks.faults.planting import instead_of, lowered_alone, options_for
from omnigraph.driver import export
from omnigraph.errors import OmniGraphError
from omnigraph.lowering import find_target
from omnigraph.program import Program

_TRANSFORMERS = ("bert", "gpt2", "llama", "qwen2", "roberta", "distilbert")


@dataclass(frozen=True)
class Varied:
    """One export: a model, a target and a precision, all drawn from a seed."""

    seed: int
    model: str
    settings: dict[str, Any]
    target: str
    precision: str

    def __str__(self) -> str:
        settings = " ".join(f"{k}={v}" for k, v in self.settings.items())
        return f"{self.seed}: {self.target} {self.precision} {self.model} {settings}"


def drawn(seed: int) -> Varied:
    """The export of a seed."""
    draw = random.Random(seed)
    target, precision = draw.choice(exports())
    if draw.random() < 0.25:
        model = draw.choice(_TRANSFORMERS)
        heads = draw.choice((2, 3, 4, 6))
        settings: dict[str, Any] = {
            "hidden_size": heads * draw.choice((8, 16, 24)),
            "num_attention_heads": heads,
            "num_hidden_layers": draw.randint(1, 3),
            "vocab_size": draw.choice((50, 97, 160)),
        }
        return Varied(seed, model, settings, target, precision)
    heads = draw.choice((1, 2, 3, 4, 6, 8))
    kind = draw.choice(("encoder", "decoder", "encoder-decoder"))
    layers = (1, 1, 1, 2, 2, 3) if kind == "encoder-decoder" else (1, 1, 2, 3, 8)
    settings = {
        "kind": kind,
        "hidden_size": heads * draw.choice((8, 16, 32)),
        "num_heads": heads,
        "num_layers": draw.choice(layers),
        "ffn_ratio": draw.choice((1, 2, 4)),
        "vocab_size": draw.choice((40, 97, 256)),
        "positions": draw.choice(("absolute", "sinusoidal", "relative", "rotary", "alibi")),
        "norm": draw.choice(("layernorm", "rmsnorm")),
        "norm_order": draw.choice(("pre", "post")),
        "activation": draw.choice(("gelu", "gelu_tanh", "relu", "silu", "swiglu")),
        "attention_bias": draw.random() < 0.7,
        "tie_embeddings": draw.random() < 0.7,
        "scale_embeddings": draw.random() < 0.2,
        "embedding_norm": draw.random() < 0.2,
        "attention": draw.choice(
            ("dense", "flash", "sliding_window:window=5", "block_sparse:block_size=8")
        ),
        "trained": draw.random() < 0.5,
    }
    return Varied(seed, "omninet", settings, target, precision)


def programs_of(varied: Varied) -> list[Program]:
    """The programs of a drawn model."""
    torch.manual_seed(varied.seed)
    if varied.model != "omninet":
        return [_transformer(varied.model, varied.settings)]
    from omnigraph.models import OmniNet, OmniNetConfig
    from omnigraph.models.programs import programs

    settings = {key: str(value) for key, value in varied.settings.items() if key != "trained"}
    settings = {k: v.lower() if v in ("True", "False") else v for k, v in settings.items()}
    config = OmniNetConfig.from_overrides(settings)
    model = OmniNet.from_seed(config, varied.seed, trained_like=True).eval()
    if varied.settings["trained"]:
        scale_weights(model)
    found = programs(model)
    return [found[varied.seed % len(found)]]


def _transformer(name: str, settings: dict[str, Any]) -> Program:
    from transformers import AutoConfig, AutoModel

    from omnigraph.frontends.module import program_from_module

    names = {
        "gpt2": {"hidden_size": "n_embd", "num_attention_heads": "n_head",
                 "num_hidden_layers": "n_layer"},
        "distilbert": {"hidden_size": "dim", "num_attention_heads": "n_heads",
                       "num_hidden_layers": "n_layers"},
    }.get(name, {})  # fmt: skip
    given = {names.get(key, key): value for key, value in settings.items()}
    width = settings["hidden_size"]
    given |= {"distilbert": {"hidden_dim": 2 * width}}.get(name, {"intermediate_size": 2 * width})
    given |= (
        {"num_key_value_heads": settings["num_attention_heads"]} if "n_head" not in given else {}
    )
    config = AutoConfig.for_model(name, **given)
    model = AutoModel.from_config(config, attn_implementation="sdpa")

    class Forward(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return self.model(input_ids=input_ids, attention_mask=attention_mask)[0]

    # Of words alone: RoBERTa gives padding no position, so that its limit would follow the text.
    tokens = torch.randint(3, settings["vocab_size"], (2, 9))
    return program_from_module(
        Forward().eval(), {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    )


def try_varied(varied: Varied) -> str | None:
    """The error of an export without a fault; None where it is written."""
    target = lowered_alone(type(find_target(varied.target)))()
    with tempfile.TemporaryDirectory() as scratch, instead_of(target):
        try:
            export(
                programs_of(varied),
                varied.target,
                options_for(varied.precision),
                out=Path(scratch) / "artifact",
            )
        except OmniGraphError as error:
            return f"{type(error).__name__}: {error}"
    return None
