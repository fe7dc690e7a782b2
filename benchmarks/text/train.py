"""Train an OmniNet on text: ``python -m benchmarks.text.train --kind decoder --out FOLDER``.

It needs torch, numpy and safetensors. Where OmniGraph is not installed and cannot be (it is one
import name over several folders), put the folders in their places and run it there::

    mkdir -p /tmp/text && cp -r omnigraph benchmarks /tmp/text/
    cp -r passes runtimes models /tmp/text/omnigraph/
    cd /tmp/text && python -m benchmarks.text.train --kind decoder --out FOLDER

FOLDER becomes a MODEL: ``omnigraph export FOLDER``; ``training.json`` in it says how it was made.
With ``--minutes`` the number of steps, and so the weights, depend on the machine; with ``--steps``
the weights depend on the seed, the device and the version of torch alone.
"""

from __future__ import annotations

import argparse
import math
import platform
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.text.checkpoints import in_storage, load, save
from benchmarks.text.data import (
    IGNORED,
    KINDS,
    LENGTH,
    PAD,
    VOCABULARY,
    Batch,
    held_out,
    training_batch,
)
from benchmarks.text.loss import perplexity, run_module
from omnigraph.models import OmniNet, OmniNetConfig

#: Layers (of each side) that make a checkpoint of 4 MB at the default width, and its positions.
_LAYERS = {"decoder": 4, "encoder-decoder": 2}
_POSITIONS = {"decoder": "rotary", "encoder-decoder": "alibi"}
_REPORTS = 40
#: Batches that ranges are observed on before quantization-aware training.
_OBSERVED = 4


@dataclass(frozen=True)
class Training:
    """How a model is trained; either ``steps`` or ``minutes`` says for how long.

    AdamW (Loshchilov & Hutter 2019), weight decay on matrices only; the rate rises linearly over
    ``warmup`` steps and falls to zero along a cosine (Loshchilov & Hutter 2017, section 3).
    """

    minutes: float = 4.0
    steps: int | None = None
    batch: int = 256
    rate: float = 2e-3
    warmup: int = 200
    weight_decay: float = 0.1
    clip: float = 1.0
    seed: int = 0
    device: str = "cpu"
    precision: str = "fp32"  # of the products in training: fp32 or bf16
    compile: bool = False


def main() -> None:
    """Train, print, and write the folder."""
    args = _parser().parse_args()
    training = _training(args)
    torch.manual_seed(args.seed)
    if args.start is not None:
        model = load(args.start)
    else:
        config = model_config(args.kind, args.hidden, args.layers, args.heads)
        model = OmniNet.from_seed(config, args.seed)
    model.to(args.device)
    if args.qat:
        observe(model, args.qat, training)
    count = sum(parameter.numel() for parameter in model.parameters())
    print(f"{model.config.kind}, {count / 1e6:.2f} million parameters, {args.device}", flush=True)
    record = {"start": args.start, "parameters": count, **fit(model, training)}
    rounded = in_storage(model).float()  # what the checkpoint will hold
    record["perplexity"] = judge(rounded, args.windows)
    print("perplexity: " + ", ".join(f"{k} {v:.4f}" for k, v in record["perplexity"].items()))
    save(rounded, args.out, record)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    defaults = Training()
    cuda = torch.cuda.is_available()
    parser.add_argument("--kind", choices=KINDS, default="decoder")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--start", help="train on from this folder; its sizes are kept")
    parser.add_argument(
        "--qat", choices=("uint8", "int8"), help="with quantization of weights and these inputs"
    )
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    parser.add_argument("--minutes", type=float, default=defaults.minutes)
    parser.add_argument("--steps", type=int, help="in the place of minutes")
    parser.add_argument("--hidden", type=int, default=192)
    parser.add_argument("--layers", type=int, help="of each side; 4 of a decoder, 2 of two sides")
    parser.add_argument("--heads", type=int, help="default: of 32 dimensions each")
    parser.add_argument("--batch", type=int, default=defaults.batch, help=f"windows of {LENGTH}")
    parser.add_argument("--rate", type=float, default=defaults.rate)
    parser.add_argument("--warmup", type=int, default=defaults.warmup, help="steps")
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--precision", choices=("fp32", "bf16"), help="default: bf16 on a GPU")
    parser.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, help="default: on a GPU"
    )
    parser.add_argument("--windows", type=int, default=512, help="of each part, judged at the end")
    return parser


def _training(args: argparse.Namespace) -> Training:
    cuda = args.device.startswith("cuda")
    return Training(
        minutes=args.minutes,
        steps=args.steps,
        batch=args.batch,
        rate=args.rate,
        warmup=args.warmup,
        seed=args.seed,
        device=args.device,
        precision=args.precision or ("bf16" if cuda else "fp32"),
        compile=cuda if args.compile is None else args.compile,
    )


def model_config(
    kind: str, hidden: int = 192, layers: int | None = None, heads: int | None = None
) -> OmniNetConfig:
    """A model over bytes: a decoder with rotary positions, an encoder-decoder with ALiBi."""
    return OmniNetConfig(
        kind=kind,
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        num_layers=layers or _LAYERS[kind],
        num_heads=heads or hidden // 32,
        pad_token_id=PAD,
        positions=_POSITIONS[kind],
        max_positions=LENGTH,
    )


def fit(model: OmniNet, training: Training) -> dict[str, Any]:
    """Train ``model`` where it is, as it is: fake quantization that was put into it is trained.

    Returns:
        How it went, as JSON values: the options, steps, tokens, seconds, losses by step in nats.
    """
    model.train()
    optimizer = _optimizer(model, training)
    loss_of = _loss_function(model, training)
    batches = _batches(model.config.kind, training)
    losses: list[tuple[int, float]] = []
    begun = shown = 0.0
    step, progress = 0, 0.0
    while progress < 1.0:
        rate = _rate(training, step, progress)
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get("size", 1.0)
        inputs, targets = _move(next(batches), training.device)
        loss = loss_of(inputs, targets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), training.clip)
        optimizer.step()
        step += 1
        if step == 1:
            loss.item()
            begun = time.perf_counter()  # what is compiled in the first step is not counted
        progress = _progress(training, step, begun)
        if progress >= shown or progress >= 1.0:
            losses.append((step, round(loss.item(), 4)))
            print(f"{progress:4.0%}  step {step}  rate {rate:.1e}  loss {losses[-1][1]:.4f}")
            shown = progress + 1 / _REPORTS
    seconds = time.perf_counter() - begun
    model.eval()
    return {
        **asdict(training),
        "steps": step,
        "tokens": step * training.batch * LENGTH,
        "seconds": round(seconds, 1),
        **_machine(training.device),
        "losses": losses,
    }


def observe(model: OmniNet, inputs: str, training: Training) -> None:
    """Prepare quantization-aware training: ranges by some batches, which are then learned."""
    rounding = model.prepare_quantization(inputs)
    with rounding.observing(), torch.no_grad():
        for step in range(_OBSERVED):
            batch = training_batch(model.config.kind, step, batch=training.batch, seed=1)
            model(**_move(batch, training.device)[0])
    rounding.learn()


def judge(model: OmniNet, windows: int) -> dict[str, float]:
    """Perplexity per target on text to train on, and on what is held out."""
    run, kind = run_module(model), model.config.kind
    return {
        split: round(perplexity(run, held_out(kind, split, windows=windows, batch=32)), 5)
        for split in ("train", "evaluation", "test")
    }


def _optimizer(model: OmniNet, training: Training) -> torch.optim.Optimizer:
    scales = list(model.fake_quantization.quantizers()) if model.fake_quantization else []
    apart = {id(quantizer.scale) for quantizer in scales}
    parameters = [p for p in model.parameters() if p.requires_grad and id(p) not in apart]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": training.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    # Steps of Adam are of the size of the rate, whatever the gradient: those of a scale are to be
    # small beside the scale.
    groups += [
        {"params": [q.scale], "weight_decay": 0.0, "size": float(q.scale.detach().mean())}
        for q in scales
    ]
    fused = training.device.startswith("cuda")
    return torch.optim.AdamW(groups, lr=training.rate, betas=(0.9, 0.95), fused=fused)


def _loss_function(
    model: OmniNet, training: Training
) -> Callable[[Mapping[str, Tensor], Tensor], Tensor]:
    device = torch.device(training.device).type

    def loss_of(inputs: Mapping[str, Tensor], targets: Tensor) -> Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=training.precision == "bf16"):
            logits = model(**inputs)
        flat = logits.float().flatten(0, 1)
        return F.cross_entropy(flat, targets.flatten(), ignore_index=IGNORED)

    if not training.compile:
        return loss_of
    compiled = torch.compile(loss_of, dynamic=False)
    inputs, targets = _move(
        training_batch(model.config.kind, 0, batch=training.batch), training.device
    )
    try:
        compiled(inputs, targets).backward()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        print(f"not compiled: {str(error).splitlines()[0]}", flush=True)
        return loss_of
    return compiled


def _batches(kind: str, training: Training) -> Iterator[Batch]:
    """Batches in the order of their steps, made ahead by a few threads."""
    with ThreadPoolExecutor(4) as pool:
        ahead = deque(pool.submit(_batch, kind, training, step) for step in range(16))
        step = len(ahead)
        while True:
            yield ahead.popleft().result()
            ahead.append(pool.submit(_batch, kind, training, step))
            step += 1


def _batch(kind: str, training: Training, step: int) -> Batch:
    return training_batch(kind, step, batch=training.batch, seed=training.seed)


def _move(batch: Batch, device: str) -> tuple[dict[str, Tensor], Tensor]:
    """The tensors of a batch; a mask that hides nothing is left out, as causal kernels need."""
    inputs = {
        name: torch.from_numpy(array).to(device, non_blocking=True)
        for name, array in batch.feeds.items()
        if not (name.endswith("attention_mask") and array.all())
    }
    return inputs, torch.from_numpy(batch.targets).to(device, non_blocking=True)


def _progress(training: Training, step: int, begun: float) -> float:
    if training.steps is not None:
        return step / training.steps
    return (time.perf_counter() - begun) / (60 * training.minutes)


def _rate(training: Training, step: int, progress: float) -> float:
    warm = min(1.0, (step + 1) / training.warmup)
    return training.rate * warm * (1 + math.cos(math.pi * min(progress, 1.0))) / 2


def _machine(device: str) -> dict[str, str]:
    name = torch.cuda.get_device_name() if device.startswith("cuda") else platform.machine()
    return {"device": name, "torch": torch.__version__, "python": platform.python_version()}


if __name__ == "__main__":
    main()
