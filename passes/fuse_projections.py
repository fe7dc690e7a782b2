"""Fuses the linear layers of one input into one with all of their weights side by side."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from omnigraph.graph import Graph
from omnigraph.passes.insertion import Inserter
from omnigraph.passes.matching import axis_size, nodes_of, only_use, rank, replace_output, standard
from omnigraph.passes.site_pass import Miss, SitePass


@dataclass(frozen=True)
class FuseProjections(SitePass):
    """Fuse the MatMuls of one input into one: queries, keys and values, or gate and up.

    Before::

        q, k, v = Add(MatMul(x, w_q), b_q), Add(MatMul(x, w_k), b_k), Add(MatMul(x, w_v), b_v)

    After, with weights and biases that are joined when they are written, not in memory::

        q, k, v = Split(Add(MatMul(x, [w_q | w_k | w_v]), [b_q | b_k | b_v]), axis=-1)

    In a cross-attention, keys and values read another input than the queries, and are fused with
    each other. The order of sums within an element does not change.

    No target's pipeline has this pass, since it was measured to make none faster
    (``omnigraph/lowering/onnx/kernels.py``). ``--passes fuse-projections`` adds it.

    Needs: weights [C, N] as initializers that nothing else reads; shapes; a bias in every MatMul or
    in none. Leaves alone: a single MatMul of an input; weights of different types.

    Args:
        most_columns: MatMuls with a wider result, such as logits, are left alone.
    """

    most_columns: int = 1 << 15

    def sites(self, graph: Graph) -> Iterable[ir.Node]:
        """The first MatMul of each input that has more than one."""
        first: dict[ir.Value, ir.Node] = {}
        several: dict[ir.Node, None] = {}
        for node in nodes_of(graph, "MatMul"):
            value = node.inputs[0]
            if value is None or not _is_weight(node.inputs[1]):
                continue
            if value in first:
                several[first[value]] = None
            first.setdefault(value, node)
        yield from several

    def rewrite(self, graph: Graph, node: ir.Node) -> str:
        """Fuse all MatMuls of the input of one."""
        shared = node.inputs[0]
        assert shared is not None
        found = [_projection(user) for user in _matmuls(shared) if user.graph is node.graph]
        projections = [p for p in found if p.columns <= self.most_columns]
        with_bias = [p for p in projections if p.bias is not None]
        if with_bias and len(with_bias) != len(projections):
            raise Miss("some of its products have a bias and some have not")
        if len(projections) < 2:
            raise Miss(f"only one of its products has at most {self.most_columns} columns")
        if len({p.weight.dtype for p in projections}) > 1:
            raise Miss("the weights are of different types")
        before = Inserter(node)
        weight = _side_by_side(graph, [p.weight for p in projections])
        result = before.op("MatMul", shared, weight)
        if with_bias:
            biases = [p.bias for p in projections if p.bias is not None]
            result = before.op("Add", result, _side_by_side(graph, biases))
        sizes = before.integers(*(p.columns for p in projections))
        split = before.node("Split", result, sizes, outputs=len(projections), axis=-1)
        for projection, output in zip(projections, split.outputs, strict=True):
            old = projection.result
            output.type, output.shape = old.type, old.shape
            replace_output(old, output)
            for done in projection.nodes:
                assert done.graph is not None
                done.graph.remove(done, safe=True)
        for projection in projections:
            for value in (projection.weight, projection.bias):
                if value is not None and value.name is not None:
                    graph.graph.initializers.pop(value.name)
        graph.graph.sort()
        return f"one MatMul of {len(projections)}, {sum(p.columns for p in projections)} columns"


@dataclass(frozen=True)
class _Projection:
    """A MatMul with a weight, and the bias added to it, if there is one."""

    nodes: tuple[ir.Node, ...] = field(compare=False)
    weight: ir.Value
    bias: ir.Value | None
    columns: int

    @property
    def result(self) -> ir.Value:
        return self.nodes[0].outputs[0]


def _is_weight(value: ir.Value | None) -> bool:
    return _is_stored(value) and rank(value) == 2


def _is_stored(value: ir.Value | None) -> bool:
    """Whether a value is an initializer that one node reads."""
    if value is None or value.const_value is None or not value.is_initializer():
        return False
    alone = len(list(value.uses())) == 1
    return alone and not value.is_graph_input() and not value.is_graph_output()


def _matmuls(shared: ir.Value) -> list[ir.Node]:
    """The MatMuls of a value with a weight, in the order of the Graph."""
    users = dict.fromkeys(user for user, index in shared.uses() if index == 0)
    return [u for u in users if standard(u, "MatMul") and _is_weight(u.inputs[1])]


def _projection(node: ir.Node) -> _Projection:
    weight = node.inputs[1]
    columns = axis_size(weight, 1)
    assert weight is not None and columns is not None
    added = only_use(node.outputs[0])
    if standard(added, "Add") and added is not None:
        for bias in added.inputs:
            if _is_stored(bias) and rank(bias) == 1 and axis_size(bias, 0) == columns:
                return _Projection((added, node), weight, bias, columns)
    return _Projection((node,), weight, None, columns)


def _side_by_side(graph: Graph, values: Sequence[ir.Value]) -> ir.Value:
    """Initializers joined along their last axis; they are joined when they are read."""
    tensors = [value.const_value for value in values]
    first = tensors[0]
    assert first is not None
    shape = ir.Shape([*first.shape.numpy()[:-1], sum(axis_size(v, -1) or 0 for v in values)])
    name = _joined_name([value.name or "" for value in values])

    def join() -> ir.TensorProtocol:
        arrays = [tensor.numpy() for tensor in tensors if tensor is not None]
        return ir.tensor(np.concatenate(arrays, axis=-1), dtype=first.dtype, name=name)

    lazy = ir.LazyTensor(join, dtype=first.dtype, shape=shape, name=name)
    joined = ir.Value(name=name, shape=shape, type=ir.TensorType(first.dtype), const_value=lazy)
    graph.graph.register_initializer(joined)
    return joined


def _joined_name(names: Sequence[str]) -> str:
    """One name for several: layer.query.weight, layer.key.weight -> layer.query+key.weight."""
    parts = [name.split(".") for name in names]
    if len({len(part) for part in parts}) == 1:
        columns = [list(dict.fromkeys(column)) for column in zip(*parts, strict=True)]
        return ".".join("+".join(column) for column in columns)
    return "+".join(names)
