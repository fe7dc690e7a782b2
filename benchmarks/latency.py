"""Latency of the seed encoder against its peers, in one run: ``python -m benchmarks.latency``.

12 layers, hidden 1024, 16 heads, batch 1, all threads. The last row is a yardstick: as many
operations as the encoder has, at the speed of one large fp32 product of torch in the same run.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import omnigraph
from benchmarks.timing import print_table, save, take_turns
from omnigraph.models import OmniNet, OmniNetConfig

LENGTHS = (128, 512)
OURS = (
    ("onnx", "fp32"),
    ("onnx", "fp16"),
    ("openvino", "fp32"),
    ("openvino", "fp16"),
    ("openvino", "bf16"),
)


class Encoder(torch.nn.Module):
    """The program that is compiled, for the exporters of the peers."""

    def __init__(self, model: OmniNet) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.model.encode(input_ids, attention_mask)[0]


def main() -> None:
    """Compile, measure at each length, print and save."""
    settings = {"kind": "encoder", "positions": "alibi"}
    model = OmniNet.from_seed(OmniNetConfig.named("seed", **settings), trained_like=True).eval()
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for target, precision in OURS:
            omnigraph.export(
                "omninet",
                target,
                config="seed",
                settings=settings,
                precision=precision,
                programs=["encode"],
                out=Path(scratch) / f"{target}-{precision}",
            )
        encoder = Encoder(model)
        plain = plain_onnx(encoder, Path(scratch) / "plain.onnx")
        for length in LENGTHS:
            figures[str(length)] = measure(encoder, plain, Path(scratch), length)
    for length, contest in figures.items():
        print(f"\nencoder, batch 1, {length} tokens\n")
        best = min(f["ms"] for f in contest.values())
        print_table(
            ("", "ms", "times the fastest", "error (rms)"),
            [
                (name, f"{f['ms']:.1f}", f"{f['ms'] / best:.2f}", f"{f['rms']:.1e}")
                for name, f in contest.items()
            ],
        )
    save("latency", {"unit": "ms", "lengths": figures})


def plain_onnx(encoder: Encoder, path: Path) -> Path:
    """What torch's own exporter gives, without any of our passes."""
    ids = torch.randint(0, 50257, (2, 16))
    dynamic = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    with torch.no_grad():
        torch.onnx.export(
            encoder,
            (ids, torch.ones_like(ids)),
            path,
            dynamo=True,
            opset_version=23,
            dynamic_shapes=(dynamic, dynamic),
            external_data=True,
            verbose=False,
        )
    return path


def measure(encoder: Encoder, plain: Path, scratch: Path, length: int) -> dict[str, Any]:
    """Medians and errors of every contestant on the same tokens."""
    ids = np.random.default_rng(0).integers(0, 50257, (1, length))
    mask = np.ones_like(ids)
    contestants: dict[str, Callable[[], Any]] = {}
    with torch.no_grad():
        expected = encoder(torch.from_numpy(ids), torch.from_numpy(mask)).numpy()
    contestants["torch eager fp32"] = torch_call(encoder, ids, mask, None)
    contestants["torch eager bf16"] = torch_call(encoder, ids, mask, torch.bfloat16)
    contestants |= plain_calls(plain, ids, mask)
    sessions = []
    for target, precision in OURS:
        session = omnigraph.load(scratch / f"{target}-{precision}")
        sessions.append(session)
        contestants[f"OmniGraph {target} {precision}"] = lambda s=session: s.run(
            input_ids=ids, attention_mask=mask
        )["last_hidden_state"]
    times = take_turns(contestants, seconds=30 if length <= 128 else 60)
    scale = float(np.sqrt(np.mean(np.square(expected))))
    figures = {}
    for name, call in contestants.items():
        error = np.asarray(call(), np.float32) - expected
        rms = float(np.sqrt(np.mean(np.square(error)))) / scale
        figures[name] = {"ms": times[name] * 1e3, "rms": rms}
    for session in sessions:
        session.close()
    operations = 12 * length * (12 * 1024**2 * 2 + 4 * length * 1024)
    figures["as many fp32 operations in one product"] = {
        "ms": operations / product_speed() * 1e3,
        "rms": 0.0,
    }
    return figures


def torch_call(
    encoder: Encoder, ids: np.ndarray, mask: np.ndarray, dtype: torch.dtype | None
) -> Callable[[], Any]:
    """torch as it is, or under autocast."""
    tensors = torch.from_numpy(ids), torch.from_numpy(mask)

    def call() -> np.ndarray:
        with torch.inference_mode(), torch.autocast("cpu", dtype, enabled=dtype is not None):
            return encoder(*tensors).float().numpy()

    return call


def plain_calls(path: Path, ids: np.ndarray, mask: np.ndarray) -> dict[str, Callable[[], Any]]:
    """The plain export in both vendors' runtimes, called as their documentation says."""
    import onnxruntime
    import openvino

    session = onnxruntime.InferenceSession(path)
    feeds = dict(zip((i.name for i in session.get_inputs()), (ids, mask), strict=True))
    calls = {"onnxruntime fp32, plain export": lambda: session.run(None, feeds)[0]}
    for hint in ("f32", "bf16"):
        compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": hint})
        calls[f"OpenVINO {hint}, plain export"] = lambda c=compiled: c(feeds)[0]
    return calls


def product_speed() -> float:
    """Operations per second of one large fp32 matrix product in torch."""
    a, b = torch.randn(1536, 1536), torch.randn(1536, 1536)
    (seconds,) = take_turns({"product": lambda: a @ b}, seconds=3).values()
    return 2 * 1536**3 / seconds


if __name__ == "__main__":
    main()
