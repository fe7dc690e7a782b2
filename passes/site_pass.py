"""A pass that visits sites one by one: it rewrites each, or records why not."""

from __future__ import annotations

import abc
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from omnigraph.graph import MODULE_KEY, SOURCE_KEY, Graph, describe
from omnigraph.passes.base import Finding, Pass


class Miss(Exception):
    """Raised by ``SitePass.rewrite`` where a site does not match the pass.

    Args:
        reason: why, for a person, in a few words: "the scale is not a constant".
        at: the node at which the match failed, if it is not the site itself.
    """

    def __init__(self, reason: str, at: ir.Node | None = None) -> None:
        super().__init__(reason)
        self.reason, self.at = reason, at


@dataclass(frozen=True)
class SitePass(Pass):
    """A pass that consists of ``sites`` and ``rewrite``, and records a finding for each site."""

    #: The ops that sites become: where a Graph has these already, there may be no site.
    makes: ClassVar[tuple[str, ...]] = ()

    @abc.abstractmethod
    def sites(self, graph: Graph) -> Iterable[ir.Node]:
        """The nodes at which the pattern may end: every Softmax, say. Changes nothing.

        They include every node that a person would expect to match, so that it gets a reason where
        it does not match. They exclude nodes that the pass rewrote before.
        """

    @abc.abstractmethod
    def rewrite(self, graph: Graph, node: ir.Node) -> str:
        """Rewrite one site, and return a text of what it became.

        All checks come first: where it raises `Miss`, nothing was changed.

        Raises:
            Miss: the site does not match the pass.
        """

    def rewrite_sites(self, graph: Graph) -> list[Finding]:
        """Rewrite every site that matches; one finding for each site, in the order of ``sites``."""
        findings = []
        for node in list(self.sites(graph)):
            if node.graph is None:  # an earlier rewrite removed it
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
        """Rewrite in place, and return whether anything changed."""
        return self.run(graph)[0]

    def run(self, graph: Graph) -> tuple[bool, tuple[Finding, ...]]:
        """Rewrite in place, and return whether anything changed, with the finding of each site."""
        findings = tuple(self.rewrite_sites(graph))
        return any(finding.became is not None for finding in findings), findings
