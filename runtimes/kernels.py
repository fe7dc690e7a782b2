"""The kernels that a runtime dispatched for a program, and the nodes that each computes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Kernel:
    """One kernel of a compiled program, in the order in which they run.

    Args:
        kind: the vendor's name of it, with its implementation where the vendor names that.
        nodes: the names of the graph's nodes that it computes, as far as the vendor names them.
    """

    kind: str
    nodes: tuple[str, ...]


def kernels_of(kernels: Sequence[Kernel], nodes: Sequence[str], marks: Sequence[str]) -> list[str]:
    """For each of some nodes in order, the kernel that computes it; "" where it is unknown.

    Args:
        nodes: names of nodes of the graph that was compiled.
        marks: words in the vendor's names of such kernels. Where there are as many kernels with
            such a word as nodes, they are matched in order, for a vendor may rename nodes.
    """
    marked = [k for k in kernels if any(m in text for m in marks for text in (k.kind, *k.nodes))]
    if len(marked) == len(nodes):
        return [kernel.kind for kernel in marked]
    by_name = {name: kernel.kind for kernel in kernels for name in kernel.nodes}
    return [by_name.get(name, "") for name in nodes]
