"""Quantization-aware training: an OmniNet whose linear layers are rounded to integers.

Every linear layer multiplies an input that is rounded to one scale for all of it by a weight that
is rounded to a scale for each output channel; a token embedding is rounded by rows. Scales are
observed first, and then learned with the weights, as by LSQ (Esser et al. 2020, section 2), or kept
as observed. Layers that read one tensor share its scale, so that it is quantized once.

In ``torch.export`` each rounding is the pair QuantizeLinear and DequantizeLinear of ONNX with the
scale that was trained; everywhere else it is the same formula, x -> s * (clamp(round(x / s) + z,
least, most) - z), halves to even.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .linear import Linear

#: By the name of the type of inputs: the least and the largest integer, and torch's type.
INPUT_TYPES = {"uint8": (0, 255, torch.uint8), "int8": (-128, 127, torch.int8)}
_WEIGHT_RANGE = (-128, 127)
#: Inputs of these layers are one tensor; by the end of the path of the module around them.
_SHARED_INPUTS = {
    "self_attention": ({"query", "key", "value"},),
    "feed_forward": ({"up", "gate"},),
}
_OBSERVING, _LEARNING, _FROZEN = "observing", "learning", "frozen"
_TINY = 1e-12
_EMBEDDING = "token_embedding"


class FakeQuantizer(nn.Module):
    """Rounds one tensor to a grid.

    Args:
        channels: scales for each index of the first axis; None is one scale for the whole tensor.
        dtype: of the integers.
        levels: the least and the largest of them.
        symmetric: the zero point is zero.
    """

    def __init__(
        self, channels: int | None, dtype: torch.dtype, levels: tuple[int, int], symmetric: bool
    ) -> None:
        super().__init__()
        shape = (channels,) if channels else ()
        self.levels, self.symmetric = levels, symmetric
        self.state = _FROZEN
        self.scale = nn.Parameter(torch.ones(shape), requires_grad=False)
        self.zero_point: Tensor
        self.register_buffer("zero_point", torch.zeros(shape, dtype=dtype))
        self._least: Tensor | None = None
        self._most: Tensor | None = None

    def forward(self, tensor: Tensor) -> Tensor:
        """[N, …] -> the same, rounded; in the type of ``tensor``."""
        if torch.compiler.is_exporting():
            return self._exported(tensor)
        wide = tensor.float()
        if self.state == _OBSERVING:
            self._observe(wide.detach())
        return self._rounded(wide).to(tensor.dtype)

    def _rounded(self, wide: Tensor) -> Tensor:
        shape = (-1, *[1] * (wide.ndim - 1)) if self.scale.ndim else ()
        scale: Tensor = self.scale
        zero = self.zero_point.float()
        if self.state == _LEARNING:
            self.scale.data.clamp_(min=_TINY)
            # The gradient of a scale sums over every element; this makes it of the size of those
            # of the weights (Esser et al. 2020, section 2.2).
            share = 1 / math.sqrt(max(1, wide.numel() // max(1, scale.numel())) * self.levels[1])
            scale = scale * share + (scale * (1 - share)).detach()
        scale, zero = (part.reshape(shape) if shape else part for part in (scale, zero))
        low, high = self.levels[0] - zero, self.levels[1] - zero
        place = torch.minimum(torch.maximum(wide / scale, low), high)
        return (place + (place.round() - place).detach()) * scale

    def _exported(self, tensor: Tensor) -> Tensor:
        attributes: dict[str, Any] = {"axis": 0} if self.scale.ndim else {}
        symbolic = torch.onnx.ops.symbolic
        rounding, shape = (self.scale, self.zero_point), tensor.shape
        quantized = symbolic(
            "QuantizeLinear",
            (tensor, *rounding),
            attributes,
            dtype=self.zero_point.dtype,
            shape=shape,
        )
        return symbolic(
            "DequantizeLinear", (quantized, *rounding), attributes, dtype=tensor.dtype, shape=shape
        )

    def _observe(self, wide: Tensor) -> None:
        """Widen the range to what is seen and to zero, and set the scale by it."""
        dims = tuple(range(1, wide.ndim)) if self.scale.ndim else tuple(range(wide.ndim))
        least, most = wide.amin(dims).clamp(max=0), wide.amax(dims).clamp(min=0)
        if self._least is not None and self._most is not None:
            least, most = torch.minimum(least, self._least), torch.maximum(most, self._most)
        self._least, self._most = least, most
        low, high = self.levels
        if self.symmetric:
            span, zero = 2 * torch.maximum(-least, most) / (2 * high), torch.zeros_like(least)
        else:
            span = (most - least) / (high - low)
            zero = (low - least / span.clamp(min=_TINY)).round().clamp(low, high)
        self.scale.data.copy_(torch.where(span > _TINY, span, torch.ones_like(span)))
        self.zero_point.copy_(zero.to(self.zero_point.dtype))


class FakeQuantization(nn.Module):
    """All roundings of a model, by the paths of its layers with ``/`` for ``.``.

    Args:
        model: whose `Linear` layers and token embedding are rounded; it calls this from now on.
        inputs: "uint8" (with a zero point) or "int8" (symmetric), by what the targets multiply.
    """

    def __init__(self, model: nn.Module, inputs: str) -> None:
        super().__init__()
        low, high, dtype = INPUT_TYPES[inputs]
        self.inputs, self.weights = nn.ModuleDict(), nn.ModuleDict()
        self._keys: dict[str, str] = {}
        owners: dict[int, str] = {}
        symmetric = inputs == "int8"
        for path, layer in model.named_modules():
            if not isinstance(layer, Linear) and path != _EMBEDDING:
                continue
            assert isinstance(layer, nn.Linear | nn.Embedding)
            own = owners.setdefault(id(layer.weight), path.replace(".", "/"))
            self._keys[f"{path}.weight"] = own
            if own not in self.weights:
                rows = layer.weight.shape[0]
                self.weights[own] = FakeQuantizer(rows, torch.int8, _WEIGHT_RANGE, True)
            if path != _EMBEDDING:
                shared = _shared_input(path).replace(".", "/")
                self._keys[f"{path}.input"] = shared
                if shared not in self.inputs:
                    levels = (low, high)
                    self.inputs[shared] = FakeQuantizer(None, dtype, levels, symmetric)

    def quantize(self, name: str, tensor: Tensor) -> Tensor:
        """What a layer calls: ``<path>.input`` or ``<path>.weight``, and the tensor."""
        held = self.weights if name.endswith(".weight") else self.inputs
        return held[self._keys[name]](tensor)

    def quantizers(self) -> Iterator[FakeQuantizer]:
        """Every rounding."""
        for module in self.modules():
            if isinstance(module, FakeQuantizer):
                yield module

    @contextmanager
    def observing(self) -> Iterator[None]:
        """Within the block, scales are set by the ranges of what the model is given."""
        self._set(_OBSERVING)
        try:
            yield
        finally:
            self._set(_FROZEN)

    def learn(self, learn: bool = True) -> None:
        """Let the scales be trained with the weights, or keep them as they are."""
        self._set(_LEARNING if learn else _FROZEN)

    def _set(self, state: str) -> None:
        for quantizer in self.quantizers():
            quantizer.state = state
            quantizer.scale.requires_grad_(state == _LEARNING)


def _shared_input(path: str) -> str:
    """What the input of a layer is called: the same for all layers that read one tensor."""
    around, _, name = path.rpartition(".")
    for end, groups in _SHARED_INPUTS.items():
        for group in groups:
            if around.endswith(end) and name in group:
                return f"{around}.{'_'.join(sorted(group))}"
    if around.endswith("cross_attention") and name in ("key", "value"):
        return "cross_attention.memory"  # the encoder's output, which every layer reads
    return path
