"""Variants: the programs of a model again, with fewer attention heads, in one artifact.

``heads=12,8`` makes of each program two more, in which every attention keeps its 12, or 8, most
important heads. The others are removed from the weights (`PruneHeads`); feed-forward layers,
embeddings and all else are stored once for all. A variant's numbers are those of the torch model
with a gate of 0 on the heads that it lacks, and it is compared with that.

Where heads have gates that depend on the input, the variants of a program without a state say in
one more output, ``missed_heads``, whether a gate was open for a head that they lack. If none was,
a variant's numbers are those of the whole model. That is how a Session can choose by itself: it
runs the program ``gates``, which computes the gates that depend on no attention, takes the smallest
variant that has all heads that these leave open, and goes on to the next larger one if that missed
a head further up. What it returns is what the whole program would have.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from omnigraph.contract.graph_check import GraphRunner
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
from omnigraph.passes.analysis.pruning.axis_map import Cut
from omnigraph.passes.analysis.pruning.axis_slice import KEPT
from omnigraph.passes.analysis.pruning.head_removal import cut_output
from omnigraph.passes.analysis.pruning.importance import least_important, read_importance
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


def parse_variants(text: str | None, importance: str | None = None) -> tuple[int, ...]:
    """The numbers of heads in ``heads=16,12,8``, the most first; none of None.

    Raises:
        UsageError: it is not of that form, or there is an importance of heads and no variant.
    """
    if text is None:
        if importance is not None:
            raise UsageError(
                "The importance of heads is given, and no variant that would lose any",
                hint="--variants heads=12,8 adds variants; without them, leave --importance out",
            )
        return ()
    match = re.fullmatch(r"heads=(\d+(?:,\d+)*)", text.replace(" ", ""))
    numbers = sorted({int(n) for n in match[1].split(",")}, reverse=True) if match else []
    if not numbers or numbers[-1] < 1:
        raise UsageError(
            f"{text!r} is no set of variants",
            expected="heads=N,N,… with numbers of heads of at least 1",
            hint="--variants heads=12,8 adds variants with 12 and with 8 heads an attention",
        )
    return tuple(numbers)


@dataclass
class Variants:
    """The programs that an export adds, and what its manifest says of them."""

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
        programs: the programs, whose torch modules give the references.
        traced: the same, traced; they stay as they are.
        keeps: how many heads each attention keeps; a number that takes none away is the programs
            as they are.
        importance: a file with the importance of each head (`read_importance`), in place of how
            much it adds to its layer over the input sets of the contract.

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
    """One program, and what can be made of it."""

    program: Program
    traced: TracedProgram
    graph: Graph
    sites: dict[str, HeadSite]
    whole: dict[str, str]

    @classmethod
    def of(cls, program: Program, traced: TracedProgram) -> _Maker:
        assert traced.graph is not None
        graph = traced.graph.clone()
        # Before position biases are folded: a bias that is computed by head is cut with its heads.
        run_passes(graph, (*canonical(), *fused()))
        sites, whole = head_sites(graph)
        whole |= not_silenceable(program, sites)
        return cls(program, traced, graph, sites, whole)

    def prune(
        self, removed: Mapping[str, tuple[int, ...]], *, missed: bool
    ) -> tuple[Graph, dict[str, str]]:
        """The Graph without these heads; and the sites that stayed whole, with the reason."""
        graph = self.graph.clone()
        if missed:
            add_missed(graph, removed)
        (record,) = run_passes(graph, [PruneHeads(tuple(sorted(removed.items())), boundary=True)])
        return graph, {f.module: f.reason or "" for f in record.findings if f.became is None}

    def trace(
        self, name: str, graph: Graph, removed: Mapping[str, tuple[int, ...]]
    ) -> TracedProgram:
        """The variant with what torch gives where the removed heads give nothing."""
        run_passes(graph, [EliminateDeadCode()])
        graph.graph.name = name
        inputs = {value.name or "": value for value in graph.graph.inputs}
        cuts = {v.name or "": v.meta[KEPT] for v in _boundary(graph) if KEPT in v.meta}
        with silenced(self.program, self.sites, removed):
            cases = [r.case for r in (*self.traced.references, self.traced.golden)]
            *references, golden = (_cut(reference_for(self.program, c), cuts) for c in cases)
        specs = tuple(_cut_spec(spec, inputs[spec.name]) for spec in self.traced.inputs)
        return replace(
            self.traced,
            name=name,
            graph=graph,
            inputs=specs,
            outputs=output_specs(graph),
            references=references,
            golden=golden,
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
    """Add the programs of one variant, and give what the manifest says of it."""
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
        _cut_outputs(graph, shared)
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


def _cut_outputs(graph: Graph, shared: Mapping[str, Cut]) -> None:
    """Cut the outputs that another program of the variant takes cut: keys of the encoder, say."""
    for output in list(graph.graph.outputs):
        cut = shared.get(output.name or "")
        if cut is None or KEPT in output.meta:
            continue
        try:
            cut_output(graph, output, cut)
        except Miss as miss:
            raise UsageError(
                f"Output {output.name!r} of program {graph.graph.name!r} cannot lose heads, which "
                "another program takes without them",
                found=miss.reason,
                hint="export programs with --variants one at a time: --programs NAME",
            ) from miss


def _cut(reference: Reference, cuts: Mapping[str, Cut]) -> Reference:
    """Inputs and outputs without the heads that a variant does not take or give."""

    def without(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {
            name: np.ascontiguousarray(array.take(cuts[name].kept, axis=cuts[name].axis))
            if name in cuts
            else array
            for name, array in arrays.items()
        }

    return Reference(reference.case, without(reference.feeds), without(reference.outputs))


def _cut_spec(spec: TensorSpec, value: ir.Value) -> TensorSpec:
    cut = value.meta.get(KEPT)
    if cut is None:
        return spec
    shape = tuple(len(cut.kept) if a == cut.axis else d for a, d in enumerate(spec.shape))
    return replace(spec, shape=shape)


# Gates -------------------------------------------------------------------------------------------


def _gates(
    makers: Sequence[_Maker], choices: Sequence[Mapping[str, Any]]
) -> tuple[TracedProgram | None, dict[str, float]]:
    """The program of the gates that depend on no attention, if a variant may be chosen by them.

    And for each of its outputs, what it is above where a head is open. Its reference is the traced
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
    )
    return traced, thresholds


def _feeds(gates: TracedProgram | None, makers: Sequence[_Maker], name: str) -> bool:
    """Whether a program has all inputs that the gates need."""
    inputs = next(m.traced.inputs for m in makers if m.traced.name == name)
    return gates is not None and set(gates.inputs) <= set(inputs)
