"""What a program becomes by a choice of precisions: a quantized Graph, and on the target."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from omnigraph.contract.graph_check import GraphRunner
from omnigraph.emitter import Emitter
from omnigraph.graph import Graph
from omnigraph.lowering import Lowered, Target
from omnigraph.passes.analysis.quantization.linear_layers import linear_layers, tables
from omnigraph.passes.analysis.quantization.scheme import Scheme
from omnigraph.passes.base import run_passes
from omnigraph.passes.calibrated_pass import CalibratedPass, QuantizationFacts
from omnigraph.passes.pipeline import Pipeline
from omnigraph.precision import PRECISIONS, carrier_of
from omnigraph.quantization.evaluation import Run
from omnigraph.quantization.gather import Calibrator
from omnigraph.quantization.options import Quantization
from omnigraph.quantization.quantize import quantized_copy


@dataclass(frozen=True)
class Search:
    """The task of choosing the precision of each layer.

    Args:
        target: its schemes are the choices.
        precision: the one that the user asked for; it limits what a layer may become.
        pipeline: all passes, for the precision that carries this one.
        options: of quantization, with the loss to stay within and the speed gate.
        settings: options of the target.
    """

    target: Target
    precision: str
    pipeline: Pipeline
    options: Quantization
    settings: Mapping[str, str]

    @property
    def schemes(self) -> dict[str, Scheme]:
        """The schemes that a layer may get, by precision, the finest first."""
        return {
            name: self.options.four_bits.apply(scheme)
            for name in PRECISIONS[self.precision].candidates
            if (scheme := self.target.schemes.get(name)) is not None
        }

    def choices(self, names: Mapping[str, str]) -> dict[str, Scheme | None]:
        """The scheme of each layer, by the name of its precision."""
        return self.target.layer_schemes(names, self.options.four_bits)


class QuantizedProgram:
    """One program of a search.

    Args:
        search: what is searched for.
        calibrator: of the program; its Graph is as traced, and is not changed.
    """

    def __init__(self, search: Search, calibrator: Calibrator) -> None:
        assert calibrator.item.graph is not None
        self._search, self._calibrator = search, calibrator
        self.item = calibrator.item
        passes = list(search.pipeline)
        first = next(
            (place for place, p in enumerate(passes) if isinstance(p, CalibratedPass)), len(passes)
        )
        self._rest = passes[first:]
        #: The Graph in float, before the first pass that needs calibration.
        self.graph: Graph = calibrator.item.graph.clone()
        run_passes(self.graph, passes[:first])
        #: The module paths of linear layers and embeddings.
        self.layers = frozenset(found.layer for found in linear_layers(self.graph)).union(
            found.layer for found in tables(self.graph)
        )

    def quantized(
        self, names: Mapping[str, str], facts: QuantizationFacts
    ) -> tuple[Graph, QuantizationFacts]:
        """The Graph quantized by choices, and all facts known then, without these choices."""
        chosen = replace(facts, choices=self._search.choices(names))
        copy, known = quantized_copy(self.graph, self._search.pipeline, self._calibrator, chosen)
        return copy, replace(known, choices=facts.choices)

    def run(self, names: Mapping[str, str], facts: QuantizationFacts) -> Run:
        """What runs the Graph quantized by choices, in onnxruntime."""
        return GraphRunner(self.quantized(names, facts)[0]).run

    @contextmanager
    def compiled(self, names: Mapping[str, str], facts: QuantizationFacts) -> Iterator[Run]:
        """What runs the program in the target's own runtime, compiled as an export compiles it."""
        search, item = self._search, self.item
        facts = replace(facts, choices=search.choices(names))
        graph = self.graph.clone()
        for pass_ in self._rest:
            if isinstance(pass_, CalibratedPass):
                pass_, facts = self._calibrator.inform(pass_, graph, facts)
            run_passes(graph, [pass_])
        lowered = Lowered(item.name, graph, item.inputs, item.outputs, item.dims, item.state)
        base = carrier_of(search.precision)
        emitter = Emitter(search.target, base, search.settings, item.golden)
        with (
            tempfile.TemporaryDirectory() as folder,
            emitter.session(lowered, Path(folder)) as session,
        ):
            yield session.run
