"""Observers of a Graph after each pass: check it, compare its numbers, write it to a file."""

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
    """The observers of an export.

    Args:
        target: the name of the target.
        rounded: the tolerance after a pass has rounded; None checks legality alone, not numbers.
        tolerance: before any pass has rounded.
    """
    if dump := os.environ.get("OMNIGRAPH_DUMP"):
        yield GraphDump(Path(dump) / target / item.name)
    if rounded is not None:
        yield NumberCheck(item, tolerance, rounded)
    else:
        yield lambda _, pass_, graph: check_graph(graph, pass_.name)


@dataclass
class NumberCheck:
    """Checks legality and numbers after each pass, with a wider tolerance once a pass rounds.

    It compares no numbers after passes that quantize: `omnigraph.quantization.quantize` does so,
    with the expected noise.

    Args:
        item: the program with its references.
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
    """Writes the Graph after each pass to a readable, numbered file."""

    directory: Path

    def __call__(self, position: int, pass_: Pass, graph: Graph) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        file = self.directory / f"{position:02d}-{pass_.name}.txt"
        file.write_text(graph_text(graph), encoding="utf-8")
