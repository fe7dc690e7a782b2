"""The facts that several targets share: each weight is rounded once for each grid."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from token_samples import TOKENS

from omnigraph.export_job import traced_program
from omnigraph.passes.analysis.quantization.linear_layers import linear_layers
from omnigraph.passes.analysis.quantization.scheme import Scheme
from omnigraph.passes.analysis.quantization.weight_rounding import WeightGrid, round_weight
from omnigraph.passes.base import run_passes
from omnigraph.passes.calibrated_pass import QuantizationFacts
from omnigraph.passes.insert_qdq import InsertQdq
from omnigraph.passes.pipelines import common
from omnigraph.quantization.data import open_data
from omnigraph.quantization.gather import Calibrator
from omnigraph.quantization.options import Quantization
from omnigraph.quantization.samples import Samples
from omnigraph.tracing.names import output_specs

UINT4, INT4 = WeightGrid(ir.DataType.UINT4, 64), WeightGrid(ir.DataType.INT4, 64)


def test_a_second_target_with_another_four_bit_type_has_weights_of_its_own(traced):
    found = traced("forward", kind="decoder")
    graph = found.graph.clone()
    run_passes(graph, common())
    outputs = output_specs(graph)
    item = traced_program(found.program, graph, outputs, (), [*found.references, None])
    reads: list[int] = []

    def read():
        reads.append(1)
        return ({"input_ids": row[None]} for row in TOKENS[:4])

    calibrator = Calibrator(Quantization(), Samples(open_data(read)), item)
    facts = QuantizationFacts()
    for grid in (UINT4, INT4):
        pass_, facts = calibrator.inform(InsertQdq(scheme=Scheme(grid)), graph, facts)
        (layer, *_) = (each for each in linear_layers(graph) if each.transpose is None)
        name, weight = layer.weight.name, layer.weight.const_value.numpy()
        quantized = graph.clone()
        run_passes(quantized, [pass_])
        stored = quantized.graph.initializers[f"{name}_{grid.dtype.name.lower()}"].const_value
        compensated = facts.rounded[name, grid].quantized
        plain = round_weight(weight.T if layer.channel_axis == 0 else weight, grid).quantized
        array = stored.numpy().astype(np.int64)
        array = array.T if layer.channel_axis == 0 else array
        np.testing.assert_array_equal(array, compensated)
        assert (compensated != plain).any()
    before = len(reads)
    calibrator.inform(InsertQdq(scheme=Scheme(UINT4)), graph, facts)
    assert len(reads) == before  # nothing is rounded twice
