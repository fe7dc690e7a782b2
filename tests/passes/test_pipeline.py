"""Pipelines: their stages, where they stop, and how they are edited."""

from __future__ import annotations

import pytest

from omnigraph.errors import UsageError
from omnigraph.lowering import targets
from omnigraph.passes.convert_precision import ConvertPrecision
from omnigraph.passes.eliminate_dead_code import EliminateDeadCode
from omnigraph.passes.eliminate_identities import EliminateIdentities
from omnigraph.passes.fold_constants import FoldConstants
from omnigraph.passes.lift_constants import LiftConstants
from omnigraph.passes.pipeline import STAGES, Pipeline
from omnigraph.passes.pipelines import common
from omnigraph.passes.share_constants import ShareConstants

PIPELINE = Pipeline(
    canonical=(FoldConstants(), EliminateIdentities()),
    folded=(EliminateDeadCode(),),
    kernels=(ConvertPrecision("fp16"),),
)


def test_the_stages_are_in_the_order_in_which_they_run():
    assert STAGES == ("canonical", "fused", "folded", "quantized", "kernels")
    assert list(PIPELINE) == [
        FoldConstants(),
        EliminateIdentities(),
        EliminateDeadCode(),
        ConvertPrecision("fp16"),
    ]
    assert len(PIPELINE) == 4


def test_a_pipeline_stops_in_a_stage_and_begins_in_one():
    assert list(PIPELINE.until("fused")) == [FoldConstants(), EliminateIdentities()]
    assert list(PIPELINE.from_stage("quantized")) == [ConvertPrecision("fp16")]
    for stage in STAGES:
        upto, rest = PIPELINE.until(stage), STAGES[STAGES.index(stage) + 1 :]
        behind = PIPELINE.from_stage(rest[0]) if rest else ()
        assert [*upto, *behind] == list(PIPELINE)
    with pytest.raises(UsageError, match="no stage 'molten': expected canonical or fused"):
        PIPELINE.until("molten")


def test_edits_leave_out_set_and_add_at_the_end_of_folded():
    assert list(PIPELINE.edited("-eliminate-identities").canonical) == [FoldConstants()]
    added = PIPELINE.edited("lift-constants, share-constants")
    assert added.folded == (EliminateDeadCode(), LiftConstants(), ShareConstants())
    assert added.canonical == PIPELINE.canonical and added.kernels == PIPELINE.kernels
    changed = PIPELINE.edited("convert-precision:precision=bf16")
    assert changed.kernels == (ConvertPrecision("bf16"),)
    assert PIPELINE.edited("") == PIPELINE


def test_a_pass_that_is_not_there_cannot_be_left_out():
    with pytest.raises(UsageError, match="'lift-constants' cannot be left out"):
        PIPELINE.edited("-lift-constants")


def test_every_target_begins_with_the_common_stages_and_quantizes_by_its_schemes():
    names = [pass_.name for pass_ in (*common().canonical, *common().fused)]
    for target in targets().values():
        for precision, scheme in target.schemes.items():
            pipeline = target.passes(precision)
            assert [p.name for p in (*pipeline.canonical, *pipeline.fused)] == names
            quantized = [pass_.name for pass_ in pipeline.quantized]
            assert ("insert-qdq" in quantized) == (scheme is not None), (target.name, precision)
            calibrated = scheme is not None and scheme.needs_ranges
            assert ("smooth-activations" in quantized) == calibrated
