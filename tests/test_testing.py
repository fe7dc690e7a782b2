"""The checks for passes find what is wrong with a pass, and say it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from omnigraph.passes.base import Pass
from omnigraph.passes.matching import made_by, nodes_of, remove_unused, replace_output
from omnigraph.passes.site_pass import Miss, SitePass
from omnigraph.testing import assert_miss, assert_pass, graph_from_text

FEEDS = {"x": np.array([-1, 0, 2], np.float32)}
TWICE = "g (float[3] x) => (float[3] y) { a = Neg(x) b = Neg(a) y = Relu(b) }"
ONCE = "g (float[3] x) => (float[3] y) { a = Neg(x) y = Relu(a) }"
NONE = "g (float[3] x) => (float[3] y) { y = Relu(x) }"


@dataclass(frozen=True)
class DropNegation(SitePass):
    """Drop one negation, or two."""

    one: bool = False

    def sites(self, graph):
        return nodes_of(graph, "Neg")

    def rewrite(self, graph, node):
        inner = node if self.one else made_by(node.inputs[0], "Neg")
        if inner is None:
            raise Miss("its input is not negated")
        replace_output(node.outputs[0], inner.inputs[0])
        remove_unused(node)
        return "its input"


@dataclass(frozen=True)
class SayNothing(Pass):
    """Change a Graph, and deny it."""

    def apply(self, graph):
        DropNegation().apply(graph)
        return False


@dataclass(frozen=True)
class AddNegation(Pass):
    """Never come to an end."""

    def apply(self, graph):
        graph.graph.outputs[0].producer().op_type = "Abs" if _op(graph) == "Relu" else "Relu"
        return True


def _op(graph) -> str:
    return graph.graph.outputs[0].producer().op_type


def test_what_is_right_passes():
    assert_pass(DropNegation(), graph_from_text(TWICE), graph_from_text(NONE), FEEDS)
    assert_pass(DropNegation(), graph_from_text(ONCE), None, FEEDS)
    assert_miss(DropNegation(), graph_from_text(ONCE), "its input is not negated")


@pytest.mark.parametrize(
    ("pass_", "before", "after", "message"),
    [
        (DropNegation(), TWICE, ONCE, r"made another Graph\n(?s:.)*\n-.*Neg\(x\)"),
        (DropNegation(), TWICE, None, "made another Graph"),
        (SayNothing(), TWICE, NONE, "says modified=False of a Graph that it changed"),
        (AddNegation(), NONE, NONE.replace("Relu", "Abs"), "a second run of add-negation"),
        (DropNegation(one=True), ONCE, NONE, "changed output 'y' by"),
    ],
)
def test_what_is_wrong_with_a_pass_is_said(pass_: Pass, before: str, after: str | None, message):
    expected = None if after is None else graph_from_text(after)
    with pytest.raises(AssertionError, match=message):
        assert_pass(pass_, graph_from_text(before), expected, FEEDS)


@pytest.mark.parametrize(
    ("before", "reason", "message"),
    [
        (TWICE, "its input", "drop-negation changed a Graph that it should leave alone"),
        (ONCE, "no such reason", "no site has the reason 'no such reason': its input is not"),
        (NONE, "its input", "no site was looked at"),
    ],
)
def test_a_miss_for_another_reason_is_said(before: str, reason: str, message: str):
    with pytest.raises(AssertionError, match=message):
        assert_miss(DropNegation(), graph_from_text(before), reason)
