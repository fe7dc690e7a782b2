"""Masks that hide with the lowest number of their dtype."""

from __future__ import annotations

import numpy as np
import pytest

from omnigraph.contract.graph_check import GraphRunner
from omnigraph.passes.base import run_passes
from omnigraph.passes.legalize_lowest_mask import LegalizeLowestMask
from omnigraph.testing import assert_pass, graph_from_text, graph_text

LOWEST = np.finfo(np.float32).min
NEXT = np.nextafter(LOWEST, np.float32(0))

HIDDEN = """
g (float[1, 2, 3, 4] q, float[1, 2, 5, 4] k, float[1, 2, 5, 4] v, bool[3, 5] seen,
   float[2, 3, 5] bias) => (float[1, 2, 3, 4] y, float[1, 2, 3, 5] mask)
{{
    hidden = Constant<value = float {{{fill}}}>()
    filled = Where(seen, bias, hidden)
    axis = Constant<value_ints = [0]>()
    mask = Unsqueeze(filled, axis)
    y = Attention({arguments})
}}
"""


def graph_of(fill: object, arguments: str = "q, k, v, mask"):
    return graph_from_text(HIDDEN.format(fill=fill, arguments=arguments))


def feeds(seen: np.ndarray) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    shapes = {"q": (1, 2, 3, 4), "k": (1, 2, 5, 4), "v": (1, 2, 5, 4), "bias": (2, 3, 5)}
    drawn = {name: draw.standard_normal(shape).astype("f") for name, shape in shapes.items()}
    return {**drawn, "seen": seen}


def test_a_query_that_sees_no_key_sees_all_alike_and_other_readers_keep_the_mask():
    seen = np.ones((3, 5), bool)
    seen[0], seen[1, 2:] = False, False
    given = feeds(seen)
    graph = graph_of(f"{LOWEST:.9g}")
    zeros = GraphRunner(graph).run(given)["y"][:, :, 0]
    assert not zeros.any()  # what the pass is for: should this fail, onnxruntime has mended it
    (record,) = run_passes(graph, (LegalizeLowestMask(),))
    assert record.modified
    found = GraphRunner(graph).run(given)
    np.testing.assert_allclose(found["y"][:, :, 0], given["v"].mean(2), rtol=0, atol=1e-6)
    assert (found["mask"][0, :, 0] == LOWEST).all()
    (again,) = run_passes(graph, (LegalizeLowestMask(),))
    assert not again.modified


def test_the_mask_is_written_with_the_next_number():
    seen = np.tril(np.ones((3, 5), bool))
    before = graph_of(f"{LOWEST:.9g}")
    after = graph_from_text(
        HIDDEN.format(fill=f"{LOWEST:.9g}", arguments="q, k, v, raised").replace(
            "y = Att",
            f"""above = Constant<value = float {{{NEXT:.9g}}}>()
                refilled = Where(seen, bias, above)
                raised = Unsqueeze(refilled, axis)
                y = Att""",
        )
    )
    assert_pass(LegalizeLowestMask(), before, after, feeds(seen))


def test_a_number_without_a_written_dtype_is_found_as_torch_exports_it():
    graph = graph_of(f"{LOWEST:.9g}")
    hidden = next(node for node in graph.graph if node.op_type == "Constant").outputs[0]
    hidden.type = None
    assert LegalizeLowestMask()(graph).modified


@pytest.mark.parametrize(
    ("fill", "arguments"),
    [("-1e30", "q, k, v, mask"), (f"{LOWEST:.9g}", "q, k, v, seen"), (f"{LOWEST:.9g}", "q, k, v")],
    ids=["another number", "a boolean mask", "no mask"],
)
def test_other_masks_are_left_alone(fill: str, arguments: str):
    graph = graph_of(fill, arguments)
    text = graph_text(graph)
    assert not LegalizeLowestMask()(graph).modified
    assert graph_text(graph) == text
