"""Programs of the models in `hugging_face_models`, with random weights and example inputs.

Nothing is downloaded: every weight is drawn from a fixed seed, large enough for attention to choose
and no bias or norm at a value that hides an error.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import transformers
from hugging_face_models import MODELS
from torch import Tensor, nn

from omnigraph.frontends.module import program_from_module
from omnigraph.input_sets import contract_cases
from omnigraph.program import Dim, Program

#: Every table of positions has 96 rows.
_LENGTHS = Dim(1, 96)
_TEXT = {0: "batch", 1: "sequence"}
_TARGET = {0: "batch", 1: "target"}


class _Call(nn.Module):
    """Calls a model without a cache, and returns its first output."""

    def __init__(self, model: nn.Module, **options: Any) -> None:
        super().__init__()
        self.model, self.options = model, options

    def forward(self, **inputs: Tensor) -> Tensor:
        result = self.model(**inputs, **self.options, return_dict=False)
        return result[0]


def program(name: str, form: str) -> Program:
    """A model of the table as a Program whose batch and lengths are dynamic."""
    spec = MODELS[name]
    config = getattr(transformers, spec.config)(**spec.fields)
    config._attn_implementation = form
    model = getattr(transformers, spec.kind)._from_config(config, attn_implementation=form)
    model = model.eval().float()
    _draw_weights(model)
    inputs, dynamic = _INPUTS[spec.inputs]()
    cache = {"use_cache": False} if hasattr(config, "use_cache") else {}
    made = program_from_module(_Call(model, **cache), inputs, dynamic=dynamic, name=name)
    return made.with_dims({d: _LENGTHS for d in ("sequence", "target") if d in made.dims})


def _draw_weights(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim < 2:
                around = 1.0 if path.endswith("weight") else 0.0
                parameter.copy_(around + 0.1 * noise)
            else:
                fan = parameter[0].numel() if "embed" not in path else 1
                parameter.copy_(noise / math.sqrt(fan))


def _ids(*shape: int) -> Tensor:
    return torch.randint(3, 61, shape, generator=torch.Generator().manual_seed(2))


def _mask(*shape: int) -> Tensor:
    return torch.ones(shape, dtype=torch.int64)


def _text() -> tuple[dict[str, Tensor], dict[str, dict[int, str]]]:
    inputs = {"input_ids": _ids(2, 7), "attention_mask": _mask(2, 7)}
    return inputs, dict.fromkeys(inputs, _TEXT)


def _bare_text() -> tuple[dict[str, Tensor], dict[str, dict[int, str]]]:
    return {"input_ids": _ids(2, 7)}, {"input_ids": _TEXT}


def _two_texts() -> tuple[dict[str, Tensor], dict[str, dict[int, str]]]:
    inputs, dynamic = _text()
    inputs["decoder_input_ids"] = _ids(2, 5)
    return inputs, {**dynamic, "decoder_input_ids": _TARGET}


def _image() -> tuple[dict[str, Tensor], dict[str, dict[int, str]]]:
    return {"pixel_values": torch.randn(2, 3, 16, 16)}, {"pixel_values": {0: "batch"}}


def _sound() -> tuple[dict[str, Tensor], dict[str, dict[int, str]]]:
    inputs = {"input_features": torch.randn(2, 8, 48), "decoder_input_ids": _ids(2, 5)}
    return inputs, {"input_features": {0: "batch"}, "decoder_input_ids": _TARGET}


_INPUTS: dict[str, Callable[[], tuple[dict[str, Tensor], dict[str, dict[int, str]]]]] = {
    "text": _text,
    "text without mask": _bare_text,
    "two texts": _two_texts,
    "image": _image,
    "sound": _sound,
}


def attention_calls(program: Program) -> int:
    """How many times one call of a program's module runs an attention module.

    That is one whose class is called attention, and which holds no other such module.
    """
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    def named(module: nn.Module) -> bool:
        return "Attention" in type(module).__name__

    hooks = [
        module.register_forward_hook(count)
        for module in program.module.modules()
        if named(module) and not any(named(m) for m in module.modules() if m is not module)
    ]
    case = contract_cases(program)[0]
    try:
        with torch.no_grad():
            program.module(**program.make_inputs(case))
    finally:
        for hook in hooks:
            hook.remove()
    return calls
