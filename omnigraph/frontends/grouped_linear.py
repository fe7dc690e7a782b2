"""A linear layer of integers, with a scale and a zero point for each group of terms."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from omnigraph.frontends.packed_weights import GroupedWeight


class GroupedLinear(nn.Module):
    """y = x W + b with W = (q - z) s, in float32.

    In ``torch.export`` the weight is one DequantizeLinear of ONNX, which keeps the integers; they
    are stored in their own width by ``narrow-stored-weights``. Everywhere else it is the same
    formula.

    Args:
        weight: the integers of K terms and N channels.
        bias: float [N], or None.
    """

    def __init__(self, weight: GroupedWeight, bias: Tensor | None) -> None:
        super().__init__()
        self.block = weight.block
        one = len(weight.scales) == 1  # a group of all terms is a scale for each channel
        self.quantized: Tensor
        self.scales: Tensor
        self.zero_points: Tensor
        self.order: Tensor | None
        self.register_buffer("quantized", weight.quantized)
        self.register_buffer("scales", weight.scales[0] if one else weight.scales)
        self.register_buffer("zero_points", weight.zero_points[0] if one else weight.zero_points)
        self.register_buffer("order", weight.order)
        self.bias = None if bias is None else nn.Parameter(bias.float(), requires_grad=False)
        self.in_features, self.out_features = weight.quantized.shape

    def forward(self, x: Tensor) -> Tensor:
        """float32 [..., K] -> float32 [..., N]."""
        if self.order is not None:
            x = x.index_select(-1, self.order)
        y = x @ self._dequantized()
        return y if self.bias is None else y + self.bias

    @property
    def weight(self) -> Tensor:
        """float32 [N, K], as ``nn.Linear`` has it: some models look at its type."""
        rows = self._in_float()
        if self.order is not None:
            rows = torch.empty_like(rows).index_copy_(0, self.order, rows)
        return rows.T

    def _dequantized(self) -> Tensor:
        """float32 [K, N], rows as they are stored."""
        if not torch.compiler.is_exporting():
            return self._in_float()
        blocks: dict[str, Any] = {"axis": 0, "block_size": self.block}
        return torch.onnx.ops.symbolic(
            "DequantizeLinear",
            (self.quantized, self.scales, self.zero_points),
            blocks if self.scales.ndim == 2 else {"axis": 1},
            dtype=self.scales.dtype,
            shape=self.quantized.shape,
        )

    def _in_float(self) -> Tensor:
        scales, zeros = self.scales, self.zero_points.float()
        if scales.ndim == 2:
            rows = torch.arange(self.in_features, device=scales.device) // self.block
            scales, zeros = scales[rows], zeros[rows]
        return (self.quantized.float() - zeros) * scales
