"""The options of an export: each is checked, and put into one form, when it is given."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest

from omnigraph.errors import UsageError
from omnigraph.exporting.options import OF_MODEL, ExportOptions
from omnigraph.inspection.bisect import bisect
from omnigraph.inspection.stages import Subject
from omnigraph.option_field import options_of
from omnigraph.program import Dim
from omnigraph.quantization.options import Quantization


def test_names_may_be_joined_by_commas():
    options = ExportOptions(programs="encode, decode", outputs="logits", last=["logits"])
    assert options.programs == ("encode", "decode")
    assert options.outputs == options.last == ("logits",)
    assert ExportOptions(programs="").programs is None
    assert ExportOptions(passes=["-fuse-gelu", "lift-constants"]).passes == (
        "-fuse-gelu,lift-constants"
    )
    assert Quantization(keep="a.*,b").keep == ("a.*", "b")
    assert Quantization(max_loss="0.5%", metric="cosine").max_loss == 0.005


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"kv_cache": "int3"}, "cannot be kept in 'int3'"),
        ({"rtol": 0}, "a number above zero"),
        ({"rtol": "x"}, "a number above zero"),
        ({"rtol": 1.0}, "below an output.s own size"),
        ({"rtol": float("nan")}, "a number above zero"),
        ({"variants": "many"}, "no set of variants"),
        ({"importance": "heads.json"}, "no variant that would lose any"),
        ({"dynamic": {"batch": 1.5}}, r"dimension 'batch' is no range .* omnigraph\.Dim"),
        ({"dynamic": {"batch": (1, 2, 3)}}, "is no range"),
        ({"dynamic": {"batch": range(1, 9, 2)}}, "is no range"),
        ({"dynamic": {"batch": "few"}}, "is no range"),
        ({"dynamic": {"batch": True}}, "is no range"),
        ({"dynamic": {"batch": (8, 1)}}, "range is empty"),
        ({"dynamic": [("batch", 1)]}, "are no mapping"),
        ({"dynamic": "batch"}, "'batch' is no range"),
        (
            {"calibration": "a.npz", "quantization": Quantization(calibration="b.npz")},
            "given twice",
        ),
        ({"precison": "int8"}, "no option 'precison'"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_read(given: dict, message: str):
    with pytest.raises(UsageError, match=message):
        ExportOptions.of(None, given)


@pytest.mark.parametrize(
    ("given", "range_"),
    [
        (Dim(1, 8), Dim(1, 8)),
        ((1, 8), Dim(1, 8)),
        ([1, 8], Dim(1, 8)),
        ((1, None), Dim(1)),
        (range(1, 9), Dim(1, 8)),
        (range(9), Dim(0, 8)),
        (range(8, 65, 8), Dim(8, 64, 8)),
        (np.int64(8), Dim(8, 8)),
        ((np.int32(1), np.int64(8)), Dim(1, 8)),
        (8, Dim(8, 8)),
        ("1:8", Dim(1, 8)),
        ("2:", Dim(2)),
        (" 0 : 8 ", Dim(0, 8)),
        ("8", Dim(8, 8)),
    ],
)
def test_a_range_of_sizes_may_be_said_in_each_way(given, range_):
    assert ExportOptions(dynamic={"batch": given}).dynamic == {"batch": range_}


@pytest.mark.parametrize("given", [range(3, 64, 8), range(5, 5), range(8, 0, -8), True])
def test_what_is_no_range_of_sizes_is_refused(given):
    with pytest.raises(UsageError):
        ExportOptions(dynamic={"batch": given})


def test_all_ranges_may_be_said_in_one_text():
    options = ExportOptions(dynamic="batch=1:8,past=0:")
    assert options.dynamic == {"batch": Dim(1, 8), "past": Dim(0)}


def test_options_are_one_value_and_keywords_change_it():
    options = ExportOptions(precision="int8", dynamic={"batch": Dim(1, 8)})
    assert ExportOptions.of(options, {"precision": "fp32"}).dynamic == {"batch": Dim(1, 8)}
    with pytest.raises(UsageError, match="found str"):
        ExportOptions.of("int8", {})  # type: ignore[arg-type]


def test_a_command_refuses_options_that_it_does_not_use():
    with pytest.raises(UsageError, match="bisect does not use option 'kv_cache'"):
        bisect("omninet", "onnx", kv_cache="int8")
    with pytest.raises(UsageError, match="does not use option 'precision'"):
        Subject("omninet", None, ExportOptions(precision="int8"))
    assert set(OF_MODEL) < {found.name for found in fields(ExportOptions)}


@pytest.mark.parametrize("kind", [ExportOptions, Quantization])
def test_each_option_has_a_flag_and_a_help_of_its_own(kind: type):
    flags = [flag for _, _, flag in options_of(kind)]
    assert len(flags) == len(set(flags)) >= 10
    assert all(about.help for _, about, _ in options_of(kind))
