"""The base class of passes, and the function that runs them in order.

A pass is a frozen dataclass over onnx_ir's pass base; its fields are its options. Its file has its
name: ``fuse_attention.py`` defines ``FuseAttention``, on the command line ``fuse-attention``.
"""

from __future__ import annotations

import abc
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import Any, ClassVar, final

import onnx_ir as ir

from omnigraph.errors import GraphError, OmniGraphError
from omnigraph.graph import Graph, count_ops, inherit_provenance


@dataclass(frozen=True)
class Finding:
    """The result of a pass at one site: either ``became`` or ``reason``.

    Args:
        site: the node, by op and name, before the pass.
        module: the module of the model that it came from.
        source: the source line, where known.
        became: the new form, such as "Attention, causal, 16 heads".
        reason: why it did not match, with the node at which the match failed.
    """

    pass_name: str
    site: str
    module: str = ""
    source: str = ""
    became: str | None = None
    reason: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The finding as JSON-ready fields, without empty ones."""
        fields = {
            "pass": self.pass_name,
            "site": self.site,
            "module": self.module,
            "source": self.source,
            "became": self.became,
            "reason": self.reason,
        }
        return {name: value for name, value in fields.items() if value}


@dataclass(frozen=True)
class Pass(ir.passes.InPlacePass, abc.ABC):
    """One rewrite of a Graph, in place.

    A pass reports truthfully whether it changed the Graph, and a second run changes nothing more.
    """

    #: True for a pass that rounds on purpose; all others are exact up to the order of sums.
    rounds: ClassVar[bool] = False

    @property
    def name(self) -> str:
        """The name on the command line: ``FuseAttention`` is ``fuse-attention``."""
        return pass_name(type(self))

    @property
    def options(self) -> dict[str, Any]:
        """The options by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @abc.abstractmethod
    def apply(self, graph: Graph) -> bool:
        """Rewrite the Graph in place, and return whether anything changed."""

    def run(self, graph: Graph) -> tuple[bool, tuple[Finding, ...]]:
        """Rewrite the Graph in place, and return whether anything changed, with the findings."""
        return self.apply(graph), ()

    @final
    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """The method that onnx_ir calls."""
        return ir.passes.PassResult(model, self.apply(model))


def pass_name(kind: type[Pass]) -> str:
    """``FuseAttention`` is ``fuse-attention``; digits stay with their word."""
    return re.sub(r"(?<!^)(?=[A-Z])", "-", kind.__name__).lower()


def purpose(kind: type[Pass]) -> str:
    """The first sentence of a pass's docstring."""
    return (kind.__doc__ or "").strip().splitlines()[0]


@dataclass(frozen=True)
class PassRecord:
    """The run of one pass: whether it changed the Graph, its time, and the number of each op.

    ``findings`` has one entry for each site of a `SitePass`.
    """

    name: str
    modified: bool
    seconds: float
    before: Counter[str]
    after: Counter[str]
    findings: tuple[Finding, ...] = ()

    @property
    def changes(self) -> dict[str, int]:
        """The change in the number of nodes, for each op where it changed."""
        ops = sorted({*self.before, *self.after})
        return {o: self.after[o] - self.before[o] for o in ops if self.after[o] != self.before[o]}


#: Called after every pass with its position, the pass and the rewritten Graph.
Observer = Callable[[int, Pass, Graph], None]


def run_passes(
    graph: Graph, passes: Iterable[Pass], observers: Iterable[Observer] = (), *, first: int = 0
) -> list[PassRecord]:
    """Run passes in order, keep every node's provenance, and call the observers after each.

    Args:
        graph: rewritten in place.
        observers: called after each pass.
        first: the position of the first of these passes in the whole pipeline.

    Raises:
        GraphError: a pass failed, or an observer refused the rewritten Graph.
    """
    observers = tuple(observers)
    records = []
    for position, pass_ in enumerate(passes, first):
        before, start = count_ops(graph), time.perf_counter()
        try:
            modified, findings = pass_.run(graph)
        except OmniGraphError:
            raise
        except Exception as error:
            raise GraphError(
                f"Pass {pass_.name!r} failed on graph {graph.graph.name!r}",
                found=f"{type(error).__name__}: {error}",
                hint="this is a fault of the pass; OMNIGRAPH_DUMP=DIR writes the graph before it",
            ) from error
        if modified:
            inherit_provenance(graph)
        seconds = time.perf_counter() - start
        records.append(
            PassRecord(pass_.name, modified, seconds, before, count_ops(graph), findings)
        )
        for observe in observers:
            observe(position, pass_, graph)
    return records
