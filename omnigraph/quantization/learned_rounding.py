"""Learned rounding: up or down for each weight, so that whole blocks keep their results.

This is AutoRound (Cheng et al. 2023, "Optimize Weight Rounding via Signed Gradient Descent for the
Quantization of LLMs", section 3). Each weight w of a grid with scale s and zero point z becomes
``clip(round(w / s + v) + z)``, where v, from -0.5 to 0.5, moves it to the other neighbour, and the
scale follows two factors on the ends of its range. A few hundred steps of signed gradient choose v
and the factors of all layers in a block together, so that its result stays: layers make up for each
other, which rounding one layer alone (GPTQ) cannot do. Blocks follow each other, and each sees what
the rounded ones before it give.

The error of a position is relative to what the position is: norms divide each token by its own
size, and a few tokens with huge activations would hide all others.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch

from omnigraph.graph import Graph
from omnigraph.passes.analysis.quantization.float_precision import is_weight
from omnigraph.passes.analysis.quantization.linear_layers import LinearLayer
from omnigraph.passes.analysis.quantization.weight_rounding import RoundedWeight, WeightGrid
from omnigraph.progress import Progress, silent
from omnigraph.quantization.blocks import Block, blocks_of
from omnigraph.quantization.tap import Feeds, Tap
from omnigraph.quantization.torch_nodes import Tensor, can_compute, compute

#: Steps of signed gradient for each block, and samples in a step (section 4.1 of the paper).
STEPS, BATCH = 200, 8
#: How far the ends of a range may be drawn in.
_LEAST_RANGE = 0.5
#: How far torch's float result of a block may be from onnxruntime's, relative to its size: both sum
#: in fp32, in another order. A block further away has something that torch computes otherwise.
_SAME = 1e-4
#: What a position whose own size is 0 is divided by, relative to the mean size of all.
_LEAST_SIZE = 1e-3


def learn_rounding(
    graph: Graph,
    layers: Sequence[tuple[LinearLayer, WeightGrid]],
    feeds: Iterable[Feeds],
    *,
    steps: int = STEPS,
    progress: Progress = silent,
) -> Iterator[tuple[str, RoundedWeight]]:
    """Round the weights of linear layers so that the results of their blocks stay.

    Args:
        graph: the float Graph; it is not changed.
        layers: each with its integer grid.
        feeds: inputs by name, for each sample.
        steps: of signed gradient, for each block.
        progress: called with each block.

    Yields:
        The name of a weight, and the weight. Left out are those of blocks that torch does not
        compute as onnxruntime does, and those that several layers read.
    """
    grids = {linear.weight.name: grid for linear, grid in layers}
    samples = list(feeds)
    current = graph.clone()
    for block in blocks_of(graph, [linear for linear, _ in layers]):
        if not samples or not all(can_compute(node) for node in block.nodes):
            continue
        progress(f"learn the rounding of {block.path}, {steps} steps")
        whole, partly = (_seen(graph, block, samples), _seen(current, block, samples))
        if not _agrees(block, whole):
            continue
        learner = _Learner(block, {name: grids[name] for name in _names(block)})
        learner.learn([(p.given, w.results) for p, w in zip(partly, whole, strict=True)], steps)
        for name, rounded in learner.rounded():
            _replace(current, name, rounded, learner.axis(name))
            yield name, rounded


@dataclass(frozen=True)
class _Seen:
    """What a block reads and gives on one sample, by the names of values."""

    given: Mapping[str, Tensor]
    results: Mapping[str, Tensor]


def _seen(graph: Graph, block: Block, samples: Sequence[Feeds]) -> list[_Seen]:
    inputs = [value.name or "" for value in block.inputs]
    outputs = [value.name or "" for value in block.outputs]
    tap = Tap(graph, list(dict.fromkeys([*inputs, *outputs])))
    found = ({n: torch.from_numpy(a) for n, a in tap.run(feeds).items()} for feeds in samples)
    return [_Seen({n: f[n] for n in inputs}, {n: f[n] for n in outputs}) for f in found]


def _names(block: Block) -> list[str]:
    return [linear.weight.name or "" for linear in block.layers]


def _agrees(block: Block, seen: Sequence[_Seen]) -> bool:
    """Whether torch computes a block as onnxruntime does, on the first and the last sample."""
    try:
        with torch.no_grad():
            return all(
                float(_error(_run(block, one.given, {}), one.results)) < _SAME**2
                for one in (seen[0], seen[-1])
            )
    except RuntimeError:
        return False


def _run(
    block: Block, given: Mapping[str, Tensor], weights: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The results of a block, with some of its weights replaced."""
    values: dict[ir.Value, Tensor | None] = {v: given[v.name or ""] for v in block.inputs}

    def value_of(value: ir.Value | None) -> Tensor | None:
        if value is None or value in values:
            return None if value is None else values[value]
        found = weights.get(value.name or "")
        if found is None:
            assert is_weight(value) and value.const_value is not None
            found = values[value] = torch.from_numpy(np.array(value.const_value.numpy()))
        return found

    for node in block.nodes:
        results = compute(node, [value_of(value) for value in node.inputs])
        values.update(zip(node.outputs, results, strict=False))
    found = {v.name or "": values[v] for v in block.outputs}
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def _error(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Tensor:
    """The mean square error of each position, relative to its own size; a mean over outputs."""
    errors = []
    for name, wanted in expected.items():
        if not wanted.numel():
            continue
        sizes = wanted.square().mean(-1)
        least = _LEAST_SIZE**2 * sizes.mean() + torch.finfo(sizes.dtype).tiny
        errors.append(((found[name] - wanted).square().mean(-1) / (sizes + least)).mean())
    return torch.stack(errors).mean() if errors else torch.zeros(())


class _Learner:
    """Learns the rounding of one block's weights."""

    def __init__(self, block: Block, grids: Mapping[str, WeightGrid]) -> None:
        self._block = block
        self._layers = {linear.weight.name or "": linear for linear in block.layers}
        self._weights = {
            name: _LearnedWeight(linear.matrix, grids[name])
            for name, linear in self._layers.items()
        }

    def learn(
        self, samples: Sequence[tuple[Mapping[str, Tensor], Mapping[str, Tensor]]], steps: int
    ) -> None:
        """Take steps of signed gradient; the step size falls to zero."""
        draw = np.random.default_rng(0)
        batch = min(BATCH, len(samples))
        for step in range(steps):
            chosen = draw.choice(len(samples), batch, replace=False)
            weights = self._computed()
            loss = sum(
                (_error(_run(self._block, samples[i][0], weights), samples[i][1]) for i in chosen),
                torch.zeros(()),
            )
            loss.backward()  # type: ignore[no-untyped-call]
            for weight in self._weights.values():
                weight.step((1 - step / steps) / steps)

    def _computed(self) -> dict[str, Tensor]:
        """The weights as the runtime will compute with them, in the shape of the initializers."""
        return {
            name: wide if self._layers[name].channel_axis == 1 else wide.T
            for name, weight in self._weights.items()
            if (wide := weight.dequantized()) is not None
        }

    def axis(self, name: str) -> int:
        """The axis of the output channels of a weight, in its initializer."""
        return self._layers[name].channel_axis

    def rounded(self) -> Iterator[tuple[str, RoundedWeight]]:
        """The weights on their grids."""
        for name, weight in self._weights.items():
            yield name, weight.rounded()


class _LearnedWeight:
    """A weight [K, N], with what is learned of its rounding."""

    def __init__(self, weight: np.ndarray, grid: WeightGrid) -> None:
        self._grid, self._terms = grid, weight.shape[0]
        size = grid.block or self._terms
        padded = np.pad(weight, ((0, -self._terms % size), (0, 0)))
        blocks = torch.from_numpy(padded.reshape(-1, size, weight.shape[1]).astype(np.float32))
        self._blocks = blocks  # [B, block, N]
        self._least = blocks.amin(1, keepdim=True).clamp(max=0)
        self._most = blocks.amax(1, keepdim=True).clamp(min=0)
        self._offset = torch.zeros_like(blocks, requires_grad=True)
        self._low = torch.ones_like(self._least, requires_grad=True)
        self._high = torch.ones_like(self._least, requires_grad=True)

    def dequantized(self) -> Tensor:
        """Float32 [K, N], with gradients."""
        scales, zeros = self._affine()
        wide = (self._codes(scales, zeros) - zeros) * scales
        return wide.reshape(-1, wide.shape[-1])[: self._terms]

    def step(self, size: float) -> None:
        """Move against the signs of the gradients."""
        with torch.no_grad():
            for learned, low, high in (
                (self._offset, -0.5, 0.5),
                (self._low, _LEAST_RANGE, 1.0),
                (self._high, _LEAST_RANGE, 1.0),
            ):
                if learned.grad is not None:
                    learned.sub_(learned.grad.sign(), alpha=size).clamp_(low, high)
                    learned.grad = None

    def rounded(self) -> RoundedWeight:
        """The weight on its grid."""
        with torch.no_grad():
            scales, zeros = self._affine()
            codes = self._codes(scales, zeros)
        kind = np.uint8 if self._grid.has_zero_points else np.int8
        codes_ = codes.reshape(-1, codes.shape[-1])[: self._terms].numpy().astype(kind)
        per_block = [array[:, 0].numpy() for array in (scales, zeros)]  # [B, N]
        if self._grid.block is None:
            per_block = [array[0] for array in per_block]
        has_zeros = self._grid.has_zero_points
        zeros_ = per_block[1].astype(kind) if has_zeros else None
        return RoundedWeight(codes_, per_block[0], zeros_, self._grid, learned=True)

    def _codes(self, scales: Tensor, zeros: Tensor) -> Tensor:
        return _round(self._blocks / scales + self._offset).add(zeros).clamp(*self._grid.levels)

    def _affine(self) -> tuple[Tensor, Tensor]:
        """Scales and zero points [B, 1, N] for the ranges drawn in."""
        least, most = self._least * self._low, self._most * self._high
        low, high = self._grid.levels
        if not self._grid.has_zero_points:
            scales = torch.maximum(-least / -low, most / high)
            if -low != high:  # the longer half of the levels is for the side of larger magnitude
                scales = torch.where(-least >= most, -least / -low, scales)
            return _no_zero(scales), torch.zeros_like(scales)
        scales = _no_zero((most - least) / (high - low))
        return scales, _round(low - least / scales).clamp(low, high)


def _no_zero(scales: Tensor) -> Tensor:
    """Scales with one in place of zero, for weights that are all zero."""
    return torch.where(scales > 0, scales, torch.ones_like(scales))


def _round(x: Tensor) -> Tensor:
    """Rounded to the nearest integer, halves to even; the gradient passes as if it were not."""
    return x + (torch.round(x) - x).detach()


def _replace(graph: Graph, name: str, rounded: RoundedWeight, axis: int) -> None:
    """Let a Graph compute with a rounded weight."""
    wide = rounded.dequantized()
    array = np.ascontiguousarray(wide if axis == 1 else wide.T)
    graph.graph.initializers[name].const_value = ir.tensor(array, name=name)
