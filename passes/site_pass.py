"""A pass that looks at sites one by one: each is rewritten, or left for a reason that is kept."""

from __future__ import annotations

import abc
from collections.abc import Iterable
from dataclasses import dataclass

import onnx_ir as ir

from omnigraph.graph import MODULE_KEY, SOURCE_KEY, Graph, describe
from omnigraph.passes.base import Finding, Pass


class Miss(Exception):
    """Raised by ``SitePass.rewrite`` where a site is not what the pass rewrites.

    Args:
        reason: why, for a person, in a few words: "the scale is not a constant".
        at: the node at which the match parted from the pattern, if it is not the site itself.
    """

    def __init__(self, reason: str, at: ir.Node | None = None) -> None:
        super().__init__(reason)
        self.reason, self.at = reason, at


@dataclass(frozen=True)
class SitePass(Pass):
    """A pass made of ``sites`` and ``rewrite``; `rewrite_sites` says what became of each site."""

    @abc.abstractmethod
    def sites(self, graph: Graph) -> Iterable[ir.Node]:
        """The nodes that may be where the pattern ends: every Softmax, say. Changes nothing.

        Broad enough that whatever a person would expect to match is among them, and so gets a
        reason where it does not; a node that was rewritten already is not.
        """

    @abc.abstractmethod
    def rewrite(self, graph: Graph, node: ir.Node) -> str:
        """Rewrite one site, and say what it became.

        All checks come first: where `Miss` is raised, nothing was changed.

        Raises:
            Miss: the site is not what the pass rewrites.
        """

    def rewrite_sites(self, graph: Graph) -> list[Finding]:
        """Rewrite what can be; one finding for each site, in the order of the Graph."""
        findings = []
        for node in list(self.sites(graph)):
            if node.graph is None:  # a rewrite before took it along
                continue
            site = f"{node.op_type} {node.name!r}"
            module = node.metadata_props.get(MODULE_KEY, "")
            source = node.metadata_props.get(SOURCE_KEY, "")
            became = reason = None
            try:
                became = self.rewrite(graph, node)
            except Miss as miss:
                reason = miss.reason
                if miss.at is not None and miss.at is not node:
                    reason += f", at {describe(miss.at)}"
            findings.append(Finding(self.name, site, module, source, became, reason))
        return findings

    def apply(self, graph: Graph) -> bool:
        """Rewrite in place; whether anything changed."""
        return self.run(graph)[0]

    def run(self, graph: Graph) -> tuple[bool, tuple[Finding, ...]]:
        """Rewrite in place; whether anything changed, and what became of each site."""
        findings = tuple(self.rewrite_sites(graph))
        return any(finding.became is not None for finding in findings), findings
