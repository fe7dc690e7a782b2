"""How large a fault is, beside the noise of the precision: for those that are not found."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.faults.models import traced
from benchmarks.faults.planting import Outcome, folded, honest
from omnigraph.contract.comparison import Outputs
from omnigraph.contract.graph_check import GraphRunner
from omnigraph.contract.tolerance import deviations, output_scales
from omnigraph.exporting.stage_check import unrounded
from omnigraph.graph import Graph
from omnigraph.input_sets import contract_cases
from omnigraph.inspection.node_by_node import NodeRunner, compared, showing_all
from omnigraph.passes.emulate_bfloat16 import EmulateBfloat16
from omnigraph.program import Case, fit_sizes
from omnigraph.tracing.trace import reference_for

#: Sizes beyond those that the contract tries.
_LONG = Case("longer", {"batch": 1, "sequence": 180, "past": 8, "decoder_sequence": 150}, seed=99)


@dataclass(frozen=True)
class Size:
    """Relative root mean squares.

    Args:
        outputs: the change of the output that changes most, without the rounding of activations.
        longer: the same at lengths beyond those of the contract's input sets.
        noise: of that output, from torch, in the artifact without the fault.
        site: the change of the node that changes most, from the same inputs.
        site_noise: of that node, by rounding alone.
    """

    outputs: float
    longer: float
    noise: float
    site: float
    site_noise: float


def size_of(outcome: Outcome) -> Size:
    """The size of a fault that was planted."""
    before, after = outcome.planted.before, outcome.planted.after
    assert before is not None and after is not None
    program, _ = traced(outcome.model)
    feeds = [reference_for(program, case).feeds for case in contract_cases(program)]
    longer = Case("longer", fit_sizes(program, _LONG.sizes), seed=_LONG.seed)
    change, output = _change(before, after, feeds)
    beyond, _ = _change(before, after, [reference_for(program, longer).feeds])
    _, checks = honest(outcome.model, outcome.target, outcome.precision)
    noise = max((c.deviation.rms for c in checks if c.output == output), default=0.0)
    site, node = _at_sites(before, after, feeds[-1])
    float_graph = folded(outcome.model, outcome.target)
    site_noise = _at_node(float_graph, before, feeds[-1], node)
    return Size(change, beyond, noise, site, site_noise)


def _change(before: Graph, after: Graph, feeds: list[Outputs]) -> tuple[float, str]:
    """The largest change of an output, and its name; with rounding where there is none without."""
    found = (0.0, "")
    for prepare in (unrounded, _rounded):
        one, other = GraphRunner(prepare(before)), GraphRunner(prepare(after))
        expected, changed = [one.run(f) for f in feeds], [other.run(f) for f in feeds]
        scales = output_scales(expected)
        for a, b in zip(changed, expected, strict=True):
            for name, deviation in deviations(a, b, scales).items():
                found = max(found, (deviation.rms, name))
        if found[0] > 0:
            break
    return found


def _rounded(graph: Graph) -> Graph:
    copy = graph.clone()
    EmulateBfloat16()(copy)
    return copy


def _at_sites(before: Graph, after: Graph, feeds: Outputs) -> tuple[float, str]:
    """The largest change of a node from the same inputs, and the name of that node."""
    recorded, runners = _recorded(before, after, feeds)
    expected, found = (runner.run(recorded, feeds) for runner in runners)
    changes = [(d.rms, node.name or "") for node, d in compared(after, found, expected)]
    return max(changes, default=(0.0, ""))


def _at_node(before: Graph, after: Graph, feeds: Outputs, name: str) -> float:
    recorded, runners = _recorded(before, after, feeds)
    expected, found = (runner.run(recorded, feeds) for runner in runners)
    return max(
        (d.rms for node, d in compared(after, found, expected) if node.name == name), default=0.0
    )


def _recorded(
    before: Graph, after: Graph, feeds: Outputs
) -> tuple[Outputs, tuple[NodeRunner, NodeRunner]]:
    shown = showing_all(before)
    names = {value.name or "" for value in shown.graph.outputs}
    return GraphRunner(_rounded(shown)).run(feeds), (
        NodeRunner(before, names),
        NodeRunner(after, names),
    )
