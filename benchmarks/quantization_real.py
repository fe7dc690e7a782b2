"""Quantization judged on real weights: ``python -m benchmarks.quantization_real``.

all-MiniLM-L6-v2 embeds sentences that nothing was calibrated on, in each precision of ours and of
the vendors' own tools, in one run: cosine to fp32, the share of sentences whose nearest neighbour
stays the same, and times of two threads, contestants in turns.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import omnigraph
from benchmarks.quantization_peers import (
    Feeds,
    nncf_models,
    onnxruntime_call,
    onnxruntime_dynamic,
    openvino_call,
    plain_onnx,
    plain_openvino,
)
from benchmarks.real_models import minilm, sentences
from benchmarks.timing import print_table, save, take_turns

THREADS = 2
CALIBRATION, TEST = 128, 400
#: How many other sets of as many sentences the share of equal neighbours is a mean over.
SETS = 4
PRECISIONS = ("fp32", "int8", "int8-dynamic", "int8-weights", "int4-weights")
PEERS = ("int8", "int8-weights", "int4-weights", "int4-weights all")
#: Rows and tokens of the calls that are timed.
SHAPES = {"1 x 32": (1, 32), "16 x 32": (16, 32)}
_REST = 0.03
Embed = Callable[[Feeds], np.ndarray]


class MeanPooling(nn.Module):
    """The model as sentence-transformers runs it: means of the shown tokens, of length one."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        from transformers import AutoModel

        self.model = AutoModel.from_pretrained(folder, attn_implementation="sdpa").eval()

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """[batch, hidden], of tokens [batch, sequence]."""
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask)[0]
        shown = attention_mask[..., None].to(hidden.dtype)
        mean = (hidden * shown).sum(1) / shown.sum(1)
        return nn.functional.normalize(mean, dim=-1)


def main() -> None:
    """Export all, compare and time them; print and save the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="names of contestants, joined by commas")
    parser.add_argument("--no-times", action="store_true", help="compare alone")
    asked = parser.parse_args()
    folder = minilm()
    tokens = _tokenized(folder, CALIBRATION + SETS * TEST)
    calibration, test = tokens[:CALIBRATION], tokens[CALIBRATION:]
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        calls = dict(_contestants(folder, calibration, Path(scratch), asked.only.split(",")))
        reference = _embed_torch(folder, test)
        for name, call in calls.items():
            found = np.concatenate([call(feeds) for feeds in test])
            rows[name] = {"cosine": _cosine(found, reference), "same": _same(found, reference)}
            print(name, rows[name], flush=True)
        if not asked.no_times:
            for shape, times in _times(calls).items():
                for name, seconds in times.items():
                    rows[name][shape] = 1e3 * seconds
    _print(rows)
    if not asked.no_times:
        save("quantization_real", {"threads": THREADS, "minilm": rows})


def _tokenized(folder: Path, count: int) -> list[Feeds]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    ids = [np.array([e.ids[:128]]) for e in tokenizer.encode_batch(sentences()[:count])]
    return [{"input_ids": i, "attention_mask": np.ones_like(i)} for i in ids]


def _embed_torch(folder: Path, feeds: list[Feeds]) -> np.ndarray:
    model = MeanPooling(folder)
    with torch.no_grad():
        each = [model(**{n: torch.from_numpy(a) for n, a in f.items()}).numpy() for f in feeds]
    return np.concatenate(each)


# Contestants --------------------------------------------------------------------------------------


def _contestants(
    folder: Path, calibration: list[Feeds], scratch: Path, only: list[str]
) -> Iterator[tuple[str, Embed]]:
    for target in ("onnx", "openvino"):
        for precision in PRECISIONS:
            if only == [""] or f"{target} {precision}" in only:
                yield (
                    f"{target} {precision}",
                    _ours(folder, target, precision, calibration, scratch),
                )
    example = {name: torch.from_numpy(array) for name, array in calibration[0].items()}
    plain = plain_openvino(MeanPooling(folder), example, scratch / "plain.xml")
    kinds = [k for k in PEERS if only == [""] or f"nncf {k}" in only]
    for kind, path in nncf_models(plain, calibration, scratch, kinds).items():
        yield f"nncf {kind}", openvino_call(path, threads=THREADS)
    if only == [""] or "onnxruntime int8-dynamic" in only:
        plain = plain_onnx(MeanPooling(folder), example, scratch / "plain.onnx")
        path = onnxruntime_dynamic(plain, scratch)
        yield "onnxruntime int8-dynamic", onnxruntime_call(path, THREADS)


def _ours(
    folder: Path, target: str, precision: str, calibration: list[Feeds], scratch: Path
) -> Embed:
    def calibration_sentences() -> Iterator[Feeds]:
        yield from calibration

    out = scratch / f"{target}-{precision}"
    given = {} if precision == "fp32" else {"calibration": calibration_sentences}
    omnigraph.export(folder, target, precision=precision, outputs=[_OUTPUT], out=out, **given)
    session = omnigraph.load(out, threads=THREADS)
    return lambda feeds: session.run(feeds)[_OUTPUT]


_OUTPUT = "sentence_embedding"

# Figures ------------------------------------------------------------------------------------------


def _cosine(found: np.ndarray, reference: np.ndarray) -> float:
    sizes = np.linalg.norm(found, axis=1) * np.linalg.norm(reference, axis=1)
    return float(((found * reference).sum(axis=1) / sizes).mean())


def _same(found: np.ndarray, reference: np.ndarray) -> float:
    """The share of sentences with the same nearest neighbour among the others of their set."""
    shares = []
    for start in range(0, len(found), TEST):
        nearest = []
        for vectors in (found[start : start + TEST], reference[start : start + TEST]):
            unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
            alike = unit @ unit.T
            np.fill_diagonal(alike, -1)
            nearest.append(alike.argmax(axis=1))
        shares.append(np.mean(nearest[0] == nearest[1]))
    return float(np.mean(shares))


def _times(calls: Mapping[str, Embed]) -> dict[str, dict[str, float]]:
    times = {}
    for shape, (rows, tokens) in SHAPES.items():
        ids = np.random.default_rng(0).integers(1000, 20000, (rows, tokens))
        feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        turns = {name: partial(call, feeds) for name, call in calls.items()}
        times[shape] = take_turns(turns, seconds=25, rest=_REST)
    return times


def _print(rows: Mapping[str, Mapping[str, Any]]) -> None:
    print_table(
        ("", "cosine to fp32", "same neighbour", *(f"ms, {shape}" for shape in SHAPES)),
        [
            (
                name,
                f"{row['cosine']:.4f}",
                f"{row['same']:.1%}",
                *(f"{row[shape]:.2f}" if shape in row else "" for shape in SHAPES),
            )
            for name, row in rows.items()
        ],
    )


if __name__ == "__main__":
    main()
