"""Observers of a Graph after each pass: check that it is legal, write it to a file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from omnigraph.contract.graph_check import check_graph
from omnigraph.graph import Graph
from omnigraph.ledger.graph_text import graph_text
from omnigraph.passes.base import Observer, Pass


def observers(target: str, program: str) -> Iterator[Observer]:
    """The observers of an export of one program, for one target."""
    if dump := os.environ.get("OMNIGRAPH_DUMP"):
        yield GraphDump(Path(dump) / target / program)
    yield lambda _, pass_, graph: check_graph(graph, pass_.name)


@dataclass(frozen=True)
class GraphDump:
    """Writes the Graph after each pass to a readable, numbered file."""

    directory: Path

    def __call__(self, position: int, pass_: Pass, graph: Graph) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        file = self.directory / f"{position:02d}-{pass_.name}.txt"
        file.write_text(graph_text(graph), encoding="utf-8")
