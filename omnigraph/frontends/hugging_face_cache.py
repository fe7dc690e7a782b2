"""What the steps of Hugging Face models share: their caches, and the ranges of their dimensions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from omnigraph.frontends.hugging_face_inputs import arguments
from omnigraph.program import Dim, Program

if TYPE_CHECKING:
    from torch import Tensor, nn

#: Layers of a past that `DynamicCache` can keep whole; a window is then in the mask alone.
_WHOLE_LAYERS = {"DynamicLayer", "DynamicSlidingWindowLayer"}


def cache_argument(model: nn.Module) -> str:
    """The name of a model's argument for its past: ``cache`` in newer ones."""
    return "cache" if "cache" in arguments(model) else "past_key_values"


def cache_of(model: nn.Module, outputs: Mapping[str, Any]) -> Any:
    """The cache among a model's outputs, or None."""
    return outputs.get(cache_argument(model)) or outputs.get("past_key_values")


def whole_layers(cache: Any) -> tuple[list[Any], str]:
    """The layers of a cache, each with its ``keys`` and ``values`` [B, H, P, D].

    Or none, and why a step with them is not made.
    """
    layers = list(getattr(cache, "layers", ()))
    others = {type(layer).__name__ for layer in layers} - _WHOLE_LAYERS
    if not layers or others:
        found = ", ".join(sorted(others)) or type(cache).__name__
        return [], f"its past is no keys and values that can be joined ({found})"
    return layers, ""


def filled(tensors: Mapping[str, Tensor], stem: str, layers: int) -> Any:
    """A `DynamicCache` of the tensors ``STEM.0.key``, ``STEM.0.value``, and so on."""
    from transformers import DynamicCache

    cache = DynamicCache()
    for layer in range(layers):
        cache.update(tensors[f"{stem}.{layer}.key"], tensors[f"{stem}.{layer}.value"], layer)
    return cache


def named(layers: Any, stem: str) -> dict[str, Tensor]:
    """The keys and values of layers by name: ``STEM.0.key``, ``STEM.0.value``, and so on."""
    return {
        f"{stem}.{index}.{part}": tensor
        for index, layer in enumerate(layers)
        for part, tensor in (("key", layer.keys), ("value", layer.values))
    }


def with_defaults(program: Program) -> Program:
    """The program with inputs that may be left out: masks are ones then, all else is zeros."""
    defaults = {"mask": 1, "past": 0, "segments": 0}
    specs = (replace(spec, default=defaults.get(spec.role)) for spec in program.inputs)
    return replace(program, inputs=tuple(specs))


def with_longest(program: Program, longest: Mapping[str, int]) -> Program:
    """The program with the lengths that tables of positions bound, of past and tokens together."""
    dims = dict(program.dims)
    for name, length in longest.items():
        if name in dims:
            dims[name] = Dim(dims[name].min, length)
    tokens = "decoder_sequence" if "decoder_sequence" in dims else "sequence"
    if "past" in dims and (length := longest.get(tokens, 0)):
        dims["past"] = Dim(0, length - 1)
        dims[f"past + {tokens}"] = Dim(1, length)
    return replace(program, dims=dims)
