"""Speed, error and size of variants with fewer heads: ``python -m benchmarks.head_pruning``.

An encoder of the seed's width (1024, 16 heads; 4 layers, or as many as are asked for) with ALiBi
and gates that depend on the input: a request of "plain" tokens leaves 8 heads of each attention
open, one of "mixed" tokens 12, and one of "rich" tokens all 16. Nothing here is trained: the gates
read two features of the embeddings that the tokens were given for this purpose.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import omnigraph
from benchmarks.timing import print_table, save, take_turns
from omnigraph.models import OmniNet, OmniNetConfig
from omnigraph.models.head_gate import HeadGate
from omnigraph.models.programs import programs
from omnigraph.runtimes.base import Session

TARGETS = (("onnx", "fp32"), ("openvino", "fp32"), ("openvino", "bf16"))
KEEPS = (16, 12, 8, 4)
REQUESTS = ("plain", "mixed", "rich")
#: How large the two features are that gates read, beside embeddings of deviation 0.02.
_SIGNAL = 1.0


def main() -> None:
    """Compile, measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--config", default="seed", help="its width and heads; 16 heads at least")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=30, help="for each target")
    parser.add_argument("--targets", default="onnx,openvino")
    parser.add_argument("--no-save", action="store_true")
    args = parser.parse_args()
    model = gated_model(args.config, args.layers)
    requests = {kind: request(model, kind, args.tokens) for kind in REQUESTS}
    with torch.no_grad():
        expected = {k: model.encode(torch.from_numpy(v))[0].numpy() for k, v in requests.items()}
    figures: dict[str, Any] = {}
    whole = sum(parameter.numel() for parameter in model.parameters())
    for target, precision in TARGETS:
        if target not in args.targets.split(","):
            continue
        with tempfile.TemporaryDirectory() as scratch:
            path = export(model, target, precision, Path(scratch))
            with omnigraph.load(path) as net:
                figures[f"{target} {precision}"] = measure(net, requests, expected, args.seconds)
                figures[f"{target} {precision}"]["bytes"] = {
                    "artifact": net.artifact.size,
                    "model": whole * (4 if precision == "fp32" else 2),
                }
    report(figures)
    if not args.no_save:
        fields = {"config": args.config, "layers": args.layers, "tokens": args.tokens}
        save("head_pruning", {**fields, "targets": figures})


def gated_model(config: str, layers: int) -> OmniNet:
    """An encoder whose gates 0 to 7 are open, 8 to 11 for mixed and rich, the rest for rich."""
    model = OmniNet.from_seed(
        OmniNetConfig.named(
            config,
            kind="encoder",
            num_layers=layers,
            num_heads=16,
            positions="alibi",
            head_pruning=True,
        ),
        trained_like=True,
    ).eval()
    third = model.config.vocab_size // 3
    with torch.no_grad():
        table = model.token_embedding.weight
        for feature, first in ((0, third), (1, 2 * third)):
            table[:first, feature], table[first:, feature] = -_SIGNAL, _SIGNAL
        for gate in (module for module in model.modules() if isinstance(module, HeadGate)):
            gate.score.weight.zero_()
            gate.score.bias.copy_(torch.tensor([4.0] * 8 + [0.0] * 8))
            gate.score.weight[8:12, 0] = gate.score.weight[12:, 1] = 4.0
    return model


def request(model: OmniNet, kind: str, length: int) -> np.ndarray:
    """Tokens [1, T] of one kind: each kind has a third of the vocabulary."""
    third = model.config.vocab_size // 3
    first = REQUESTS.index(kind) * third
    return np.random.default_rng(0).integers(first, first + third, (1, length))


def export(model: OmniNet, target: str, precision: str, scratch: Path) -> Path:
    """The encoder with its variants; heads that are open most often are kept longest."""
    scores = [3 - head / 100 for head in range(16)]
    importance = {f"encoder.blocks.{i}.self_attention": scores for i in range(99)}
    layers = model.config.encoder_layers
    (scratch / "heads.json").write_text(json.dumps(dict(list(importance.items())[:layers])))
    (made,) = omnigraph.export(
        [program for program in programs(model) if program.name == "encode"],
        target,
        precision=precision,
        variants=f"heads={','.join(map(str, KEEPS))}",
        importance=str(scratch / "heads.json"),
        out=scratch / f"{target}-{precision}",
    )
    return made.path


def measure(
    net: Session,
    requests: dict[str, np.ndarray],
    expected: dict[str, np.ndarray],
    seconds: float,
) -> dict[str, Any]:
    """Medians of each variant, of the gates alone, and of what is chosen; errors by request."""
    calls: dict[str, Callable[[], Any]] = {}
    for variant in net.variants:
        calls[variant] = lambda v=variant: net.run(input_ids=requests["rich"], variant=v)
    for kind, ids in requests.items():
        calls[f"auto, {kind} request"] = lambda ids=ids: net.run(input_ids=ids)
    calls["the gates alone"] = lambda: net.run(program="gates", input_ids=requests["rich"])
    times = take_turns(calls, seconds=seconds)
    figures: dict[str, Any] = {}
    for name, time in times.items():
        figures[name] = {"ms": time * 1e3, "times_whole": time / times["whole"]}
    for variant in net.variants:
        figures[variant]["error"] = {
            kind: error(net.run(input_ids=ids, variant=variant), expected[kind])
            for kind, ids in requests.items()
        }
    for kind, ids in requests.items():
        before = net.answered.copy()
        found = error(net.run(input_ids=ids), expected[kind])
        (chosen,) = net.answered - before
        figures[f"auto, {kind} request"] |= {"error": {kind: found}, "chosen": chosen}
    return figures


def error(found: dict[str, np.ndarray], expected: np.ndarray) -> float:
    """The root mean square of the error against the whole torch model, relative to its own."""
    wrong = found["last_hidden_state"].astype(np.float64) - expected
    return float(np.sqrt(np.mean(np.square(wrong)) / np.mean(np.square(expected))))


def text(number: float | None) -> str:
    """A cell of the table; empty for what is not measured."""
    return "" if number is None else f"{number:.1e}"


def report(figures: dict[str, Any]) -> None:
    """One table for each target."""
    for target, found in figures.items():
        sizes = found["bytes"]
        print(
            f"\n{target}: {sizes['artifact'] / 1e6:.0f} MB with all variants, "
            f"{sizes['model'] / 1e6:.0f} MB of them the whole model\n"
        )
        print_table(
            ("", "ms", "times whole", *(f"error, {kind}" for kind in REQUESTS), "chosen"),
            [
                (
                    name,
                    f"{f['ms']:.1f}",
                    f"{f['times_whole']:.2f}",
                    *(text(f.get("error", {}).get(kind)) for kind in REQUESTS),
                    f.get("chosen", ""),
                )
                for name, f in found.items()
                if name != "bytes"
            ],
        )


if __name__ == "__main__":
    main()
