"""A manifest whose hash is right, and that is wrong otherwise, is refused with its reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from artifact_files import fill, rewrite

from omnigraph.artifact import MANIFEST, Artifact
from omnigraph.errors import ArtifactError


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return fill(tmp_path / "net")


def change(directory: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    fields = json.loads((directory / MANIFEST).read_text())
    edit(fields)
    rewrite(directory, fields)


def put(path: str, value: object) -> Callable[[dict[str, Any]], None]:
    """Sets one entry: ``programs.forward.golden``."""

    def edit(fields: dict[str, Any]) -> None:
        *parts, last = path.split(".")
        at: Any = fields
        for part in parts:
            at = at[int(part) if isinstance(at, list) else part]
        at[int(last) if isinstance(at, list) else last] = value

    return edit


def drop(path: str) -> Callable[[dict[str, Any]], None]:
    def edit(fields: dict[str, Any]) -> None:
        *parts, last = path.split(".")
        at: Any = fields
        for part in parts:
            at = at[int(part) if isinstance(at, list) else part]
        del at[int(last) if isinstance(at, list) else last]

    return edit


def mask(default: int, role: str) -> dict[str, Any]:
    return {"name": "mask", "dtype": "int8", "shape": [], "default": default, "role": role}


def variants(**changes: object) -> Callable[[dict[str, Any]], None]:
    choice = {"name": "heads=2", "programs": {}, "automatic": [], "kept": {}, **changes}
    return put("variants", {"heads": 4, "choices": [choice]})


PROGRAM = "programs.forward"
WRONG = {
    "a file of a tokenizer that is not there": put("tokenizer", {"tokenizer.json": "no.json"}),
    "defaults of generation are a list": put("generation", {"defaults": []}),
    "a fact of padding is text": put("generation", {"pads_left": "yes"}),
    "no programs": drop("programs"),
    "programs is a list": put("programs", []),
    "no program": put("programs", {}),
    "a program is null": put(PROGRAM, None),
    "no name": drop("name"),
    "no target": drop("target"),
    "target is a number": put("target", 3),
    "no device": drop("device"),
    "no default program": drop("default_program"),
    "another default program": put("default_program", "encode"),
    "version is text": put("format_version", "1"),
    "version is null": put("format_version", None),
    "version is true": put("format_version", True),
    "version is none yet": put("format_version", 0),
    "files is null": put("files", None),
    "a size is text": put("files.x", {"bytes": "5", "sha256": "0" * 64}),
    "a negative size": put("files.x", {"bytes": -1, "sha256": "0" * 64}),
    "no hash": put("files.x", {"bytes": 1}),
    "a short hash": put("files.x", {"bytes": 1, "sha256": "0" * 63}),
    "no inputs": drop(f"{PROGRAM}.inputs"),
    "no outputs": put(f"{PROGRAM}.outputs", []),
    "no shape": drop(f"{PROGRAM}.inputs.0.shape"),
    "a shape is text": put(f"{PROGRAM}.inputs.0.shape", "batch"),
    "a size below zero": put(f"{PROGRAM}.inputs.0.shape.0", -1),
    "a size is a fraction": put(f"{PROGRAM}.inputs.0.shape.0", 1.5),
    "a size is true": put(f"{PROGRAM}.inputs.0.shape.0", True),
    "a huge size": put(f"{PROGRAM}.inputs.0.shape.0", 2**40),
    "a size without a name": put(f"{PROGRAM}.inputs.0.shape.0", "batch + "),
    "a sum of numbers": put(f"{PROGRAM}.inputs.0.shape.0", "1 + 2"),
    "an unknown dtype": put(f"{PROGRAM}.inputs.0.dtype", "object"),
    "a name is a list": put(f"{PROGRAM}.inputs.0.name", ["x"]),
    "two tensors of one name": put(f"{PROGRAM}.inputs.0.name", "y"),
    "a default is text": put(f"{PROGRAM}.inputs.1.default", "1"),
    "a default that does not fit": put(f"{PROGRAM}.inputs.1", mask(300, "")),
    "a default that is not the role's": put(f"{PROGRAM}.inputs.1", mask(0, "mask")),
    "a past that may be left out and cannot be empty": put(
        f"{PROGRAM}.inputs.1",
        {"name": "p", "dtype": "int8", "shape": ["length"], "default": 0, "role": "past"},
    ),
    "a dimension is deleted": drop("dimensions.batch"),
    "a sum is deleted": drop("dimensions.past + length"),
    "all dimensions are deleted": put("dimensions", {}),
    "no dimensions": drop("dimensions"),
    "a dimension is renamed": lambda f: f["dimensions"].update(Batch=f["dimensions"].pop("batch")),
    "an axis is renamed": put(f"{PROGRAM}.inputs.0.shape.0", "rows"),
    "a range is a number": put("dimensions.batch", 3),
    "a range of four": put("dimensions.batch", [1, 2, 1, 1]),
    "an empty range": put("dimensions.batch", [3, 2]),
    "a negative range": put("dimensions.batch", [-1, 2]),
    "a range of text": put("dimensions.batch", ["1", None]),
    "files of a program is a list": put(f"{PROGRAM}.files", ["a.onnx"]),
    "a file that is not listed": put(f"{PROGRAM}.files.model", "b.onnx"),
    "a file is a number": put(f"{PROGRAM}.files.model", 1),
    "the manifest as a model": put(f"{PROGRAM}.files.model", "manifest.json"),
    "a golden pair that is not listed": put(f"{PROGRAM}.golden", "golden.npz"),
    "a golden pair without a tolerance": put(f"{PROGRAM}.golden", "a.onnx"),
    "state is one name": put(f"{PROGRAM}.state", ["x"]),
    "state of no input": put(f"{PROGRAM}.state", [["z", "y"]]),
    "state of no output": put(f"{PROGRAM}.state", [["x", "x"]]),
    "a huge tolerance": put(f"{PROGRAM}.tolerance", {"rms": 1e9, "peak": 1e9}),
    "a huge peak": put(f"{PROGRAM}.tolerance", {"rms": 1e-6, "peak": 1e9}),
    "a negative tolerance": put(f"{PROGRAM}.tolerance", {"rms": -1e-6, "peak": 1e-6}),
    "a tolerance is text": put(f"{PROGRAM}.tolerance", {"rms": "1e-6", "peak": 1e-6}),
    "details is a list": put(f"{PROGRAM}.details", []),
    "ops are text": put(f"{PROGRAM}.ops", {"MatMul": "1"}),
    "layers without types": put(f"{PROGRAM}.layers", [{"layer": "x"}]),
    "attention is null": put(f"{PROGRAM}.attention", [None]),
    "requires is a list": put("requires", ["onnxruntime"]),
    "variants of no program": variants(programs={"forward": "none"}),
    "variants with heads that there are not": variants(kept={"a": [4]}),
    "variants without gates": variants(programs={"forward": "forward"}, automatic=["forward"]),
    "gates of no program": put("variants", {"gates": "gates"}),
    "gates without a threshold": put("variants", {"gates": "forward"}),
}  # fmt: skip


@pytest.mark.parametrize("edit", WRONG.values(), ids=WRONG)
def test_a_wrong_manifest_is_refused_before_it_is_used(directory: Path, edit):
    change(directory, edit)
    with pytest.raises(ArtifactError, match=r"in the manifest of [\s\S]*hint: ") as refused:
        Artifact(directory)
    assert refused.value.expected is not None and refused.value.found is not None


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_number_that_is_not_finite_is_refused(directory: Path, text: str):
    change(directory, put("programs.forward.tolerance", {"rms": 12345.5, "peak": 1.0}))
    path = directory / MANIFEST
    path.write_text(path.read_text().replace("12345.5", text))
    with pytest.raises(ArtifactError):
        Artifact(directory)


@pytest.mark.parametrize(
    "data",
    [b"", b"null", b"[]", b"{}", b"\xff\xfe", b"[" * 100_000, b'{"format": 3}', b"1" * 9999],
    ids=["nothing", "null", "list", "object", "bytes", "deep", "number", "digits"],
)  # fmt: skip
def test_what_is_no_manifest_is_refused(directory: Path, data: bytes):
    (directory / MANIFEST).write_bytes(data)
    with pytest.raises(ArtifactError, match=r"damaged|not an OmniGraph artifact"):
        Artifact(directory)


def test_a_key_that_hides_another_is_refused(directory: Path):
    path = directory / MANIFEST
    text = path.read_text()
    path.write_text(text.replace('"target":', '"target": "openvino", "target":', 1))
    with pytest.raises(ArtifactError, match="damaged"):
        Artifact(directory)


def test_damage_is_said_before_a_version_is(directory: Path):
    fields = json.loads((directory / MANIFEST).read_text())
    (directory / MANIFEST).write_text(json.dumps({**fields, "format_version": 2}))
    with pytest.raises(ArtifactError, match="was changed after export"):
        Artifact(directory)


def test_keys_of_later_versions_are_taken(directory: Path):
    def edit(fields: dict[str, Any]) -> None:
        for at in (
            fields,
            fields["programs"]["forward"],
            fields["programs"]["forward"]["inputs"][0],
        ):
            at["later"] = {"any": [1, None]}
        fields["programs"]["forward"]["inputs"][0]["role"] = "later"

    change(directory, edit)
    opened = Artifact(directory)
    assert opened.programs["forward"].inputs[0].role == ""
    assert opened.manifest["later"] == {"any": [1, None]}
