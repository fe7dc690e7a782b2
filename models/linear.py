"""The linear layer of the model, and the place where fake quantization hooks in."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

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
    """An embedding left uninitialized, with an optional quantizer of its rows, as `Linear` is."""

    quantizer: Quantizer | None = None
    path: str = ""

    def reset_parameters(self) -> None:
        """Leave the memory as it is: `OmniNet.initialize` or a checkpoint fills it."""

    def forward(self, input: Tensor) -> Tensor:
        """[…] int64 -> [..., embedding_dim]."""
        if self.quantizer is None:
            return super().forward(input)
        weight = self.quantizer(f"{self.path}.weight", self.weight)
        return F.embedding(input, weight, self.padding_idx)


def set_quantizer(model: nn.Module, quantizer: Quantizer | None) -> None:
    """Give every `Linear` of ``model`` the quantizer, or none: then nothing of it is traced."""
    for path, module in model.named_modules():
        if isinstance(module, Linear):
            module.path = path
            module.quantizer = cast("Quantizer | None", quantizer)
