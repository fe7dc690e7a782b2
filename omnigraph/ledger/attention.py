"""The fusion ledger: the op that each attention of a program became, or why it is not fused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from omnigraph.errors import FusionError
from omnigraph.graph import MODULE_KEY, SOURCE_KEY, Graph
from omnigraph.passes.analysis.attention.sites import unfused_attention
from omnigraph.passes.analysis.block_sparse.attention import BLOCKS_KEY
from omnigraph.passes.base import Finding, PassRecord
from omnigraph.passes.matching import axis_size, input_at

#: Ops that are a whole attention, by domain.
_FUSED = {
    "": ("Attention",),
    "com.microsoft": ("Attention", "MultiHeadAttention", "GroupQueryAttention"),
}
_MASK, _PAST_KEY = 3, 4
_MOST_NAMED = 6


@dataclass(frozen=True)
class AttentionSite:
    """One attention of a lowered program.

    Args:
        module: the module of the model that it came from; ``node`` distinguishes two of one module.
        node: the name of its node (of its Softmax, where it is not fused) in the lowered Graph.
        op: the op that it is: "Attention", "com.microsoft::GroupQueryAttention"; "MatMul, Softmax,
            MatMul" of blocks, where the target runs those faster; or "Softmax".
        form: heads, mask and past, for a person; empty where it is not fused.
        reason: why it is not fused, or None.
        history: what each pass made of it, in order.
    """

    module: str
    source: str
    node: str
    op: str
    form: str = ""
    reason: str | None = None
    history: tuple[str, ...] = ()

    @property
    def fused(self) -> bool:
        """Whether it has the form that the target runs fastest: one node, or blocks."""
        return self.reason is None

    def to_dict(self) -> dict[str, Any]:
        """The site as JSON-ready fields; unknown ones are left out."""
        fields = {
            "module": self.module,
            "source": self.source,
            "node": self.node,
            "op": self.op,
            "fused": self.fused,
            "form": self.form,
            "reason": self.reason,
            "history": list(self.history),
        }
        return {name: value for name, value in fields.items() if value not in ("", None, [])}


def attention_sites(graph: Graph, records: Sequence[PassRecord]) -> list[AttentionSite]:
    """Every attention of a lowered Graph in order, fused or not, with the passes' findings on it.

    Args:
        graph: a Graph after a target's pipeline.
        records: what that pipeline's passes found.
    """
    findings = [finding for record in records for finding in record.findings]
    unfused = set(unfused_attention(graph))
    sites = []
    for node in ir.traversal.RecursiveGraphIterator(graph.graph):
        blocks = BLOCKS_KEY in node.metadata_props and node.op_type == "Softmax"
        fused = blocks or node.op_type in _FUSED.get(node.domain, ())
        if not fused and node not in unfused:
            continue
        module = node.metadata_props.get(MODULE_KEY, "")
        source = node.metadata_props.get(SOURCE_KEY, "")
        own = [f for f in findings if f.module == module and f.source == source]
        history = tuple(
            dict.fromkeys(f"{f.pass_name}: {f.became}" for f in own if f.became is not None)
        )
        op = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
        if blocks:
            op = "MatMul, Softmax, MatMul"
        sites.append(
            AttentionSite(
                module,
                source,
                node.name or "",
                op,
                "by blocks" if blocks else ", ".join(_form(node)) if fused else "",
                None if fused else _reason(node, own),
                history,
            )
        )
    return sites


def check_fused(ledger: Mapping[str, Sequence[AttentionSite]]) -> None:
    """Refuse programs with an attention that is not fused.

    Raises:
        FusionError: naming each such attention by program and module, with the reason.
    """
    missed = [
        f"{site.module or site.node} of program {program!r}: {site.reason}"
        for program, sites in ledger.items()
        for site in sites
        if not site.fused
    ]
    if missed:
        total = sum(len(sites) for sites in ledger.values())
        more = len(missed) - _MOST_NAMED
        raise FusionError(
            f"{len(missed)} of {total} attentions are not fused: "
            + "; ".join(missed[:_MOST_NAMED])
            + (f"; and {more} more" if more > 0 else ""),
            hint="`omnigraph explain MODEL --pass fuse-attention` shows each site and its reason; "
            "without --require-fused the export goes on",
        )


def _form(node: ir.Node) -> Iterator[str]:
    attribute = node.attributes.get_int
    heads = attribute("q_num_heads", 0) or attribute("num_heads", 0)
    own = attribute("kv_num_heads", 0)
    if node.domain == "" and not heads:
        heads, own = axis_size(input_at(node, 0), 1) or 0, axis_size(input_at(node, 1), 1) or 0
    if heads:
        yield f"{heads} heads" if own in (0, heads) else f"{heads} heads over {own} of keys"
    if attribute("is_causal", 0) or attribute("unidirectional", 0):
        yield "causal"
    if node.domain != "":
        return
    if (mask := input_at(node, _MASK)) is not None:
        kind = "boolean" if mask.dtype == ir.DataType.BOOL else "additive"
        shape = [str(d) if isinstance(d, int) else d.value or "?" for d in mask.shape or ()]
        yield f"{kind} mask [{', '.join(shape)}]"
    if input_at(node, _PAST_KEY) is not None:
        yield "past"
    if cap := node.attributes.get_float("softcap", 0.0):
        yield f"softcap {cap:g}"


def _reason(node: ir.Node, findings: Sequence[Finding]) -> str:
    """Why an attention is not fused: the last pass's reason for this node, or for its module."""
    refused = [f for f in findings if f.reason is not None]
    named = [f for f in refused if repr(node.name) in f.site]
    if named:
        return f"{named[-1].pass_name}: {named[-1].reason}"
    decomposed = [
        f for f in findings if f.pass_name == "decompose-attention" and f.became is not None
    ]
    if decomposed:
        return f"decompose-attention: {decomposed[-1].became}"
    return f"{refused[-1].pass_name}: {refused[-1].reason}" if refused else "no pass looked at it"
