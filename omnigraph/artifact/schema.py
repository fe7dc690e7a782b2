"""The schema of a manifest: what it must hold, and what in it must agree.

`check_manifest` is called when an artifact is opened, before anything of its manifest is used.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from omnigraph.artifact.json_shape import (
    Fault,
    anything,
    each,
    either,
    flag,
    integer,
    mapping,
    maybe,
    name,
    number,
    one_of,
    record,
    text,
)
from omnigraph.artifact.sealing import FORMAT, FORMAT_VERSION, MANIFEST, SIGNATURE
from omnigraph.artifact.zip_file import check_name
from omnigraph.program import dim_terms

#: An error as large as the output itself is no tolerance: zeros would be within it.
MOST_RMS, MOST_PEAK = 1.0, 16.0
#: The largest size of an axis.
_MOST_SIZE = 2**31 - 1
_DTYPES = (
    "bool",
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
    *(f"float{bits}" for bits in (16, 32, 64)),
)
#: What an input that is left out holds, where its role says it.
_DEFAULTS = {"mask": 1, "past": 0}


def _file(value: Any, where: str) -> None:
    if isinstance(value, str):
        check_name(value, MANIFEST)
    name(value, where)
    if value in (MANIFEST, SIGNATURE):
        raise Fault(where, "a file of the vendor or a golden pair", value)


def _size(value: Any, where: str) -> None:
    """A size, a name, or a sum of both."""
    either(integer(0, _MOST_SIZE), name)(value, where)
    if isinstance(value, str):
        terms = dim_terms(value)
        names = [term for term in terms if not re.fullmatch("[0-9]{1,9}", term)]
        if not names or not all(re.fullmatch(r"\w+", term) for term in terms):
            raise Fault(where, "a size, a name, or a sum of names", value)


def _any_size(value: Any, where: str) -> None:
    """A size, or an expression of names."""
    either(integer(0, _MOST_SIZE), text)(value, where)


def _range(value: Any, where: str) -> None:
    each(maybe(integer(0, _MOST_SIZE)))(value, where)
    if len(value) not in (2, 3):
        raise Fault(where, "a range [least, most], or [least, most, multiple]", value)
    low, high, *multiple = value
    if multiple and not multiple[0]:
        raise Fault(where, "multiples of a number above zero", value)
    if high is not None and (low or 0) > high:
        raise Fault(where, "a range [least, most]", value)


def _sha256(value: Any, where: str) -> None:
    if not isinstance(value, str) or not re.fullmatch("[0-9a-f]{64}", value):
        raise Fault(where, "a sha256 in hexadecimal", value)


_MORE = {"default": maybe(number()), "role": text, "least": number(), "greatest": number()}
_INPUT = record({"name": name, "dtype": one_of(_DTYPES), "shape": each(_size)}, _MORE)
#: The size of an output may be any expression of the dimensions, as the trace has it.
_OUTPUT = record({"name": name, "dtype": one_of(_DTYPES), "shape": each(_any_size)}, _MORE)
#: Probabilities are 1 at most, so no output of them needs a larger scale.
_TOLERANCE = record(
    {},
    {
        "rms": number(0.0, MOST_RMS),
        "peak": number(0.0, MOST_PEAK * MOST_RMS),
        "least_scales": mapping(number(0.0, 1.0)),
        "most_wrong": mapping(integer(0)),
    },
)
_COUNTS = mapping(integer(None))
_PROGRAM = record(
    {"inputs": each(_INPUT), "outputs": each(_OUTPUT), "files": mapping(_file)},
    {
        "state": each(each(name, 2)),
        "golden": maybe(_file),
        "tolerance": _TOLERANCE,
        "details": mapping(anything),
        "ops": _COUNTS,
        "passes": each(record({"name": text, "changes": _COUNTS})),
        "attention": each(
            record(
                {"fused": anything, "op": text, "node": text},
                {"module": text, "form": text, "reason": text},
            )
        ),
        "layers": each(
            record(
                {
                    "layer": text,
                    "op": text,
                    "weights": text,
                    "activations": text,
                    "bits": number(0.0),
                },
                {"block": integer(1)},
            )
        ),
    },
)
_VARIANTS = record(
    {},
    {
        "heads": integer(1),
        "gates": maybe(name),
        "thresholds": mapping(number()),
        "choices": each(
            record(
                {
                    "name": name,
                    "programs": mapping(name),
                    "automatic": each(name),
                    "kept": mapping(each(integer(0))),
                }
            )
        ),
    },
)
#: Fields of a generation_config.json, which ``generate`` checks; and a fact of the programs.
_GENERATION = record({}, {"defaults": mapping(anything), "pads_left": flag})
_MANIFEST = record(
    {
        "format": one_of((FORMAT,)),
        "format_version": integer(1, FORMAT_VERSION),
        "name": text,
        "target": name,
        "device": name,
        "precision": text,
        "programs": mapping(_PROGRAM, name),
        "default_program": name,
        "dimensions": mapping(_range, name),
        "files": mapping(record({"bytes": integer(0), "sha256": _sha256}), _file),
    },
    {
        "requires": mapping(text),
        "tools": mapping(text),
        "options": mapping(anything),
        "quantization": mapping(anything),
        "model": mapping(anything),
        "variants": _VARIANTS,
        "generation": _GENERATION,
        "tokenizer": mapping(_file),
    },
)


def check_manifest(manifest: Any) -> None:
    """Refuse a manifest that has not the shape that is needed, or contradicts itself.

    Keys that it does not know are allowed.

    Raises:
        Fault: naming the entry.
        ArtifactError: a file name leaves the artifact.
    """
    _MANIFEST(manifest, "")
    programs = manifest["programs"]
    if manifest["default_program"] not in programs:
        raise Fault("default_program", "one of the programs", manifest["default_program"])
    for program, entry in programs.items():
        _check_program(f"programs.{program}", entry, manifest)
    _check_variants(manifest.get("variants", {}), programs)
    for file in manifest.get("tokenizer", {}).values():
        if file not in manifest["files"]:
            raise Fault("tokenizer", "files that the manifest lists", file)


def _check_program(where: str, entry: Mapping[str, Any], manifest: Mapping[str, Any]) -> None:
    inputs = {spec["name"]: spec for spec in entry["inputs"]}
    outputs = {spec["name"]: spec for spec in entry["outputs"]}
    names = [spec["name"] for spec in (*entry["inputs"], *entry["outputs"])]
    if twice := [n for n in names if names.count(n) > 1]:
        raise Fault(where, "a name of its own for each input and output", twice[0])
    if not outputs:
        raise Fault(f"{where}.outputs", "an output", "none")
    for spec in entry["inputs"]:
        _check_default(f"{where}.inputs", spec, manifest["dimensions"])
        for dim in _ranged(spec):
            if dim not in manifest["dimensions"]:
                raise Fault(f"dimensions.{dim}", "a range, since inputs have this size", "none")
    for given, result in entry.get("state", ()):
        if given not in inputs or result not in outputs:
            raise Fault(f"{where}.state", "pairs of an input and an output", [given, result])
        if inputs[given]["dtype"] != outputs[result]["dtype"]:
            raise Fault(f"{where}.state", "pairs of one dtype", [given, result])
    for output in entry.get("tolerance", {}).get("most_wrong", ()):
        dtype = outputs.get(output, {}).get("dtype", "none")
        if dtype != "bool" and "int" not in dtype:
            at = f"{where}.tolerance.most_wrong.{output}"
            raise Fault(at, "an output of integers or booleans", dtype)
    golden = entry.get("golden")
    for file in (*entry["files"].values(), *((golden,) if golden is not None else ())):
        if file not in manifest["files"]:
            raise Fault(where, "files that the manifest lists", file)
    if golden is not None:
        record({"rms": anything, "peak": anything})(
            entry.get("tolerance", {}), f"{where}.tolerance"
        )


def _check_default(where: str, spec: Mapping[str, Any], dimensions: Mapping[str, Any]) -> None:
    default = spec.get("default")
    if default is None:
        return
    at = f"{where}.{spec['name']}.default"
    usual = _DEFAULTS.get(spec.get("role", ""), default)
    if default != usual:
        raise Fault(at, f"{usual} for a {spec['role']}", default)
    if spec.get("role") == "past" and not may_be_empty(spec["shape"], dimensions):
        raise Fault(at, "none, since a past that is left out is empty and this cannot be", default)
    with np.errstate(over="ignore"):
        if np.asarray(default).astype(spec["dtype"]) != np.float64(default):
            raise Fault(at, f"a value of {spec['dtype']}", default)


def may_be_empty(shape: Sequence[int | str], dimensions: Mapping[str, Sequence[Any]]) -> bool:
    """Whether an axis of a shape may have size 0, by the ranges of the dimensions."""
    return any(dim == 0 or (dim in dimensions and not dimensions[str(dim)][0]) for dim in shape)


def _ranged(spec: Mapping[str, Any]) -> Iterator[str]:
    """The names, and the sums, in the shape of an input: each needs a range."""
    for dim in spec["shape"]:
        if isinstance(dim, str):
            terms = dim_terms(dim)
            yield from (term for term in terms if not term.isdigit())
            if len(terms) > 1:
                yield dim


def _check_variants(variants: Mapping[str, Any], programs: Mapping[str, Any]) -> None:
    gates = variants.get("gates")
    if gates is not None:
        if gates not in programs:
            raise Fault("variants.gates", "one of the programs", gates)
        for spec in programs[gates]["outputs"]:
            if spec["name"] not in variants.get("thresholds", {}):
                raise Fault(f"variants.thresholds.{spec['name']}", "a number", "none")
    for choice in variants.get("choices", ()):
        where = f"variants.choices {choice['name']}"
        for program in (*choice["programs"], *choice["programs"].values(), *choice["automatic"]):
            if program not in programs:
                raise Fault(where, "programs of the artifact", program)
        for heads in choice["kept"].values():
            most = variants.get("heads", 0)
            if len(set(heads)) < len(heads) or max(heads, default=-1) >= most:
                raise Fault(where, "heads that there are, each once", heads)
        for program in choice["automatic"]:
            smaller = programs.get(choice["programs"].get(program), {})
            if gates is None or smaller.get("inputs") != programs[program]["inputs"]:
                raise Fault(where, "gates, and a variant with the same inputs", program)
            own = {spec["name"] for spec in programs[program]["inputs"]}
            if not {spec["name"] for spec in programs[gates]["inputs"]} <= own:
                raise Fault(where, "gates that read inputs of the program", program)
