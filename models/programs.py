"""What an OmniNet offers for compiling: its programs, by kind."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from omnigraph.program import Case, Dim, Program, TensorSpec, evaluate_dim

from .omninet import OmniNet


def programs(model: OmniNet) -> tuple[Program, ...]:
    """The programs of a model, the default one first. Their tensors have the roles of `ROLES`.

    ``forward`` is the whole model. ``encode`` (where there is an encoder) gives the last hidden
    state, and for a decoder the keys and values of its cross-attentions, computed once.
    ``decode`` (where there is a decoder) takes a past and gives the past of the next call.
    """
    offered: list[Program] = [_forward(model)]
    if model.encoder is not None:
        offered.append(_encode(model))
    if model.decoder is not None:
        offered.append(_decode(model))
    return tuple(offered)


def _forward(model: OmniNet) -> Program:
    inputs = _tokens("", "sequence")
    if model.config.kind == "encoder-decoder":
        inputs += _tokens("decoder_", "decoder_sequence")
    return _program(model, "forward", model, inputs, {"logits": "logits"})


def _encode(model: OmniNet) -> Program:
    outputs = {"last_hidden_state": "embeddings"}
    if model.decoder is not None:
        outputs |= {name: "" for name, _ in _cache(model, "cross_key_values", "cross")}
    return _program(model, "encode", _Encode(model), _tokens("", "sequence"), outputs)


def _decode(model: OmniNet) -> Program:
    crossed = model.config.kind == "encoder-decoder"
    prefix, tokens = ("decoder_", "decoder_sequence") if crossed else ("", "sequence")
    past, present = (
        _cache(model, stem, "self") for stem in ("past_key_values", "present_key_values")
    )
    inputs = [_ids(prefix, tokens), _mask(prefix, f"past + {tokens}")]
    inputs += [
        replace(_cache_spec(model, name, heads, "past"), default=0, role="past")
        for name, heads in past
    ]
    if crossed:
        cross = _cache(model, "cross_key_values", "cross")
        inputs.append(_mask("", "sequence"))
        inputs += [_cache_spec(model, name, heads, "sequence") for name, heads in cross]
    outputs = {"logits": "logits"} | {name: "present" for name, _ in present}
    state = tuple((a, b) for (a, _), (b, _) in zip(past, present, strict=True))
    return _program(model, "decode", _Decode(model), inputs, outputs, state)


def _program(
    model: OmniNet,
    name: str,
    module: nn.Module,
    inputs: list[TensorSpec],
    outputs: dict[str, str],
    state: tuple[tuple[str, str], ...] = (),
) -> Program:
    """A program, of the inputs given, and of outputs by name with their roles."""
    specs = tuple(inputs)

    def make_inputs(case: Case) -> dict[str, Tensor]:
        return _make_inputs(model.config.vocab_size, specs, case)

    return Program(
        name,
        module,
        specs,
        tuple(outputs),
        _dims(model, specs),
        make_inputs,
        state,
        root="" if module is model else "model",
        output_roles=outputs,
    )


def _dims(model: OmniNet, specs: tuple[TensorSpec, ...]) -> dict[str, Dim]:
    # Learned positions end where the table ends; all others go on.
    longest = model.config.max_positions if model.config.positions == "absolute" else None
    names = dict.fromkeys(d for spec in specs for d in spec.shape if isinstance(d, str))
    dims = {name: Dim(1, longest) for name in names if name != "batch"}
    if "past" in names:
        dims["past"] = Dim(0, None if longest is None else longest - 1)
    return {"batch": Dim(1), **dims}


def _tokens(prefix: str, length: str) -> list[TensorSpec]:
    return [_ids(prefix, length), _mask(prefix, length)]


def _ids(prefix: str, length: str) -> TensorSpec:
    return TensorSpec(f"{prefix}input_ids", "int64", ("batch", length), role="tokens")


def _mask(prefix: str, length: str) -> TensorSpec:
    shape = ("batch", length)
    return TensorSpec(f"{prefix}attention_mask", "int64", shape, default=1, role="mask")


def _cache(model: OmniNet, stem: str, which: str) -> list[tuple[str, int]]:
    """The name of each key and value tensor of the decoder's layers, with its number of heads."""
    config = model.config
    return [
        (f"{stem}.{layer}.{part}", len(config.kept_heads(f"decoder.{layer}.{which}")))
        for layer in range(config.decoder_layers)
        for part in ("key", "value")
    ]


def _cache_spec(model: OmniNet, name: str, heads: int, length: str) -> TensorSpec:
    return TensorSpec(name, "float32", ("batch", heads, length, model.config.head_size))


def _make_inputs(vocabulary: int, specs: tuple[TensorSpec, ...], case: Case) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(case.seed)
    made = {}
    for spec in specs:
        shape = [evaluate_dim(d, case.sizes) for d in spec.shape]
        if spec.role == "mask":
            made[spec.name] = _padded_mask(shape[0], shape[1], case.padding)
        elif spec.dtype == "int64":
            made[spec.name] = torch.randint(0, vocabulary, shape, generator=generator)
        else:
            made[spec.name] = torch.randn(shape, generator=generator)
    return made


def _padded_mask(batch: int, length: int, padding: str) -> Tensor:
    """[batch, length], 1 for a token: each row but the first has some padding, if asked for."""
    mask = torch.ones(batch, length, dtype=torch.int64)
    if padding == "none" or length < 2:
        return mask
    for row in range(1, batch):
        padded = 1 + (row * 3 + length // 3) % (length - 1)
        if padding == "left":
            mask[row, :padded] = 0
        else:
            mask[row, length - padded :] = 0
    return mask


class _Encode(nn.Module):
    def __init__(self, model: OmniNet) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        hidden, cross = self.model.encode(input_ids, attention_mask)
        return (hidden, *(tensor for pair in cross for tensor in pair))


class _Decode(nn.Module):
    def __init__(self, model: OmniNet) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: Any) -> tuple[Tensor, ...]:
        prefix = "decoder_" if "decoder_input_ids" in inputs else ""
        layers = range(self.model.config.decoder_layers)
        past, cross = (
            [(inputs[f"{stem}.{i}.key"], inputs[f"{stem}.{i}.value"]) for i in layers]
            if f"{stem}.0.key" in inputs
            else None
            for stem in ("past_key_values", "cross_key_values")
        )
        logits, present = self.model.decode(
            inputs[f"{prefix}input_ids"],
            inputs[f"{prefix}attention_mask"],
            past,
            cross,
            inputs["attention_mask"] if prefix else None,
        )
        return (logits, *(tensor for pair in present for tensor in pair))
