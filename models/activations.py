"""The activations a feed-forward can use, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Activation:
    """An elementwise function, and whether a second projection multiplies its result (gated)."""

    function: Callable[[Tensor], Tensor]
    gated: bool = False


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Activation] = {
    "gelu": Activation(F.gelu),  # Hendrycks & Gimpel 2016, section 2
    "gelu_tanh": Activation(_gelu_tanh),
    "relu": Activation(F.relu),
    "silu": Activation(F.silu),
    "swiglu": Activation(F.silu, gated=True),  # Shazeer 2020, equation 6
}


def register_activation(
    name: str, function: Callable[[Tensor], Tensor], *, gated: bool = False
) -> None:
    """Make ``name`` a legal ``activation`` of the configuration.

    Raises:
        ValueError: the name is taken.
    """
    if name in ACTIVATIONS:
        raise ValueError(f"activation {name!r} is already registered\nhint: choose another name")
    ACTIVATIONS[name] = Activation(function, gated)
