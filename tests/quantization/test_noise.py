"""The noise of quantization: what is foreseen, and the tolerance that follows."""

from __future__ import annotations

import numpy as np
import pytest

from omnigraph.contract.tolerance import Tolerance
from omnigraph.lowering import find_target
from omnigraph.passes.analysis.quantization.statistics import Observation, Statistics
from omnigraph.passes.base import run_passes
from omnigraph.passes.calibrated_pass import QuantizationFacts
from omnigraph.passes.insert_qdq import InsertQdq
from omnigraph.quantization.noise import check_quantized, noise_of

RNG = np.random.default_rng(0)


def test_the_noise_that_is_foreseen_is_that_of_a_product(trace_of_one_product):
    graph, references, statistics = trace_of_one_product
    for precision in ("int8", "int8-weights", "int4-weights"):
        quantized = graph.clone()
        scheme = find_target("onnx").schemes[precision]
        insert = InsertQdq(scheme=scheme, facts=QuantizationFacts(statistics))
        expected, hidden = noise_of(quantized, insert)
        run_passes(quantized, [insert])
        found = check_quantized(quantized, references, expected, Tolerance(0, 0), "one")
        # What the runtime rounds by itself is less than what 8 bits of any range are.
        assert (hidden == 0) == (precision == "int8") and hidden < 0.018
        # Clipping may leave less of it; it is a mean over weights that differ.
        assert 0.4 * expected < found.rms < 1.3 * expected


@pytest.fixture(scope="module")
def trace_of_one_product():
    from omnigraph.contract.reference import Reference
    from omnigraph.program import Case
    from omnigraph.testing import graph_with_weights

    weight = RNG.standard_normal((128, 64)).astype(np.float32)
    x = RNG.standard_normal((400, 128)).astype(np.float32)
    text = "g (float[B,128] x, float[128,64] w) => (float[B,64] y) { y = MatMul(x, w) }"
    graph = graph_with_weights(text, w=weight)
    seen = Observation.of(x)
    references = [Reference(Case("all", {}), {"x": x}, {"y": x @ weight})]
    return graph, references, Statistics({"w": seen}, "min-max", "a test", 1)
