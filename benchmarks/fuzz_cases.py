"""What is damaged, and what may come of it: a refusal with a reason, or the right numbers.

Each kind takes the number of a damage and says what came of it in one word:

- "refused": an OmniGraphError, while it was opened, run or exported;
- "noticed": the golden pair did not come out;
- "same": it gives the numbers that it gave before;
- "WRONG" and "TRACEBACK", with details, are faults of ours. So are a process that dies or hangs,
  which only who runs it can see.
"""

from __future__ import annotations

import abc
import json
import os
import shutil
import sys
import traceback
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper
from onnx import helper as make

import omnigraph
from benchmarks.damages import damaged_bytes, damaged_json, damaged_model, generator
from omnigraph.artifact import MANIFEST, Artifact, seal
from omnigraph.artifact.sealing import integrity_of
from omnigraph.contract.tolerance import deviation
from omnigraph.errors import OmniGraphError
from omnigraph.inspection.inspect import describe_text
from omnigraph.runtimes.base import Session

TARGETS = ("onnx", "openvino")
Numbers = Mapping[str, Mapping[str, np.ndarray]]


def make_artifacts(folder: Path) -> None:
    """Write the artifacts that are damaged, unless they are there: a tiny decoder with a past."""
    if (folder / "whole").exists():
        return
    settings = {"kind": "decoder", "positions": "rotary", "num_layers": "1"}
    options = {"config": "tiny", "settings": settings}
    omnigraph.export("omninet", list(TARGETS), out=folder / "whole", **options)


class Kind(abc.ABC):
    """One kind of damage.

    Args:
        folder: of `make_artifacts`.
        scratch: a folder of this process.
    """

    def __init__(self, folder: Path, scratch: Path) -> None:
        self.folder, self.scratch = folder, scratch

    def outcome(self, number: int) -> str:
        """What comes of one damage."""
        try:
            return self.attempt(number)
        except OmniGraphError as error:
            return "refused" if error.hint else f"TRACEBACK without a hint: {error}"
        except Exception:
            where = traceback.extract_tb(sys.exc_info()[2])[-1]
            last = traceback.format_exc().strip().splitlines()[-1]
            return f"TRACEBACK {last[:200]} ({Path(where.filename).name}:{where.lineno})"

    @abc.abstractmethod
    def attempt(self, number: int) -> str:
        """Make one damage, and use what it left."""


class OfArtifact(Kind):
    """Damages to an artifact, each to that of the target whose turn it is."""

    def __init__(self, folder: Path, scratch: Path) -> None:
        super().__init__(folder, scratch)
        self.whole = {path.name.split("-")[1]: path for path in (folder / "whole").iterdir()}
        self.numbers: dict[str, Numbers] = {}

    def target(self, number: int) -> str:
        """The target whose artifact is damaged."""
        return generator("target", number).choice(TARGETS)

    def directory(self, target: str) -> Path:
        """The whole artifact, as a directory that may be changed and is made anew each time."""
        directory = self.scratch / "net"
        shutil.rmtree(directory, ignore_errors=True)
        with zipfile.ZipFile(self.whole[target]) as archive:
            archive.extractall(directory)
        return directory

    def use(self, path: Path, target: str) -> str:
        """Open, describe, verify and run an artifact."""
        artifact = Artifact(path)
        describe_text({"artifact": str(path), "bytes": artifact.size, **artifact.manifest})
        with omnigraph.load(artifact, threads=1) as session:
            if not all(check.passed for check in session.verify()):
                return "noticed"
            found = numbers(session)
        return self.compare(found, target)

    def compare(self, found: Numbers, target: str) -> str:
        """Whether numbers are those of the whole artifact, as far as both have them."""
        if target not in self.numbers:
            with omnigraph.load(self.whole[target], threads=1) as session:
                self.numbers[target] = numbers(session)
        for program, outputs in self.numbers[target].items():
            for name, reference in outputs.items():
                if name in found.get(program, {}):
                    far = deviation(found[program][name], reference)
                    if not far.rms <= 1e-4:
                        return f"WRONG {program}/{name}: {far.rms:.1e}"
        return "same"


def numbers(session: Session) -> Numbers:
    """The outputs for inputs that no golden pair has: all that may be left out is."""
    feeds = {"input_ids": np.array([[7, 1, 250, 33, 9, 12, 80]])}
    return {
        program: session.run(feeds, program=program)
        for program in ("forward", "decode")
        if program in session.programs
    }


class Archives(OfArtifact):
    """A single file whose bytes are damaged."""

    def attempt(self, number: int) -> str:
        target = self.target(number)
        path = self.scratch / "net.omni"
        path.write_bytes(
            damaged_bytes(self.whole[target].read_bytes(), generator("archive", number))
        )
        return self.use(path, target)


class Manifests(OfArtifact):
    """A manifest whose entries are changed, and whose hash is right again."""

    def attempt(self, number: int) -> str:
        target = self.target(number)
        directory = self.directory(target)
        fields = json.loads((directory / MANIFEST).read_text())
        fields = damaged_json(fields, generator("manifest", number))
        fields["integrity"] = integrity_of(fields)
        (directory / MANIFEST).write_text(json.dumps(fields))
        return self.use(directory, target)


class VendorFiles(OfArtifact):
    """A vendor's file, or a golden pair, whose bytes are damaged, and whose hash is right again."""

    def attempt(self, number: int) -> str:
        target, draw = self.target(number), generator("vendor", number)
        directory = self.directory(target)
        fields = json.loads((directory / MANIFEST).read_text())
        path = directory / draw.choice(sorted(fields["files"]))
        path.write_bytes(damaged_bytes(path.read_bytes(), draw))
        seal(directory, fields)
        with omnigraph.load(directory, threads=1) as session:
            if not all(check.passed for check in session.verify()):
                return "noticed"
            whole = Artifact(self.whole[target])
            for program in whole.programs:
                feeds, golden = whole.golden_pair(program)
                found = session.run(feeds, program=program)
                for name, reference in golden.items():
                    far = deviation(found[name], reference)
                    if not far.rms <= whole.programs[program].tolerance["rms"]:
                        return f"WRONG {program}/{name}: {far.rms:.1e}"
        return "same"


class Models(Kind):
    """An ONNX model that is given to the exporter."""

    def __init__(self, folder: Path, scratch: Path) -> None:
        super().__init__(folder, scratch)
        os.environ["OMNIGRAPH_TIME_LIMIT"] = "10"
        self.model = small_model()

    def attempt(self, number: int) -> str:
        path, out = self.scratch / "model.onnx", self.scratch / "made.omni"
        path.write_bytes(damaged_model(self.model, generator("model", number)))
        out.unlink(missing_ok=True)
        try:
            omnigraph.export(str(path), generator("target", number).choice(TARGETS), out=out)
        except OmniGraphError:
            return "WRONG: an artifact of a failed export" if out.exists() else "refused"
        with omnigraph.load(out, verify=True):
            return "same"


def small_model() -> onnx.ModelProto:
    """Attention, a norm and two linear layers, written out op by op."""
    draw = np.random.default_rng(0)

    def weight(name: str, *shape: int) -> TensorProto:
        return numpy_helper.from_array(draw.standard_normal(shape).astype(np.float32) / 3, name)

    size = 8
    nodes = [
        make.make_node("MatMul", ["x", "wq"], ["q"]),
        make.make_node("MatMul", ["x", "wk"], ["k"]),
        make.make_node("Transpose", ["k"], ["kt"], perm=[0, 2, 1]),
        make.make_node("MatMul", ["q", "kt"], ["scores"]),
        make.make_node("Add", ["scores", "mask"], ["masked"]),
        make.make_node("Softmax", ["masked"], ["weights"], axis=-1),
        make.make_node("MatMul", ["weights", "x"], ["mixed"]),
        make.make_node("LayerNormalization", ["mixed", "scale", "bias"], ["normed"], axis=-1),
        make.make_node("Reshape", ["normed", "rows"], ["flat"]),
        make.make_node("Gemm", ["flat", "wo", "bo"], ["out"]),
        make.make_node("Relu", ["out"], ["y"]),
    ]
    graph = make.make_graph(
        nodes,
        "small",
        [
            make.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "sequence", size]),
            make.make_tensor_value_info("mask", TensorProto.FLOAT, ["batch", 1, "sequence"]),
        ],
        [make.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [
            *(weight(name, size, size) for name in ("wq", "wk")),
            *(weight(name, size) for name in ("scale", "bias")),
            weight("wo", size, 4),
            weight("bo", 4),
            numpy_helper.from_array(np.array([-1, size]), "rows"),
        ],
    )
    return make.make_model(graph, opset_imports=[make.make_opsetid("", 18)])


KINDS: Mapping[str, type[Kind]] = {
    "archive": Archives,
    "manifest": Manifests,
    "vendor": VendorFiles,
    "model": Models,
}
