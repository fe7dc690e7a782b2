"""Draws what a pass changed: a Mermaid flowchart of one site before and after."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx_ir as ir

from omnigraph.graph import Graph


def picture(before: Graph, after: Graph, name: str) -> str:
    """A Mermaid flowchart of the first place that a pass changed, before and after.

    Nodes are ops, edges are values; weights and constants are left out. Changed nodes are bold. The
    text is empty where nothing changed.

    Source: the flowchart syntax of Mermaid, https://mermaid.js.org/syntax/flowchart.html.
    """
    old, new = _by_output(before), _by_output(after)
    gone = [node for key, node in old.items() if key not in new or _differ(node, new[key])]
    came = [node for key, node in new.items() if key not in old or _differ(node, old[key])]
    gone, came = _first_place(gone), _first_place(came)
    if not gone and not came:
        return ""
    lines = ["flowchart LR", f"  subgraph before [before {name}]", "    direction TB"]
    lines += _chart(gone, "b")
    lines += ["  end", f"  subgraph after [after {name}]", "    direction TB"]
    lines += _chart(came, "a")
    lines += ["  end", "  before --> after", "  classDef changed stroke-width:3px"]
    return "\n".join(lines) + "\n"


def _by_output(graph: Graph) -> dict[str, ir.Node]:
    nodes = ir.traversal.RecursiveGraphIterator(graph.graph)
    return {node.outputs[0].name or "": node for node in nodes if node.outputs}


def _differ(one: ir.Node, other: ir.Node) -> bool:
    if one.op_type != other.op_type or one.domain != other.domain:
        return True
    names = [[v.name if v is not None else "" for v in node.inputs] for node in (one, other)]
    return names[0] != names[1]


def _first_place(nodes: list[ir.Node]) -> list[ir.Node]:
    """The changed nodes that are connected with the first of them."""
    if not nodes:
        return []
    left, place, edge = dict.fromkeys(nodes), [], [nodes[0]]
    del left[nodes[0]]
    while edge:
        node = edge.pop()
        place.append(node)
        for other in _neighbours(node):
            if other in left:
                del left[other]
                edge.append(other)
    return [node for node in nodes if node in set(place)]


def _neighbours(node: ir.Node) -> Iterator[ir.Node]:
    for value in node.inputs:
        producer = value.producer() if value is not None else None
        if producer is not None:
            yield producer
    for output in node.outputs:
        yield from (use.node for use in output.uses())


def _chart(changed: Iterable[ir.Node], prefix: str) -> Iterator[str]:
    changed = list(changed)
    shown = dict.fromkeys(changed)
    for node in changed:
        shown.update(dict.fromkeys(_neighbours(node)))
    computed = [n for n in shown if n.op_type != "Constant"]
    names = {node: f"{prefix}{place}" for place, node in enumerate(computed)}
    sources: dict[ir.Value, str] = {}
    for node in computed:
        bold = ":::changed" if node in set(changed) else ""
        yield f"    {names[node]}[{node.op_type}]{bold}"
    for node in computed:
        for value in node.inputs:
            producer = value.producer() if value is not None else None
            if value is None or ir.convenience.get_const_tensor(value) is not None:
                continue
            if producer in names:
                yield f"    {names[producer]} --> {names[node]}"
            elif producer is None and node in set(changed):
                if value not in sources:
                    sources[value] = f"{prefix}v{len(sources)}"
                    yield f"    {sources[value]}([{value.name}])"
                yield f"    {sources[value]} --> {names[node]}"
