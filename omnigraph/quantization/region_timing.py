"""How long a target takes for the linear layers of one activation, in float and quantized.

A region is all linear layers of one activation, which is quantized once for them, with their
biases. It is compiled by itself and timed on the target's own runtime, in each precision in turns,
so that other load of the machine affects all precisions alike.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from omnigraph.contract.graph_check import GraphRunner
from omnigraph.contract.reference import Reference
from omnigraph.emitter import Emitter
from omnigraph.graph import MODULE_KEY, OPSET, Graph
from omnigraph.lowering import Lowered, Target
from omnigraph.passes.analysis.quantization.linear_layers import (
    LinearLayer,
    bias_of,
    by_activation,
    linear_layers,
)
from omnigraph.passes.analysis.quantization.scheme import Scheme
from omnigraph.passes.analysis.quantization.statistics import Statistics
from omnigraph.passes.base import Pass, run_passes
from omnigraph.passes.calibrated_pass import QuantizationFacts
from omnigraph.passes.insert_qdq import InsertQdq
from omnigraph.precision import FLOAT
from omnigraph.program import Case, Dim, TensorSpec
from omnigraph.progress import Progress, silent
from omnigraph.tracing.names import output_specs

_INPUT = "activation"
_SHAPE = ("batch", "sequence")
#: Runs of each precision: warm-up, and rounds that are timed.
_WARM, _ROUNDS = 3, 25
#: The least gain of a quantized region, relative: less is noise of the machine.
LEAST_GAIN = 0.02


@dataclass(frozen=True, eq=False)
class Region:
    """The linear layers of one activation.

    Args:
        linear_layers: of one Graph.
    """

    linear_layers: tuple[LinearLayer, ...]

    @property
    def kind(self) -> tuple[object, ...]:
        """All that its time depends on; equal for the same place in every layer."""
        return tuple(
            (
                linear.contraction,
                linear.channels,
                bias_of(linear.node) is not None,
                linear.transpose is not None,
            )
            for linear in self.linear_layers
        )


@dataclass(frozen=True)
class RegionTimes:
    """The median milliseconds of one run, by precision, with "float" among them."""

    milliseconds: Mapping[str, float]

    def pays(self, precision: str) -> bool:
        """Whether a precision is faster than float."""
        return self.milliseconds[precision] < self.milliseconds[FLOAT] * (1 - LEAST_GAIN)

    def scaled(self, part: float) -> RegionTimes:
        """The times of a part of the region, in proportion."""
        return RegionTimes({name: value * part for name, value in self.milliseconds.items()})


def regions(graph: Graph) -> list[Region]:
    """Every region of a Graph in float."""
    return [Region(tuple(group)) for _, group in by_activation(linear_layers(graph))]


@dataclass(frozen=True)
class Timing:
    """How regions are compiled and timed.

    Args:
        target: whose compiler and runtime to use; it must run here.
        base: the precision of the artifact, which decides how floats are computed.
        schemes: the schemes to compare with float, by precision.
        tokens: positions of one run.
        facts: statistics from calibration, and weights rounded with compensation.
        options: of the target.
    """

    target: Target
    base: str
    schemes: Mapping[str, Scheme]
    tokens: int
    facts: QuantizationFacts
    options: Mapping[str, str]


def time_regions(
    found: Sequence[Region], timing: Timing, progress: Progress = silent
) -> Iterator[RegionTimes]:
    """Time each region; regions of one kind are timed once."""
    known: dict[tuple[object, ...], RegionTimes] = {}
    for region in found:
        if region.kind not in known:
            names = ", ".join(linear.layer for linear in region.linear_layers)
            progress(f"time {names}")
            known[region.kind] = _Timer(region, timing).times()
        yield known[region.kind]


class _Timer:
    """Compiles one region in several precisions, and runs them in turns."""

    def __init__(self, region: Region, timing: Timing) -> None:
        self._timing = timing
        self._graph = _graph_of(region)
        shape = (1, timing.tokens, region.linear_layers[0].contraction)
        self._feeds = {_INPUT: _random_activation(shape, region, timing.facts.statistics)}

    def times(self) -> RegionTimes:
        """The median time of each precision, and of float."""
        outputs = GraphRunner(self._graph).run(self._feeds)
        golden = Reference(Case("region", {}), self._feeds, outputs)
        timing = self._timing
        emitter = Emitter(timing.target, timing.base, timing.options, golden)
        taken: dict[str, list[float]] = {}
        with ExitStack() as stack:
            runs = {}
            for precision in (FLOAT, *timing.schemes):
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                session = emitter.session(self._lowered(precision), folder)
                runs[precision] = stack.enter_context(session).run
            for round_ in range(_WARM + _ROUNDS):
                for precision, run in runs.items():
                    begun = time.perf_counter()
                    run(self._feeds)
                    if round_ >= _WARM:
                        taken.setdefault(precision, []).append(time.perf_counter() - begun)
        return RegionTimes({name: 1e3 * statistics.median(all_) for name, all_ in taken.items()})

    def _lowered(self, precision: str) -> Lowered:
        graph = self._graph.clone()
        passes: list[Pass] = [*self._timing.target.pipeline(self._timing.base).kernels]
        if precision != FLOAT:
            scheme = self._timing.schemes[precision]
            passes.insert(0, InsertQdq(facts=self._timing.facts, scheme=scheme))
        outputs = output_specs(graph)
        run_passes(graph, passes)
        inputs = (TensorSpec(_INPUT, "float32", (*_SHAPE, self._feeds[_INPUT].shape[-1])),)
        return Lowered("region", graph, inputs, outputs, {dim: Dim() for dim in _SHAPE})


def _graph_of(region: Region) -> Graph:
    """The linear layers of a region, with their biases, as a Graph of their own."""
    terms = region.linear_layers[0].contraction
    activation = ir.Value(
        name=_INPUT,
        type=ir.TensorType(ir.DataType.FLOAT),
        shape=ir.Shape([*_SHAPE, terms]),
    )
    nodes: list[ir.Node] = []
    weights: dict[str, ir.Value] = {}

    def weight(value: ir.Value) -> ir.Value:
        assert value.name is not None
        if value.name not in weights:
            weights[value.name] = ir.Value(
                name=value.name, type=value.type, shape=value.shape, const_value=value.const_value
            )
        return weights[value.name]

    def add(op: str, inputs: list[ir.Value], layer: str, size: list[object]) -> ir.Value:
        node = ir.node(op, inputs, {"perm": [1, 0]} if op == "Transpose" else {})
        node.metadata_props[MODULE_KEY] = layer
        node.name = f"node_{len(nodes)}"
        made = node.outputs[0]
        made.name = f"value_{len(nodes)}"
        made.type, made.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(size)  # type: ignore[arg-type]
        nodes.append(node)
        return made

    outputs = []
    for linear in region.linear_layers:
        matrix, size = weight(linear.weight), [*_SHAPE, linear.channels]
        if linear.channel_axis == 0:
            matrix = add("Transpose", [matrix], linear.layer, [terms, linear.channels])
        made = add("MatMul", [activation, matrix], linear.layer, size)
        if (found := bias_of(linear.node)) is not None:
            bias = found[0].inputs[found[1]]
            assert bias is not None
            made = add("Add", [made, weight(bias)], linear.layer, size)
        outputs.append(made)
    graph = ir.Graph(
        [activation],
        outputs,
        nodes=nodes,
        initializers=list(weights.values()),
        opset_imports={"": OPSET},
        name="region",
    )
    return ir.Model(graph, ir_version=10)


def _random_activation(
    shape: tuple[int, ...], region: Region, seen: Statistics | None
) -> np.ndarray:
    """Normal numbers with the observed root mean square."""
    known = seen.observations.get(region.linear_layers[0].weight.name or "") if seen else None
    size = known.rms if known is not None else 1.0
    return np.random.default_rng(0).normal(0, size, shape).astype(np.float32)
