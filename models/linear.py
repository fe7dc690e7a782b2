"""The linear layer of the model, and the place where fake quantization hooks in."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Quantizer = Callable[[str, Tensor], Tensor]
"""Given ``<module path>.input`` or ``.weight`` and the tensor, gives one of the same shape."""


class Linear(nn.Linear):
    """A linear layer left uninitialized (OmniNet does that once), with an optional quantizer."""

    quantizer: Quantizer | None = None
    path: str = ""

    def reset_parameters(self) -> None:
        """Leave the memory as it is: `OmniNet.initialize` or a checkpoint fills it."""

    def forward(self, input: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features]."""
        if self.quantizer is None:
            return F.linear(input, self.weight, self.bias)
        input = self.quantizer(f"{self.path}.input", input)
        return F.linear(input, self.quantizer(f"{self.path}.weight", self.weight), self.bias)

    def keep_outputs(self, rows: Tensor) -> None:
        """Shrink to the output features ``rows``, an index [N]."""
        self.weight = nn.Parameter(self.weight.detach().index_select(0, rows))
        if self.bias is not None:
            self.bias = nn.Parameter(self.bias.detach().index_select(0, rows))
        self.out_features = len(rows)

    def keep_inputs(self, columns: Tensor) -> None:
        """Shrink to the input features ``columns``, an index [N]."""
        self.weight = nn.Parameter(self.weight.detach().index_select(1, columns))
        self.in_features = len(columns)


class Embedding(nn.Embedding):
    """An embedding left uninitialized, as `Linear` is."""

    def reset_parameters(self) -> None:
        """Leave the memory as it is: `OmniNet.initialize` or a checkpoint fills it."""


def set_quantizer(model: nn.Module, quantizer: Quantizer | None) -> None:
    """Give every `Linear` of ``model`` the quantizer, or none: then nothing of it is traced."""
    for path, module in model.named_modules():
        if isinstance(module, Linear):
            module.path = path
            module.quantizer = cast("Quantizer | None", quantizer)


def fake_quantize(bits: int = 8) -> Quantizer:
    """A symmetric quantizer: weights by output channel, inputs whole, gradients straight through.

    Integer rounding as in Jacob et al. 2018, section 3.1; the estimator is that of Bengio et al.
    2013, section 4.
    """
    most = 2 ** (bits - 1) - 1

    def quantizer(name: str, tensor: Tensor) -> Tensor:
        with torch.no_grad():
            if name.endswith(".weight"):
                largest = tensor.abs().amax(dim=-1, keepdim=True)
            else:
                largest = tensor.abs().amax()
            scale = largest.clamp(min=torch.finfo(tensor.dtype).tiny * most) / most
            rounded = (tensor / scale).round().clamp(-most, most) * scale
        return tensor + (rounded - tensor).detach()

    return quantizer
