"""The programs of a Hugging Face encoder-decoder: `encode` once, then `decode` step by step.

Nothing here is of one architecture. A decoder that is run with an encoder's states keeps the keys
and values of its cross-attentions in transformers' ``EncoderDecoderCache``: ``encode`` gives them,
and in a step they stand in that cache already, so that the model makes none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from omnigraph.frontends.hugging_face_cache import (
    cache_argument,
    cache_of,
    filled,
    named,
    whole_layers,
    with_defaults,
    with_longest,
)
from omnigraph.frontends.hugging_face_inputs import (
    BATCH,
    DECODER,
    Examples,
    arguments,
    token_ids,
)
from omnigraph.frontends.module import program_from_module
from omnigraph.program import Dim, Program
from omnigraph.tracing.transformers_forms import forgotten_lengths

_PAST = 3
_PREFIX = "decoder_"
#: Logits of a step, and of the model without a cache, differ by less than this share of their size.
_ROUNDING = 1e-4


class NoSteps(Exception):
    """Why a model has no steps that can be compiled."""


def encoder_decoder_programs(
    model: Any, examples: Examples, longest: Mapping[str, int]
) -> tuple[Program, ...]:
    """``encode`` and ``decode`` of a model that generates, with the names that OmniNet gives them.

    - ``encode`` takes the model's inputs and gives ``last_hidden_state`` [B, S, C], and
      ``cross_key_values.LAYER.key`` and ``.value`` [B, H, S, D] of each layer of the decoder.
    - ``decode`` takes ``decoder_input_ids`` [B, T], ``decoder_attention_mask`` [B, P + T], the
      encoder's ``attention_mask`` [B, S] (each as far as the model takes it), the past of its own
      tokens, ``past_key_values.LAYER.key`` and ``.value`` [B, H, P, D], and the cross keys and
      values. It gives ``logits`` [B, T, V], and the past with these tokens,
      ``present_key_values.LAYER.key`` and ``.value`` [B, H, P + T, D].

    The steps are compared with the model without a cache before they are offered.

    Args:
        examples: the inputs of the whole model.
        longest: the greatest lengths that tables of positions allow, by dimension.

    Raises:
        NoSteps: the model has none, or they compute something else; the text says why.
    """
    step = _example_step(model, examples)
    _check(model, examples, step)
    return _encode(model, step, longest), _decode(model, step, longest)


@dataclass(frozen=True)
class _ExampleStep:
    """What a step is given, found by running the model on a few tokens.

    Args:
        source: the inputs of the encoder.
        width: of the encoder's states.
        length: how many of them there are: a dimension, or a number.
        past: keys and values of the decoder's own tokens, by name; ``cross`` of the encoder's.
    """

    source: Examples
    width: int
    length: str | int
    past: Mapping[str, Tensor]
    cross: Mapping[str, Tensor]

    @property
    def mask(self) -> dict[str, Tensor]:
        """The encoder's mask, if it takes one."""
        key = "attention_mask"
        return {key: self.source.inputs[key]} if key in self.source.inputs else {}


class _Encode(nn.Module):
    """The encoder's states, and the keys and values that the decoder makes of them.

    The decoder runs on one token, so that it fills its cache. All that only the token needs is left
    out of the trace, since no output depends on it.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        rows = next(iter(inputs.values())).shape[0]
        cache = _two_caches()
        outputs = self.model(
            **inputs,
            decoder_input_ids=torch.zeros(rows, 1, dtype=torch.int64),
            **{cache_argument(self.model): cache},
            use_cache=True,
            return_dict=True,
        )
        cross = named(cache.cross_attention_cache.layers, "cross_key_values")
        return {"last_hidden_state": outputs.encoder_last_hidden_state} | cross


class _Decode(nn.Module):
    """One step of the decoder: logits, and the past with what was just seen.

    Args:
        states: fills the encoder's states, of which a step reads the shape alone.
    """

    def __init__(self, model: nn.Module, layers: int, width: int, states: float = 0.0) -> None:
        super().__init__()
        self.model, self.layers, self.width, self.states = model, layers, width, states

    def forward(self, decoder_input_ids: Tensor, **inputs: Tensor) -> dict[str, Tensor]:
        cache = _two_caches(
            filled(inputs, "past_key_values", self.layers),
            filled(inputs, "cross_key_values", self.layers),
        )
        keys = inputs["cross_key_values.0.key"]
        states = keys.new_full((keys.shape[0], keys.shape[2], self.width), self.states)
        outputs = self.model(
            decoder_input_ids=decoder_input_ids,
            encoder_outputs=_encoder_outputs(states),
            **{name: mask for name, mask in inputs.items() if name.endswith("attention_mask")},
            **{cache_argument(self.model): cache},
            use_cache=True,
            return_dict=True,
        )
        present = named(cache.self_attention_cache.layers, "present_key_values")
        return {"logits": outputs.logits} | present


def _encoder_outputs(states: Tensor) -> Any:
    """States [B, S, C] as an encoder returns them; whatever else it may return is None."""
    from transformers.modeling_outputs import BaseModelOutput

    class Outputs(BaseModelOutput):
        def __getattr__(self, name: str) -> None:
            if name.startswith("__"):
                raise AttributeError(name)

    return Outputs(last_hidden_state=states)


def _two_caches(past: Any = None, cross: Any = None) -> Any:
    from transformers import DynamicCache, EncoderDecoderCache

    if past is None or cross is None:
        return EncoderDecoderCache(DynamicCache(), DynamicCache())
    cache = EncoderDecoderCache(past, cross)
    cache.is_updated = dict.fromkeys(range(len(cross.layers)), True)
    return cache


# Examples -----------------------------------------------------------------------------------------


def _example_step(model: Any, examples: Examples) -> _ExampleStep:
    needed = {cache_argument(model), "decoder_input_ids", "encoder_outputs"}
    if missing := sorted(needed - arguments(model)):
        raise NoSteps(f"the model takes no {' and no '.join(missing)}")
    source = _source(examples)
    try:
        with forgotten_lengths(model), torch.no_grad():
            outputs = model(
                **source.inputs,
                decoder_input_ids=token_ids(model, _PAST, decoder=True),
                use_cache=True,
                return_dict=True,
            )
    except Exception as error:
        raise NoSteps(f"the model does not run with a cache: {_first_line(error)}") from error
    cache, states = cache_of(model, outputs), outputs.get("encoder_last_hidden_state")
    parts = [getattr(cache, f"{name}_attention_cache", None) for name in ("self", "cross")]
    if None in parts or not isinstance(states, Tensor) or states.ndim != 3:
        raise NoSteps(
            f"it keeps no past of two parts, its own and the encoder's ({type(cache).__name__})"
        )
    (past, why), (cross, other) = (whole_layers(part) for part in parts)
    if why or other or len(past) != len(cross):
        raise NoSteps(why or other or f"{len(cross)} of {len(past)} layers attend to the encoder")
    return _ExampleStep(
        source,
        states.shape[2],
        _length_of_states(source, states.shape[1]),
        named(past, "past_key_values"),
        named(cross, "cross_key_values"),
    )


def _source(examples: Examples) -> Examples:
    """The inputs of the encoder, of those of the whole model."""
    inputs = {k: v for k, v in examples.inputs.items() if not k.startswith(_PREFIX)}
    axes = {name: axes for name, axes in examples.axes.items() if name in inputs}
    return Examples(inputs, axes, examples.dims)


def _length_of_states(source: Examples, states: int) -> str | int:
    """The dimension of the encoder's states: that of its mask, where it has one."""
    lengths = {axis for axes in source.axes.values() for axis in axes.values()} - {"batch"}
    mask = source.inputs.get("attention_mask")
    if mask is None:
        return "encoder_sequence" if lengths else states
    if mask.shape[1] != states:
        raise NoSteps(
            f"its mask is of {mask.shape[1]} inputs, and the encoder makes {states} states"
        )
    return source.axes["attention_mask"][1]


def _check(model: Any, examples: Examples, step: _ExampleStep) -> None:
    """Compare a step with the model without a cache, with a hidden token in the encoder's mask."""
    masks = {name: mask.clone() for name, mask in step.mask.items()}
    for mask in masks.values():
        mask[-1, -1] = 0
    ids = _text_ids(model, _PAST + DECODER)
    source = {**step.source.inputs, **masks}
    decode = _Decode(model, len(step.past) // 2, step.width, math.nan)
    try:
        with forgotten_lengths(model), torch.no_grad():
            expected = model(**source, decoder_input_ids=ids, use_cache=False, return_dict=True)
            cross = _Encode(model)(**source)
            cross.pop("last_hidden_state")
            past: dict[str, Tensor] = {n: t[:, :, :0] for n, t in step.past.items()}
            logits = []
            for tokens in (ids[:, :_PAST], ids[:, _PAST:]):
                found = decode(tokens, **masks, **cross, **past)
                logits.append(found.pop("logits"))
                past = {n.replace("present", "past"): tensor for n, tensor in found.items()}
    except Exception as error:
        raise NoSteps(f"its step does not run: {_first_line(error)}") from error
    wanted, rounding = expected.logits, _ROUNDING * float(expected.logits.abs().max())
    if not torch.allclose(torch.cat(logits, 1), wanted, rtol=0, atol=rounding):
        raise NoSteps("steps with a cache compute something else than the model without")


def _text_ids(model: Any, length: int) -> Tensor:
    """Token ids [B, T] without padding: positions that skip it are not those of a step."""
    ids = token_ids(model, length, decoder=True)
    padding = getattr(model.config, "pad_token_id", None)
    return ids if padding is None else ids.where(ids != padding, padding - 1 if padding else 1)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


# Programs -----------------------------------------------------------------------------------------


def _encode(model: Any, step: _ExampleStep, longest: Mapping[str, int]) -> Program:
    source = step.source
    program = program_from_module(_Encode(model), source.inputs, name="encode", dynamic=source.axes)
    known = {name: dim for name, dim in source.dims.items() if name in program.dims}
    dims = {**program.dims, **known}
    return with_longest(replace(with_defaults(program), dims=dims, expendable=True), longest)


def _decode(model: Any, step: _ExampleStep, longest: Mapping[str, int]) -> Program:
    tokens = f"{_PREFIX}sequence"
    examples = {f"{_PREFIX}input_ids": token_ids(model, DECODER, decoder=True)}
    axes: dict[str, dict[int, str]] = {f"{_PREFIX}input_ids": {0: "batch", 1: tokens}}
    if (mask := f"{_PREFIX}attention_mask") in arguments(model):
        examples[mask] = torch.ones(BATCH, _PAST + DECODER, dtype=torch.int64)
        axes[mask] = {0: "batch", 1: f"past + {tokens}"}
    examples |= step.past
    axes |= {name: {0: "batch", 2: "past"} for name in step.past}
    examples |= step.mask
    axes |= {name: step.source.axes[name] for name in step.mask}
    length = {2: step.length} if isinstance(step.length, str) else {}
    examples |= step.cross
    axes |= {name: {0: "batch", **length} for name in step.cross}
    module = _Decode(model, len(step.past) // 2, step.width)
    program = program_from_module(module, examples, name="decode", dynamic=axes)
    state = tuple((name, name.replace("past", "present")) for name in step.past)
    dims = {**program.dims, "past": Dim(0)}
    program = replace(with_defaults(program), dims=dims, state=state, expendable=True)
    return with_longest(program, longest)
