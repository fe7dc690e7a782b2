"""Forms of transformers' modules that can be traced, and modules that forget what they ran before.

Two parts of transformers decide by values of tensors, in Python, what to compute:

- Mixtures of experts loop over those that some token chose. Their form ``batched_mm`` multiplies
  each token by its own experts' weights instead.
- Rotary positions whose frequencies depend on the length (longrope, dynamic NTK) write them to a
  buffer, and dynamic NTK keeps those of the longest sequence for the next call.

Both are found by what transformers wrapped around their ``forward``, not by the model's class.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from omnigraph.errors import TraceError

#: The form of experts that has one graph for all routings.
_EXPERTS = "batched_mm"
#: What marks a module of experts: set by transformers' decorator ``use_experts_implementation``.
_EXPERTS_MARK = "_is_expert_parallel"


@contextlib.contextmanager
def traceable_forms(module: nn.Module) -> Iterator[None]:
    """The module with forms of its experts and rotary positions that can be traced.

    What is computed stays the same; all is as it was afterwards. Experts that are ``batched_mm``
    already, and modules of other packages, are left alone.
    """
    with contextlib.ExitStack() as stack:
        if "transformers" in sys.modules:
            stack.enter_context(_batched_experts(module))
            for rotary in _dynamic_rotaries(module):
                stack.enter_context(_functional(rotary))
        yield


@contextlib.contextmanager
def forgotten_lengths(module: nn.Module) -> Iterator[None]:
    """The module as if it had seen no sequence yet; what it remembered is put back afterwards."""
    with contextlib.ExitStack() as stack:
        if "transformers" in sys.modules:
            for rotary in _dynamic_rotaries(module):
                stack.enter_context(_fresh(rotary))
        yield


# Experts ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _batched_experts(module: nn.Module) -> Iterator[None]:
    experts: list[Any] = [m for m in module.modules() if hasattr(m, _EXPERTS_MARK)]
    configs = {id(config): config for config in (part.config for part in experts)}.values()
    # Not by the setter of transformers, which sets the configurations inside of this one, too.
    before = [config._experts_implementation_internal for config in configs]
    try:
        for config in configs:
            config._experts_implementation_internal = _EXPERTS
        yield
    finally:
        for config, form in zip(configs, before, strict=True):
            config._experts_implementation_internal = form


# Rotary positions ---------------------------------------------------------------------------------


def _dynamic_rotaries(module: nn.Module) -> Iterator[nn.Module]:
    """The modules whose rotary frequencies depend on the length."""
    for part in module.modules():
        if _wrapped(part) is not None and any(map(_depends_on_length, _types(part).values())):
            yield part


def _wrapped(part: nn.Module) -> Callable[..., Any] | None:
    """The ``forward`` inside of transformers' ``dynamic_rope_update``, or None for others."""
    forward = type(part).forward
    wrapper = getattr(forward, "__globals__", {}).get("__name__")
    inside = getattr(forward, "__wrapped__", None)
    return inside if wrapper == "transformers.modeling_rope_utils" else None


def _types(part: nn.Module) -> dict[str | None, str]:
    """The rope type of each type of layers; None stands for all layers."""
    found: Any = getattr(part, "rope_type", "default")
    return dict(found) if isinstance(found, dict) else {None: found}


def _depends_on_length(rope_type: str) -> bool:
    return rope_type == "longrope" or "dynamic" in rope_type


def _prefix(layer_type: str | None) -> str:
    return "" if layer_type is None else f"{layer_type}_"


@contextlib.contextmanager
def _fresh(rotary: Any) -> Iterator[None]:
    fields, buffers = dict(rotary.__dict__), dict(rotary._buffers)
    for layer_type in _types(rotary):
        prefix = _prefix(layer_type)
        # A copy, since transformers writes into the buffer.
        original = getattr(rotary, f"{prefix}original_inv_freq")
        rotary._buffers[f"{prefix}inv_freq"] = original.clone()
        rotary.__dict__.pop(f"{prefix}max_seq_len_cached", None)
    rotary.max_seq_len_cached = rotary.original_max_seq_len
    try:
        yield
    finally:
        rotary._buffers.clear()
        rotary._buffers.update(buffers)
        rotary.__dict__.clear()
        rotary.__dict__.update(fields)


@contextlib.contextmanager
def _functional(rotary: Any) -> Iterator[None]:
    """A rotary module that chooses its frequencies with tensors alone, and keeps none of them."""
    inside = _wrapped(rotary)
    assert inside is not None

    def forward(x: torch.Tensor, position_ids: torch.Tensor, layer_type: str | None = None) -> Any:
        given = {} if layer_type is None else {"layer_type": layer_type}
        chosen = _frequencies(rotary, position_ids, layer_type)
        return inside(_WithFrequencies(rotary, layer_type, chosen), x, position_ids, **given)

    for layer_type, rope_type in _types(rotary).items():
        if _depends_on_length(rope_type):
            _check_form(rotary, forward, layer_type)
    fields = dict(rotary.__dict__)
    rotary.forward = forward
    try:
        yield
    finally:
        rotary.__dict__.clear()
        rotary.__dict__.update(fields)


def _check_form(rotary: Any, form: Callable[..., Any], layer_type: str | None) -> None:
    """Compare a form with its module on both sides of the border: an export tries one of them."""
    given = {} if layer_type is None else {"layer_type": layer_type}
    border, states = _border(rotary, layer_type), torch.zeros(1, 1, 1)
    for position in (border - 1, border, 2 * border):
        positions = torch.tensor([[position]], device=rotary.inv_freq.device)
        with _fresh(rotary), torch.no_grad():
            expected = type(rotary).forward(rotary, states, positions, **given)
            found = form(states, positions, **given)
        if not all(map(torch.equal, found, expected)):
            raise TraceError(
                f"The rotary positions of {type(rotary).__name__} cannot be traced",
                expected=f"frequencies that change once, beyond length {border}",
                found=f"others at length {position + 1}",
                hint="take them from another version of transformers, or write them with "
                "torch.where",
            )


class _WithFrequencies:
    """A rotary module with other frequencies than those in its buffer."""

    def __init__(self, rotary: nn.Module, layer_type: str | None, inv_freq: torch.Tensor) -> None:
        self._rotary = rotary
        setattr(self, f"{_prefix(layer_type)}inv_freq", inv_freq)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._rotary, name)


def _frequencies(rotary: Any, position_ids: torch.Tensor, layer_type: str | None) -> torch.Tensor:
    """The frequencies [D / 2] for the length that positions [B, T] reach."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope_type = _types(rotary)[layer_type]
    if not _depends_on_length(rope_type):
        return getattr(rotary, f"{_prefix(layer_type)}inv_freq")
    original = getattr(rotary, f"{_prefix(layer_type)}original_inv_freq")
    length, border = position_ids.max() + 1, _border(rotary, layer_type)
    given = {} if layer_type is None else {"layer_type": layer_type}
    longer, _ = ROPE_INIT_FUNCTIONS[rope_type](
        rotary.config,
        position_ids.device,
        seq_len=border + 1 if rope_type == "longrope" else length,
        **given,
    )
    return torch.where(length > border, longer, original)


def _border(rotary: Any, layer_type: str | None) -> int:
    """The longest length that has the original frequencies."""
    if _types(rotary)[layer_type] != "longrope":
        return rotary.original_max_seq_len
    parameters = rotary.config.rope_parameters
    return (parameters if layer_type is None else parameters[layer_type])[
        "original_max_position_embeddings"
    ]
