"""The attentions of a program whose heads can be removed, and how important each head is."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from omnigraph.contract.graph_check import GraphRunner
from omnigraph.contract.reference import Reference
from omnigraph.graph import MODULE_KEY, Graph
from omnigraph.passes.analysis.pruning.head_layout import HeadLayout
from omnigraph.passes.analysis.pruning.output_projection import (
    OutputProjection,
    find_output_projection,
)
from omnigraph.passes.matching import axis_size, nodes_of, rank
from omnigraph.passes.site_pass import Miss
from omnigraph.program import Program
from omnigraph.tracing.names import own_path


@dataclass(frozen=True)
class HeadSite:
    """One attention of a Graph, and the output projection of its heads.

    Args:
        path: the module path of the attention, which is its name.
        heads: the number of query heads.
        projection: the output projection, and the values on the way to it.
    """

    path: str
    heads: int
    projection: OutputProjection

    @property
    def module(self) -> str:
        """The module path of the output projection."""
        return self.projection.node.metadata_props.get(MODULE_KEY, "")

    def gate(self) -> ir.Value | None:
        """The gate [B, H, 1 or T, 1] on its heads that depends on the input, if there is one."""
        for _, gate in self.projection.gates:
            if rank(gate) == 4 and axis_size(gate, 1) == self.heads and axis_size(gate, 3) == 1:
                return gate
        return None

    def features(self, heads: Sequence[int]) -> list[int]:
        """The features of these heads in the input of the output projection."""
        return np.flatnonzero(np.isin(self.projection.owner, list(heads))).tolist()

    def energies(self, context: np.ndarray) -> np.ndarray:
        """The squared norm of what each head adds to the layer: [..., features] -> [H].

        With X the features of a head and W its rows, this is the squared norm of X W. Products of
        D by D are enough to compute it.
        """
        tensor = ir.convenience.get_const_tensor(self.projection.weight)
        assert tensor is not None
        rows = np.moveaxis(tensor.numpy(), self.projection.axis, 0).astype(np.float64)
        flat = context.reshape(-1, context.shape[-1]).astype(np.float64)
        found = np.empty(self.heads)
        for head in range(self.heads):
            at = self.features([head])
            found[head] = np.sum((flat[:, at].T @ flat[:, at]) * (rows[at] @ rows[at].T))
        return found


def head_sites(graph: Graph) -> tuple[dict[str, HeadSite], dict[str, str]]:
    """The attentions of a Graph by module path; and those that keep all heads, with the reason."""
    sites: dict[str, HeadSite] = {}
    whole: dict[str, str] = {}
    for node in nodes_of(graph, "Attention"):
        path = node.metadata_props.get(MODULE_KEY, "")
        if path in sites or path in whole:
            sites.pop(path, None)
            whole[path] = "two attentions are in this one module"
            continue
        try:
            layout = HeadLayout.of(node)
            projection = find_output_projection(node.outputs[0], *layout.output_axis())
        except Miss as miss:
            whole[path] = miss.reason
            continue
        sites[path] = HeadSite(path, layout.queries, projection)
    return sites, whole


def measured_importance(graph: Graph, references: Sequence[Reference]) -> dict[str, np.ndarray]:
    """How much each head adds to its layer over the input sets, after its gates: [H] by site."""
    probe = graph.clone()
    sites, _ = head_sites(probe)
    contexts = {path: site.projection.node.inputs[0] for path, site in sites.items()}
    del probe.graph.outputs[:]
    for value in contexts.values():
        assert value is not None
        probe.graph.outputs.append(value)
    runner = GraphRunner(probe) if contexts else None
    found = {path: np.zeros(site.heads) for path, site in sites.items()}
    for reference in references:
        assert runner is not None or not found
        arrays = runner.run(reference.feeds) if runner is not None else {}
        for path, value in contexts.items():
            assert value is not None and value.name is not None
            found[path] += sites[path].energies(arrays[value.name])
    return found


def not_silenceable(program: Program, sites: Mapping[str, HeadSite]) -> dict[str, str]:
    """The sites whose heads cannot be silenced in the torch model itself, with the reason."""
    modules = _modules(program)
    reason = "its output projection is no module, so torch cannot run without some of its heads"
    return {
        path: reason for path, s in sites.items() if not hasattr(modules.get(s.module), "weight")
    }


@contextlib.contextmanager
def silenced(
    program: Program, sites: Mapping[str, HeadSite], removed: Mapping[str, Sequence[int]]
) -> Iterator[None]:
    """Silence these heads of a program's torch model within the block.

    The output projection reads 0 for them, as after a gate of 0.
    """
    modules = _modules(program)
    hooks = [
        modules[sites[path].module].register_forward_pre_hook(
            _zeroing(sites[path].features(heads)), prepend=True
        )
        for path, heads in removed.items()
        if path in sites
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _zeroing(features: Sequence[int]) -> Callable[[Any, Any], Any]:
    def zero(_: Any, arguments: Any) -> Any:
        hidden = arguments[0].clone()
        hidden[..., list(features)] = 0
        return (hidden, *arguments[1:])

    return zero


def _modules(program: Program) -> dict[str, Any]:
    named = getattr(program.module, "named_modules", None)
    if named is None:
        return {}
    return {own_path(name, program.root): module for name, module in named()}
