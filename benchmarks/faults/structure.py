"""Faults in the structure: residuals, norms, activations, axes, slices, constants, outputs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import onnx_ir as ir

from benchmarks.faults.attention import rolled
from benchmarks.faults.fault import (
    Fault,
    Place,
    array_of,
    at,
    fresh,
    module_of,
    nodes,
    read_instead,
)
from omnigraph.graph import Graph
from omnigraph.passes.insertion import Inserter
from omnigraph.passes.matching import input_at

Places = Callable[[Graph], Iterator[Place]]
_LATE = ("passes", "lowering", "artifact")
_NORMS = ("LayerNormalization", "RMSNormalization")


def _residuals(graph: Graph) -> Iterator[ir.Node]:
    for node in nodes(graph, "Add"):
        computed = all(array_of(value) is None for value in node.inputs)
        dtype = node.outputs[0].dtype
        block = re.search(r"(blocks|layer|h)\.\d+(\.attention\.output|\.output)?$", module_of(node))
        if computed and block and dtype is not None and dtype.is_floating_point():
            yield node


def _residual(change: Callable[[ir.Node], object]) -> Places:
    def places(graph: Graph) -> Iterator[Place]:
        for node in _residuals(graph):
            readers = [reader for reader, _ in node.outputs[0].uses()]
            yield at(node, lambda n=node: change(n), *readers)

    return places


def _keep(index: int) -> Callable[[ir.Node], object]:
    def change(node: ir.Node) -> None:
        kept = node.inputs[index]
        assert kept is not None
        read_instead(node.outputs[0], kept)

    return change


def _doubled(node: ir.Node) -> None:
    before = Inserter(node)
    fresh(node, 0, lambda value: before.op("Add", value, value))


def _attribute(name: str, value: object, *op_types: str) -> Places:
    def places(graph: Graph) -> Iterator[Place]:
        for node in nodes(graph, *op_types):
            was = node.attributes.get(name)
            if value == (was.value if was is not None else "none"):
                continue

            def plant(node: ir.Node = node) -> None:
                make = ir.AttrFloat32 if isinstance(value, float) else ir.AttrString
                make = ir.AttrInt64 if isinstance(value, int) else make
                node.attributes[name] = make(name, value)  # type: ignore[arg-type]

            yield at(node, plant)

    return places


def _op(one: str, other: str) -> Places:
    def places(graph: Graph) -> Iterator[Place]:
        for node in nodes(graph, one):

            def plant(node: ir.Node = node) -> None:
                node.op_type = other
                node.attributes.clear()

            yield at(node, plant)

    return places


def _mean_kept(graph: Graph) -> Iterator[Place]:
    for node in nodes(graph, "LayerNormalization"):

        def plant(node: ir.Node = node) -> None:
            node.op_type = "RMSNormalization"
            node.resize_inputs(2)

        yield at(node, plant)


def _gelu_sigmoid(graph: Graph) -> Iterator[Place]:
    for node in nodes(graph, "Gelu"):
        before = Inserter(node)

        def plant(node: ir.Node = node, before: Inserter = before) -> None:
            x = node.inputs[0]
            assert x is not None
            gate = before.op("Sigmoid", before.op("Mul", x, before.number(1.702, x)))
            node.op_type = "Mul"
            node.attributes.clear()
            node.resize_inputs(2)
            node.replace_input_with(1, gate)

        yield at(node, plant)


def _transposes_as_reshapes(graph: Graph) -> Iterator[Place]:
    for node in nodes(graph, "Transpose"):
        perm = list(node.attributes.get_ints("perm", ()))
        if perm != [0, 2, 1, 3]:
            continue

        def plant(node: ir.Node = node) -> None:
            before, made = Inserter(node), node.outputs[0]
            users = list(made.uses())
            shape = before.op("Shape", before.op("Transpose", node.inputs[0], perm=[0, 2, 1, 3]))
            wrong = before.op("Reshape", node.inputs[0], shape)
            wrong.shape, wrong.type = made.shape, made.type
            for user, index in users:
                user.replace_input_with(index, wrong)

        yield at(node, plant, *(reader for reader, _ in node.outputs[0].uses()))


def _softmax_axis(graph: Graph) -> Iterator[Place]:
    for node in nodes(graph, "Softmax"):
        yield at(node, lambda n=node: n.attributes.add(ir.AttrInt64("axis", 2)))


def _order_of(op_type: str) -> Places:
    """Two inputs of a node that are not alike, exchanged."""

    def places(graph: Graph) -> Iterator[Place]:
        for node in nodes(graph, op_type):
            first, second = input_at(node, 0), input_at(node, 1)
            if first is None or second is None or first is second or len(node.inputs) != 2:
                continue

            def plant(node: ir.Node = node, a: ir.Value = first, b: ir.Value = second) -> None:
                node.replace_input_with(0, b)
                node.replace_input_with(1, a)

            yield at(node, plant)

    return places


def _parts_exchanged(graph: Graph) -> Iterator[Place]:
    for node in nodes(graph, "Split"):
        if len(node.outputs) < 2:
            continue

        def plant(node: ir.Node = node) -> None:
            one, other = node.outputs[-2:]
            uses = [(tuple(one.uses()), other), (tuple(other.uses()), one)]
            for users, new in uses:
                for user, index in users:
                    user.replace_input_with(index, new)

        readers = [reader for value in node.outputs for reader, _ in value.uses()]
        yield at(node, plant, *readers)


def _slice(index: int) -> Places:
    """The start or the end of a Slice off by one."""

    def places(graph: Graph) -> Iterator[Place]:
        for node in nodes(graph, "Slice"):
            array = array_of(input_at(node, index))
            if array is not None and array.size == 1 and abs(int(array.reshape(-1)[0])) < 1 << 20:
                new = Inserter(node).constant(array + 1)
                yield at(node, lambda n=node, v=new: n.replace_input_with(index, v))

    return places


def _ids(graph: Graph) -> Iterator[Place]:
    for node in nodes(graph, "Gather"):
        ids = node.inputs[1]
        if ids is None or not ids.is_graph_input():
            continue

        def plant(node: ir.Node = node) -> None:
            before = Inserter(node)
            fresh(
                node,
                1,
                lambda v: before.op(
                    "Min", before.op("Add", v, before.number(1, v)), before.number(159, v)
                ),
            )

        yield at(node, plant, *(reader for reader, _ in node.outputs[0].uses()))


def _float_constant(factor: float) -> Places:
    """A float scalar off."""

    def places(graph: Graph) -> Iterator[Place]:
        for node in nodes(graph, "Mul", "Div", "Add", "Pow"):
            for index, value in enumerate(node.inputs):
                array = array_of(value)
                if array is None or array.size != 1 or array.dtype.kind != "f":
                    continue
                if 1e-4 < abs(float(array.reshape(-1)[0])) < 1e4:
                    new = Inserter(node).constant(array * array.dtype.type(factor))
                    yield at(node, lambda n=node, i=index, v=new: n.replace_input_with(i, v))

    return places


def _result(make: Callable[[Inserter, ir.Value], ir.Value]) -> Places:
    """The first output of the program is another value."""

    def places(graph: Graph) -> Iterator[Place]:
        output = graph.graph.outputs[0]
        maker = output.producer()
        if maker is None or output.dtype is None or not output.dtype.is_floating_point():
            return

        def plant() -> None:
            last = list(graph.graph)[-1]
            probe = ir.node("Identity", [output])
            probe.metadata_props.update(maker.metadata_props)
            last.append(probe)
            made = make(Inserter(probe), output)
            made.type, made.shape = output.type, output.shape
            output.name, made.name = f"{output.name}_right", output.name
            graph.graph.outputs[0] = made
            graph.graph.remove(probe, safe=True)

        yield at(maker, plant)

    return places


def _residual_stream(make: Callable[[Inserter, ir.Value], ir.Value]) -> Places:
    """What a norm reads is another value."""

    def places(graph: Graph) -> Iterator[Place]:
        for node in nodes(graph, *_NORMS):
            yield at(node, lambda n=node: fresh(n, 0, lambda value: make(Inserter(n), value)))

    return places


def _through(dtype: ir.DataType) -> Callable[[Inserter, ir.Value], ir.Value]:
    def make(before: Inserter, value: ir.Value) -> ir.Value:
        return before.op("Cast", before.op("Cast", value, to=dtype), to=value.dtype)

    return make


def _clipped(limit: float) -> Callable[[Inserter, ir.Value], ir.Value]:
    return lambda b, v: b.op("Clip", v, b.number(-limit, v), b.number(limit, v))


def _times(factor: float) -> Callable[[Inserter, ir.Value], ir.Value]:
    return lambda b, v: b.op("Mul", v, b.number(factor, v))


def _unnormed(graph: Graph) -> Iterator[Place]:
    for node in nodes(graph, *_NORMS):
        source, made = node.inputs[0], node.outputs[0]
        for reader, index in list(made.uses())[:1]:
            if source is not None and source.dtype == made.dtype:
                yield at(
                    node,
                    lambda r=reader, i=index, s=source: r.replace_input_with(i, s),
                    reader,
                )


def _nodes_input(number: int) -> Places:
    """A product reads what another product of its block reads."""

    def places(graph: Graph) -> Iterator[Place]:
        products = [
            n for n in nodes(graph, "MatMul")
            if n.inputs[0] is not None and n.inputs[0].shape is not None
        ]  # fmt: skip
        for one, other in zip(products, products[number:], strict=False):
            a, b = one.inputs[0], other.inputs[0]
            if a is None or b is None or a is b:
                continue
            if a.shape == b.shape and a.dtype == b.dtype:
                yield at(other, lambda n=other, v=a: n.replace_input_with(0, v))

    return places


FAULTS: tuple[Fault, ...] = (
    Fault("residual lost", _residual(_keep(1)), _LATE),
    Fault("branch lost", _residual(_keep(0)), ("trace", *_LATE)),
    Fault("residual doubled", _residual(_doubled), ("passes",)),
    Fault("residual subtracted", _residual(lambda n: setattr(n, "op_type", "Sub")), _LATE),
    Fault("a norm's epsilon 1e-3", _attribute("epsilon", 1e-3, *_NORMS), _LATE),
    Fault("a norm's epsilon 1e-6", _attribute("epsilon", 1e-6, *_NORMS), _LATE),
    Fault("a norm's epsilon 0", _attribute("epsilon", 0.0, *_NORMS), ("passes", "artifact")),
    Fault("mean kept in a norm", _mean_kept, _LATE),
    Fault("a norm left out", _unnormed, ("trace", "passes")),
    Fault("tanh for erf in gelu", _attribute("approximate", "tanh", "Gelu"), _LATE),
    Fault("erf for tanh in gelu", _attribute("approximate", "none", "Gelu"), _LATE),
    Fault("gelu by a sigmoid", _gelu_sigmoid, _LATE),
    Fault("relu for gelu", _op("Gelu", "Relu"), _LATE),
    Fault("tanh for sigmoid", _op("Sigmoid", "Tanh"), ("trace", "passes")),
    Fault("reshape for transpose", _transposes_as_reshapes, ("trace", *_LATE)),
    Fault("softmax over queries", _softmax_axis, ("trace", "lowering")),
    Fault("factors of a product exchanged", _order_of("MatMul"), ("trace",)),
    Fault("halves exchanged", _order_of("Concat"), ("trace", "passes")),
    Fault("parts of a split exchanged", _parts_exchanged, ("trace", "passes")),
    Fault("terms of a difference exchanged", _order_of("Sub"), ("trace", "passes", "lowering")),
    Fault("start of a slice off by one", _slice(1), ("trace", "passes")),
    Fault("end of a slice off by one", _slice(2), ("trace", "passes")),
    Fault("token ids one larger", _ids, ("trace", *_LATE)),
    Fault("a constant 1% off", _float_constant(1.01), ("trace", "passes")),
    Fault("a constant 0.1% off", _float_constant(1.001), ("trace", "passes")),
    Fault("the output 0.1% larger", _result(_times(1.001)), _LATE),
    Fault("the output 1% larger", _result(_times(1.01)), _LATE),
    Fault("the output shifted by a token", _result(lambda b, v: rolled(b, v, 1)), _LATE),
    Fault("rows of the batch exchanged", _result(lambda b, v: rolled(b, v, 0)), ("passes",)),
    Fault("the output through fp16",
          _result(_through(ir.DataType.FLOAT16)), ("passes", "artifact")),
    Fault("a norm's input through fp16",
          _residual_stream(_through(ir.DataType.FLOAT16)), ("passes", "artifact")),
    Fault("a norm's input through bf16",
          _residual_stream(_through(ir.DataType.BFLOAT16)), _LATE),
    Fault("a norm's input clipped at 2", _residual_stream(_clipped(2.0)), _LATE),
    Fault("a product reads another's input", _nodes_input(3), ("trace", "passes", "artifact")),
)  # fmt: skip
