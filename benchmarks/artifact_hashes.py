"""Hashes of the files of many exports: equal before and after a change that should change nothing.

    python -m benchmarks.artifact_hashes --save before.json          about 15 minutes on two cores
    python -m benchmarks.artifact_hashes --compare before.json       exit status 1 where one differs
    python -m benchmarks.artifact_hashes --compare before.json --only quick

Artifacts are deterministic, so that equality of bytes shows that a change of the code left every
number alone. Only the versions of the tools are left out of what is hashed. Run both sides in
folders whose paths are equally long: TensorRT numbers the symbols of a network with a past by
addresses, which depend on that.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from fnmatch import fnmatch
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

TARGETS_OF = {
    "fp32": ("onnx", "openvino"),
    "fp16": ("onnx", "openvino", "tensorrt"),
    "bf16": ("openvino", "tensorrt"),
    "int8": ("onnx", "openvino", "tensorrt"),
    "int8-dynamic": ("onnx", "openvino"),
    "int8-weights": ("onnx", "openvino", "tensorrt"),
    "int4-weights": ("onnx", "openvino", "tensorrt"),
    "fp8": ("tensorrt",),
}
KINDS = ("encoder", "decoder", "encoder-decoder")
POSITIONS = ("absolute", "relative", "rotary", "alibi")
#: Cases that are taken first, and by ``--only quick``: each precision, and each way in.
QUICK_PAIRS = {("decoder", "rotary")}


@dataclass(frozen=True)
class Export:
    """One call of ``omnigraph.export``.

    Args:
        model: what is exported, or what makes it in an empty folder.
        options: of the call.
        quick: whether it is one of the few that are taken by ``--only quick``.
    """

    name: str
    model: str | Callable[[Path], str]
    targets: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    quick: bool = True


def exports() -> Iterator[Export]:
    """Every export, those that are quick first."""
    every = [*_of_omninet(), *_of_others()]
    yield from sorted(every, key=lambda export: not export.quick)


def _of_omninet() -> Iterator[Export]:
    for (kind, positions), (precision, targets) in product(
        product(KINDS, POSITIONS), TARGETS_OF.items()
    ):
        yield Export(
            f"{kind}-{positions}-{precision}",
            "omninet",
            targets,
            {
                "config": "tiny",
                "settings": {"kind": kind, "positions": positions},
                "precision": precision,
            },
            quick=(kind, positions) in QUICK_PAIRS,
        )
    tiny = {"config": "tiny", "settings": {"kind": "decoder", "positions": "alibi"}}
    both = ("onnx", "openvino")
    yield Export("compensated", "omninet", both, {**tiny, **_data(), "precision": "int4-weights"})
    yield Export("calibrated", "omninet", both, {**tiny, **_data(), "precision": "int8"})
    yield Export(
        "budget", "omninet", both, {**tiny, **_data(max_loss=0.02), "precision": "int4-weights"}
    )
    yield Export("caches", "omninet", both, {**tiny, "kv_cache": "int8"})
    gated = {"kind": "encoder", "positions": "alibi", "head_pruning": "true"}
    yield Export(
        "variants", "omninet", both, {"config": "tiny", "settings": gated, "variants": "heads=4,2"}
    )
    yield Export("outputs", "omninet", both, {**tiny, "last": ["logits"]})
    edits = "fuse-projections,-fuse-gelu,fold-position-bias:rows_of_products=True"
    yield Export("edited", "omninet", both, {**tiny, "passes": edits, "precision": "int8"})


def _of_others() -> Iterator[Export]:
    for name, make in {"bert": _bert, "llama": _llama, "onnx-file": _onnx_file}.items():
        yield Export(f"{name}-fp16", make, ("onnx", "openvino", "tensorrt"), {"precision": "fp16"})
        yield Export(f"{name}-int8", make, ("onnx", "openvino", "tensorrt"), {"precision": "int8"})


def _data(**others: object) -> dict[str, Any]:
    """Options of quantization with data of a fixed seed."""
    return {"data": others}


#: The sizes of the models of Hugging Face.
_SMALL = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 96,
    "initializer_range": 0.2,
}


def _bert(folder: Path) -> str:
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.BertConfig(**_SMALL)
    transformers.BertModel(config).eval().save_pretrained(folder / "bert")
    return str(folder / "bert")


def _llama(folder: Path) -> str:
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(num_key_value_heads=2, **_SMALL)
    transformers.LlamaForCausalLM(config).eval().save_pretrained(folder / "llama")
    return str(folder / "llama")


def _onnx_file(folder: Path) -> str:
    import torch

    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, activation="gelu").eval()
    batch, sequence = torch.export.Dim("batch"), torch.export.Dim("sequence")
    torch.onnx.export(
        layer,
        (torch.randn(2, 7, 32),),
        folder / "layer.onnx",
        input_names=["hidden"],
        dynamic_shapes=({0: batch, 1: sequence},),
        opset_version=20,
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    return str(folder / "layer.onnx")


def hashes_of(name: str) -> dict[str, str]:
    """Make one export, in this process, and hash each file of each artifact."""
    import numpy as np

    import omnigraph

    (export,) = (export for export in exports() if export.name == name)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model = export.model if isinstance(export.model, str) else export.model(folder)
        options = dict(export.options)
        if (others := options.pop("data", None)) is not None:
            from omnigraph.quantization.options import Quantization

            draw = np.random.default_rng(0)
            np.savez(folder / "data.npz", input_ids=draw.integers(0, 256, (24, 17)))
            options["calibration"] = folder / "data.npz"
            options["quantization"] = Quantization(**others)
        made = folder / ("made" if len(export.targets) > 1 else "made.omni")
        reports = omnigraph.export(model, list(export.targets), out=made, **options)
        return {
            f"{name}/{report.target}/{file}": digest
            for report in reports
            for file, digest in _digests(report.path)
        }


def _digests(artifact: Path) -> Iterator[tuple[str, str]]:
    """The hash of each file, and of each field of the manifest."""
    with zipfile.ZipFile(artifact) as opened:
        for file in sorted(opened.namelist()):
            data = opened.read(file)
            if file != "manifest.json":
                yield file, _digest(data)
                continue
            for name, value in _fields(json.loads(data)):
                yield f"{file}#{name}", _digest(json.dumps(value, sort_keys=True).encode())


def _fields(manifest: dict[str, Any]) -> Iterator[tuple[str, object]]:
    """The fields of a manifest, without versions, and without the hash of all of them."""
    for name, program in manifest.pop("programs").items():
        for key, value in program.items():
            yield f"programs.{name}.{key}", value
    for name, value in manifest.items():
        if name not in ("tools", "integrity"):
            yield name, value


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def main() -> int:
    """Print a hash for each file; compare with those that an earlier run saved."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--only", default="*", metavar="PATTERN", help="names, or quick")
    parser.add_argument("--save", type=Path, metavar="FILE", help="write the hashes as JSON")
    parser.add_argument("--compare", type=Path, metavar="FILE", help="what --save wrote before")
    parser.add_argument("--jobs", type=int, default=2, help="exports at a time (2)")
    chosen = parser.parse_args()
    names = [
        e.name
        for e in exports()
        if fnmatch(e.name, chosen.only) or (chosen.only == "quick" and e.quick)
    ]
    # One thread each: sums of the same order on every machine of a kind.
    os.environ["OMP_NUM_THREADS"] = "1"
    found: dict[str, str] = {}
    failed = []
    with ProcessPoolExecutor(chosen.jobs, mp_context=get_context("spawn")) as pool:
        running = {pool.submit(hashes_of, name): name for name in names}
        for done in as_completed(running):
            try:
                found.update(done.result())
            except Exception as error:
                failed.append(running[done])
                print(f"{running[done]}: {type(error).__name__}: {error}", file=sys.stderr)
    for file, digest in sorted(found.items()):
        print(digest, file)
    if chosen.save is not None:
        chosen.save.write_text(json.dumps(dict(sorted(found.items())), indent=1) + "\n")
    if chosen.compare is None:
        return 1 if failed else 0
    before = {
        file: digest
        for file, digest in json.loads(chosen.compare.read_text()).items()
        if file.split("/", 1)[0] in names
    }
    changed = sorted(f for f in before.keys() | found.keys() if before.get(f) != found.get(f))
    for file in changed:
        print(f"differs: {file}", file=sys.stderr)
    total = hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()
    print(f"{len(found)} files, {len(changed)} differ; all: {total}", file=sys.stderr)
    return 1 if changed or failed else 0


if __name__ == "__main__":
    sys.exit(main())
