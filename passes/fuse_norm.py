"""Fuses LayerNorm and RMSNorm into the op that the standard has for each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from omnigraph.graph import Graph
from omnigraph.passes.analysis.arithmetic.norm import UnfusedNorm, divides_by_root_mean, match_norm
from omnigraph.passes.insertion import Inserter
from omnigraph.passes.matching import (
    axis_size,
    made_by,
    nodes_of,
    only_use,
    rank,
    remove_unused,
    replace_output,
    standard,
)
from omnigraph.passes.site_pass import Miss, SitePass

#: The type in which the standard ops compute with ``stash_type`` 1, and the types of their inputs.
_STASH, _TYPES = ir.DataType.FLOAT, ("FLOAT", "FLOAT16", "BFLOAT16")


@dataclass(frozen=True)
class FuseNorm(SitePass):
    """Fuse the ops of a LayerNorm or RMSNorm into LayerNormalization or RMSNormalization.

    Before, with ``c = x - mean(x)`` for a LayerNorm and ``c = x`` for an RMSNorm::

        y = c / sqrt(mean(c * c) + epsilon) * scale (+ bias)

    After::

        y = LayerNormalization(x, scale, bias)    or    y = RMSNormalization(x, scale)

    The square may be a Pow or a Mul. The norm may divide by the root, or multiply by its
    Reciprocal, by 1 / root or by a power of -0.5. The scale may be on either side of its product,
    or multiply the root first; a norm without a scale gets ones. A half tensor that is cast to
    fp32, normalized and cast back before it is scaled becomes one op on the half tensor
    (``stash_type`` 1), which rounds at the same place.

    Needs: dtypes and ranks, and fixed sizes of the axes normalized. Leaves alone: means over other
    axes than the last ones; float64, since the standard op computes in fp32; a scale that is not
    one number for each feature, which stays a Mul after the op; residual sums before the norm.
    """

    makes: ClassVar[tuple[str, ...]] = ("LayerNormalization", "RMSNormalization")

    def sites(self, graph: Graph) -> Iterable[ir.Node]:
        """Every product with, or quotient by, the root of a mean."""
        return (node for node in nodes_of(graph, "Mul", "Div") if divides_by_root_mean(node))

    def rewrite(self, graph: Graph, node: ir.Node) -> str:
        """Fuse around the node that divides by the root."""
        norm = _Norm.of(match_norm(node))
        norm.absorb_cast()
        norm.absorb_scale()
        before = Inserter(norm.end)
        inputs = norm.inputs(before)
        y = before.op(norm.op_type, *inputs, axis=-norm.axes, epsilon=norm.epsilon, stash_type=1)
        replace_output(norm.end.outputs[0], y)
        remove_unused(norm.end)
        last = "the last axis" if norm.axes == 1 else f"the last {norm.axes} axes"
        return f"{norm.op_type} over {last}, epsilon {norm.epsilon:g}"


@dataclass
class _Norm:
    """A norm, and the casts, scale and bias after it that the op takes in."""

    op_type: str
    x: ir.Value
    axes: int
    epsilon: float
    end: ir.Node
    sizes: tuple[int, ...] | None
    scale: ir.Value | None = None
    bias: ir.Value | None = None

    @classmethod
    def of(cls, found: UnfusedNorm) -> _Norm:
        """The norm alone.

        Raises:
            Miss: no standard op computes it.
        """
        if found.x.dtype is None or found.x.dtype.name not in _TYPES:
            kind = "an unknown type" if found.x.dtype is None else found.x.dtype.name.lower()
            raise Miss(f"it is computed in {kind}, and the standard op computes in fp32")
        sizes = [axis_size(found.x, axis) for axis in range(-found.axes, 0)]
        known = tuple(size for size in sizes if size is not None)
        norm = cls(
            "LayerNormalization" if found.centred else "RMSNormalization",
            found.x,
            found.axes,
            found.epsilon,
            found.end,
            known if len(known) == len(sizes) else None,
        )
        if found.factor is not None:
            if not norm.is_features(found.factor):
                raise Miss("the factor on the root is not one number for each feature")
            norm.scale = found.factor
        return norm

    def absorb_cast(self) -> None:
        """Take in the casts to fp32 and back, if the scale comes after them."""
        source, after = made_by(self.x, "Cast"), only_use(self.end.outputs[0])
        half = source.inputs[0] if source is not None else None
        if half is None or half.dtype is None or self.scale is not None:
            return
        if self.x.dtype != _STASH or half.dtype.name not in _TYPES:
            return
        if standard(after, "Cast") and after is not None and after.outputs[0].dtype == half.dtype:
            self.x, self.end = half, after

    def absorb_scale(self) -> None:
        """Take in the scale, and the bias of a LayerNorm.

        Raises:
            Miss: there is no scale, and ones cannot stand in for it.
        """
        if self.scale is None:
            self.scale = self._absorb("Mul")
        if self.scale is None and self.sizes is None:
            raise Miss("the size of the axes normalized is not fixed, and there is no scale")
        if self.op_type == "LayerNormalization":
            self.bias = self._absorb("Add")

    def _absorb(self, op_type: str) -> ir.Value | None:
        after, y = only_use(self.end.outputs[0]), self.end.outputs[0]
        if after is None or not standard(after, op_type):
            return None
        value = after.inputs[1] if after.inputs[0] is y else after.inputs[0]
        if value is None or not self.is_features(value):
            return None
        self.end = after
        return value

    def is_features(self, value: ir.Value) -> bool:
        """Whether a value has one number for each place of the axes normalized, in y's dtype."""
        dims = rank(value)
        if self.sizes is None or dims is None or value.dtype != self.end.outputs[0].dtype:
            return False
        sizes = tuple(axis_size(value, axis) for axis in range(-dims, 0))
        return sizes == (1,) * (dims - self.axes) + self.sizes

    def inputs(self, before: Inserter) -> list[ir.Value]:
        """The inputs of the op: x, scale, and bias if there is one."""
        assert self.x.dtype is not None
        if self.scale is None:
            ones = before.constant(np.ones(self.sizes or (), self.x.dtype.numpy()))
            return [self.x, ones, *self._features(before, self.bias)]
        return [self.x, *self._features(before, self.scale), *self._features(before, self.bias)]

    def _features(self, before: Inserter, value: ir.Value | None) -> list[ir.Value]:
        if value is None:
            return []
        if rank(value) == self.axes:
            return [value]
        return [before.op("Reshape", value, before.integers(*(self.sizes or ())))]
