"""What looks at a Graph after each pass: legality, numbers, a readable file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from omnigraph.contract.graph_check import check_graph, compare_graph
from omnigraph.contract.tolerance import Tolerance
from omnigraph.export_job import TracedProgram
from omnigraph.graph import Graph
from omnigraph.ledger.graph_text import graph_text
from omnigraph.passes.base import Observer, Pass
from omnigraph.passes.calibrated_pass import QuantizingPass


def observers(
    target: str, item: TracedProgram, rounded: Tolerance | None, tolerance: Tolerance
) -> Iterator[Observer]:
    """What an export looks with.

    Args:
        target: the name of the target.
        rounded: the tolerance of a Graph that something was rounded in, which numbers are compared
            with after each pass; None checks legality alone.
        tolerance: what is allowed before anything was rounded.
    """
    if dump := os.environ.get("OMNIGRAPH_DUMP"):
        yield GraphDump(Path(dump) / target / item.name)
    if rounded is not None:
        yield NumberCheck(item, tolerance, rounded)
    else:
        yield lambda _, pass_, graph: check_graph(graph, pass_.name)


@dataclass
class NumberCheck:
    """Checks legality and numbers after each pass. Passes that round loosen what is exact.

    Numbers are not compared while a model is being quantized: that is done when it is quantized
    whole, by the noise that is foreseen (`omnigraph.quantization.quantize`).

    Args:
        item: the program, whose references are compared with.
        exact: the tolerance until a pass rounds.
        rounded: the tolerance from then on.
    """

    item: TracedProgram
    exact: Tolerance
    rounded: Tolerance
    _has_rounded: bool = False

    def __call__(self, _: int, pass_: Pass, graph: Graph) -> None:
        check_graph(graph, pass_.name)
        self._has_rounded |= pass_.rounds
        if isinstance(pass_, QuantizingPass):
            return
        compare_graph(
            graph,
            [reference.feeds for reference in self.item.references],
            [reference.outputs for reference in self.item.references],
            self.rounded if self._has_rounded else self.exact,
            f"pass {pass_.name!r}",
        )


@dataclass(frozen=True)
class GraphDump:
    """Writes one readable file for the Graph after each pass, numbered."""

    directory: Path

    def __call__(self, position: int, pass_: Pass, graph: Graph) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        file = self.directory / f"{position:02d}-{pass_.name}.txt"
        file.write_text(graph_text(graph), encoding="utf-8")
