"""Says why a pass found no site in a Graph."""

from __future__ import annotations

from omnigraph.graph import MODULE_KEY, Graph, count_ops
from omnigraph.passes.matching import nodes_of
from omnigraph.passes.site_pass import SitePass


def why_no_sites(pass_: SitePass, traced: Graph, before: Graph) -> str:
    """What a pass looks for, and what stands in the Graph in its place.

    Args:
        traced: the Graph as it was traced.
        before: the Graph that the pass was run on.
    """
    looked = (type(pass_).sites.__doc__ or "").strip().partition("\n")[0].rstrip(".")
    reasons = [f"it looks at {looked[0].lower()}{looked[1:]}: there is none" if looked else ""]
    for op in pass_.makes:
        given, now = count_ops(traced)[op], count_ops(before)[op]
        if given:
            modules = [node.metadata_props.get(MODULE_KEY, "") for node in nodes_of(traced, op)]
            place = f" (of {modules[0]})" if modules and modules[0] else ""
            reasons.append(f"the exporter gave {_nodes(given, op)} already{place}")
        if now > given:
            reasons.append(f"an earlier pass made {_nodes(now - given, op)}")
    return "; ".join(filter(None, reasons))


def _nodes(count: int, op: str) -> str:
    return f"{count} node {op}" if count == 1 else f"{count} nodes {op}"
