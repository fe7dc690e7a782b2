"""Variants: more programs of the same model with fewer attention heads, in one artifact.

``heads=12,8`` adds two variants of each program, in which every attention keeps its 12, or 8, most
important heads. `PruneHeads` removes the others from the weights; the variants share all other
weights. A variant computes what the torch model computes with a gate of 0 on the heads that it
lacks, and it is compared with that.

Where heads have gates that depend on the input, and the program has no state, a variant has one
more output: ``missed_heads`` says whether a gate was open for a head that it lacks. If none was,
the variant's numbers are those of the whole model. So a Session can choose a variant by itself. It
runs the program ``gates``, which computes the gates that depend on no attention. It takes the
smallest variant that has every head with an open gate. If that variant missed a head in a later
layer, it runs the next larger one. It returns the numbers of the whole program.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from omnigraph.contract.graph_check import GraphRunner
from omnigraph.contract.greedy_tokens import GreedyTokens
from omnigraph.contract.reference import Reference
from omnigraph.errors import UsageError
from omnigraph.export_job import TracedProgram
from omnigraph.graph import Graph
from omnigraph.head_variants.gates import add_missed, gates_alone
from omnigraph.head_variants.sites import (
    HeadSite,
    head_sites,
    measured_importance,
    not_silenceable,
    silenced,
)
from omnigraph.passes.analysis.pruning.axis_slice import AxisSlice
from omnigraph.passes.analysis.pruning.head_removal import slice_output
from omnigraph.passes.analysis.pruning.importance import least_important, read_importance
from omnigraph.passes.analysis.pruning.slicer import KEPT
from omnigraph.passes.base import run_passes
from omnigraph.passes.eliminate_dead_code import EliminateDeadCode
from omnigraph.passes.pipelines import canonical, fused
from omnigraph.passes.prune_heads import PruneHeads
from omnigraph.passes.site_pass import Miss
from omnigraph.program import Program, TensorSpec
from omnigraph.tracing.names import output_specs
from omnigraph.tracing.trace import reference_for

#: The program of the gates that depend on no attention.
GATES = "gates"


@dataclass
class Variants:
    """The programs that an export adds, and their entry in the manifest."""

    programs: list[TracedProgram] = field(default_factory=list)
    manifest: dict[str, Any] = field(default_factory=dict)


def make_variants(
    programs: Sequence[Program],
    traced: Sequence[TracedProgram],
    keeps: Sequence[int],
    importance: str | None = None,
) -> Variants:
    """Make the variants of traced programs.

    Args:
        programs: the programs; their torch modules give the references.
        traced: the same programs, traced; they do not change.
        keeps: how many heads each attention keeps; a number that removes no head adds no variant.
        importance: a file with the importance of each head (`read_importance`). Without it, a
            head's importance is what it adds to its layer over the input sets of the contract.

    Raises:
        UsageError: no attention can lose heads, or the file is not of this model.
    """
    makers = [_Maker.of(*pair) for pair in zip(programs, traced, strict=True)]
    whole = {path: reason for maker in makers for path, reason in maker.whole.items()}
    scores = _scores(makers, importance, whole)
    most = max((len(array) for array in scores.values()), default=0)
    if not scores:
        raise _no_heads(whole)
    choices: list[dict[str, Any]] = []
    made = Variants()
    for keep in sorted(keeps):
        if keep >= most:
            continue
        choices.append(_make(made, makers, f"heads={keep}", scores, keep, whole))
    gates, thresholds = _gates(makers, choices)
    if gates is not None:
        made.programs.append(gates)
    for choice in choices:
        choice["automatic"] = [n for n in choice["automatic"] if _feeds(gates, makers, n)]
    made.manifest = {
        "heads": most,
        "gates": gates.name if gates is not None else None,
        "thresholds": thresholds,
        "choices": choices,
        "left_whole": dict(sorted(whole.items())),
    }
    return made


@dataclass
class _Maker:
    """Makes the variants of one program."""

    program: Program
    traced: TracedProgram
    graph: Graph
    sites: dict[str, HeadSite]
    whole: dict[str, str]

    @classmethod
    def of(cls, program: Program, traced: TracedProgram) -> _Maker:
        assert traced.graph is not None
        graph = traced.graph.clone()
        # Before position biases are folded: a bias that is computed by head is sliced too.
        run_passes(graph, (*canonical(), *fused()))
        sites, whole = head_sites(graph)
        whole |= not_silenceable(program, sites)
        return cls(program, traced, graph, sites, whole)

    def prune(
        self, removed: Mapping[str, tuple[int, ...]], *, missed: bool
    ) -> tuple[Graph, dict[str, str]]:
        """The Graph without these heads; and the sites that kept all of theirs, with the reason."""
        graph = self.graph.clone()
        if missed:
            add_missed(graph, removed)
        (record,) = run_passes(graph, [PruneHeads(tuple(sorted(removed.items())), boundary=True)])
        return graph, {f.module: f.reason or "" for f in record.findings if f.became is None}

    def trace(
        self, name: str, graph: Graph, removed: Mapping[str, tuple[int, ...]]
    ) -> TracedProgram:
        """The variant, with references from torch in which the removed heads are silenced."""
        run_passes(graph, [EliminateDeadCode()])
        graph.graph.name = name
        inputs = {value.name or "": value for value in graph.graph.inputs}
        slices = {v.name or "": v.meta[KEPT] for v in _boundary(graph) if KEPT in v.meta}
        with silenced(self.program, self.sites, removed):
            cases = [r.case for r in (*self.traced.references, self.traced.golden)]
            *references, golden = (_sliced(reference_for(self.program, c), slices) for c in cases)
        specs = tuple(_sliced_spec(spec, inputs[spec.name]) for spec in self.traced.inputs)
        return replace(
            self.traced,
            name=name,
            graph=graph,
            inputs=specs,
            outputs=output_specs(graph),
            references=references,
            golden=golden,
            greedy=GreedyTokens(),
        )


def _no_heads(whole: Mapping[str, str]) -> UsageError:
    reasons = "; ".join(f"{path}: {reason}" for path, reason in list(whole.items())[:3])
    return UsageError(
        "No attention of this model can lose heads",
        found=reasons or "no attention",
        hint="leave --variants out, or see `omnigraph explain MODEL --pass prune-heads`",
    )


def _scores(
    makers: Sequence[_Maker], importance: str | None, whole: dict[str, str]
) -> dict[str, np.ndarray]:
    """The importance of each head of each site that is not left whole."""
    given = read_importance(importance) if importance is not None else {}
    sites = {path: site for maker in makers for path, site in maker.sites.items()}
    for path, array in given.items():
        heads = sites[path].heads if path in sites else None
        if heads != len(array):
            raise UsageError(
                f"{importance} is not of this model: {path!r} has {len(array)} heads there",
                expected=f"{heads} heads" if heads else " or ".join(sites),
                hint="`omnigraph explain` lists the module path of each attention",
            )
    scores: dict[str, np.ndarray] = dict(given)
    for maker in makers:
        if set(maker.sites) - set(scores):
            found = measured_importance(maker.graph, maker.traced.references)
            scores = {**found, **scores}
    return {path: scores[path] for path in sites if path not in whole}


def _make(
    made: Variants,
    makers: Sequence[_Maker],
    name: str,
    scores: Mapping[str, np.ndarray],
    keep: int,
    whole: dict[str, str],
) -> dict[str, Any]:
    """Add the programs of one variant, and return its entry in the manifest."""
    while True:
        removed = {
            path: gone for path, gone in least_important(scores, keep).items() if path not in whole
        }
        pruned = {}
        left: dict[str, str] = {}
        for maker in makers:
            pruned[maker.traced.name], reasons = maker.prune(removed, missed=False)
            left |= {path: reason for path, reason in reasons.items() if path in removed}
        if not left:
            break
        whole |= left  # in all programs or in none
    if not removed:
        raise _no_heads(whole)
    shared = {
        value.name or "": value.meta[KEPT]
        for graph in pruned.values()
        for value in graph.graph.inputs
        if KEPT in value.meta
    }
    programs, automatic = {}, []
    for maker in makers:
        own, graph = maker.traced.name, pruned[maker.traced.name]
        _slice_outputs(graph, shared)
        gone = {path: heads for path, heads in removed.items() if path in maker.sites}
        same_tensors = not any(KEPT in value.meta for value in _boundary(graph))
        if not gone and same_tensors:
            programs[own] = own
            continue
        if same_tensors and any(maker.sites[path].gate() is not None for path in gone):
            graph, _ = maker.prune(removed, missed=True)
            automatic.append(own)
        programs[own] = f"{own}@{name}"
        made.programs.append(maker.trace(programs[own], graph, removed))
    kept = {
        path: [head for head in range(len(scores[path])) if head not in gone]
        for path, gone in sorted(removed.items())
    }
    return {"name": name, "programs": programs, "automatic": automatic, "kept": kept}


# The boundary of a program -----------------------------------------------------------------------


def _boundary(graph: Graph) -> Iterable[ir.Value]:
    return (*graph.graph.inputs, *graph.graph.outputs)


def _slice_outputs(graph: Graph, shared: Mapping[str, AxisSlice]) -> None:
    """Slice the outputs that are sliced inputs of another program, such as keys of the encoder."""
    for output in list(graph.graph.outputs):
        axis_slice = shared.get(output.name or "")
        if axis_slice is None or KEPT in output.meta:
            continue
        try:
            slice_output(graph, output, axis_slice)
        except Miss as miss:
            raise UsageError(
                f"Output {output.name!r} of program {graph.graph.name!r} cannot lose heads, which "
                "another program takes without them",
                found=miss.reason,
                hint="export programs with --variants one at a time: --programs NAME",
            ) from miss


def _sliced(reference: Reference, slices: Mapping[str, AxisSlice]) -> Reference:
    """A reference whose inputs and outputs have the heads of the variant alone."""

    def without(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {
            name: np.ascontiguousarray(array.take(slices[name].kept, axis=slices[name].axis))
            if name in slices
            else array
            for name, array in arrays.items()
        }

    return Reference(reference.case, without(reference.feeds), without(reference.outputs))


def _sliced_spec(spec: TensorSpec, value: ir.Value) -> TensorSpec:
    axis_slice = value.meta.get(KEPT)
    if axis_slice is None:
        return spec
    kept = len(axis_slice.kept)
    shape = tuple(kept if a == axis_slice.axis else d for a, d in enumerate(spec.shape))
    return replace(spec, shape=shape)


# Gates -------------------------------------------------------------------------------------------


def _gates(
    makers: Sequence[_Maker], choices: Sequence[Mapping[str, Any]]
) -> tuple[TracedProgram | None, dict[str, float]]:
    """The program of the gates that depend on no attention, and the threshold of each output.

    None where no variant may be chosen by these gates. The reference of the program is the traced
    Graph, which was compared with torch before.
    """
    automatic = {name for choice in choices for name in choice["automatic"]}
    maker = next((m for m in makers if m.traced.name in automatic), None)
    found = gates_alone(maker.graph, GATES) if maker is not None else None
    if maker is None or found is None:
        return None, {}
    graph, thresholds = found
    names = [value.name for value in graph.graph.inputs]
    runner = GraphRunner(graph)

    def reference(whole: Reference) -> Reference:
        feeds = {name: array for name, array in whole.feeds.items() if name in names}
        return Reference(whole.case, feeds, runner.run(feeds))

    traced = replace(
        maker.traced,
        name=GATES,
        graph=graph,
        inputs=tuple(spec for spec in maker.traced.inputs if spec.name in names),
        outputs=output_specs(graph),
        state=(),
        references=[reference(whole) for whole in maker.traced.references],
        golden=reference(maker.traced.golden),
        greedy=GreedyTokens(),
    )
    return traced, thresholds


def _feeds(gates: TracedProgram | None, makers: Sequence[_Maker], name: str) -> bool:
    """Whether a program has every input that the gates read."""
    inputs = next(m.traced.inputs for m in makers if m.traced.name == name)
    return gates is not None and set(gates.inputs) <= set(inputs)
