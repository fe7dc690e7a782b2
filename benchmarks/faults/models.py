"""The models that faults are planted in: small, of every kind, with several attentions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch

from omnigraph.graph import Graph
from omnigraph.program import Program
from omnigraph.tracing.trace import trace

_SIZES: Mapping[str, Any] = {
    "vocab_size": 160,
    "hidden_size": 96,
    "num_heads": 6,
    "num_layers": 2,
    "ffn_ratio": 2,
    "max_positions": 192,
}


def omninet(kind: str, program: str, **settings: Any) -> Program:
    """A program of an OmniNet whose weights are of the size that trained ones have."""
    from omnigraph.models import OmniNet, OmniNetConfig
    from omnigraph.models.programs import programs

    config = OmniNetConfig(kind=kind, **{**_SIZES, **settings})
    model = OmniNet.from_seed(config, 7, trained_like=True).eval()
    scale_weights(model)
    return next(p for p in programs(model) if p.name == program)


@torch.no_grad()
def scale_weights(model: torch.nn.Module) -> None:
    """Weights of deviation 1/√K and embeddings of 1, so that attention looks at some tokens more
    than at others; biases and norms that are not 0 and 1."""
    generator = torch.Generator().manual_seed(11)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            terms = parameter.shape[0 if ".c_" in name else -1]  # transformers' Conv1D is [K, N]
            size = 1.0 if "embedding" in name or ".wte" in name else terms**-0.5
            parameter.mul_(size / parameter.std())
        elif parameter.ndim == 1:
            parameter.add_(torch.empty_like(parameter).normal_(0, 0.1, generator=generator))


def gpt2() -> Program:
    """A GPT-2 of transformers."""
    from transformers import GPT2Config, GPT2LMHeadModel

    from omnigraph.frontends.module import program_from_module

    class Forward(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            config = GPT2Config(
                vocab_size=160, n_positions=192, n_embd=96, n_layer=2, n_head=6, use_cache=False
            )
            self.model = GPT2LMHeadModel._from_config(config, attn_implementation="sdpa")

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return self.model(input_ids=input_ids, attention_mask=attention_mask)[0]

    torch.manual_seed(3)
    module = Forward().eval()
    scale_weights(module)
    tokens = torch.ones(2, 9, dtype=torch.int64)
    return program_from_module(module, {"input_ids": tokens, "attention_mask": tokens.clone()})


def _windowed(window: int) -> Any:
    from omnigraph.models.config import AttentionPattern

    return AttentionPattern("sliding_window", window=window)


MODELS: Mapping[str, Callable[[], Program]] = {
    "encoder": lambda: omninet(
        "encoder", "forward", positions="relative", relative_max_distance=24, relative_buckets=16
    ),
    "decoder": lambda: omninet(
        "decoder",
        "decode",
        positions="rotary",
        norm="rmsnorm",
        attention=(_windowed(6), _windowed(200)),
    ),
    "encoder-decoder": lambda: omninet(
        "encoder-decoder",
        "forward",
        positions="absolute",
        norm_order="post",
        activation="gelu_tanh",
    ),
    "alibi": lambda: omninet("decoder", "forward", positions="alibi", activation="swiglu"),
    "gpt2": gpt2,
}


@cache
def traced(name: str) -> tuple[Program, Graph]:
    """A model's program, and its Graph as traced, once a process."""
    program = MODELS[name]()
    return program, trace(program)
