"""The options of quantization on the command line, and what is said of what was quantized."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from typing import Any


def add_quantization_options(command: argparse.ArgumentParser) -> None:
    """Give a command the options of quantization."""
    group = command.add_argument_group(
        "quantization", "for int8, int8-dynamic, int8-weights, int4-weights and fp8"
    )
    group.add_argument(
        "--calibration",
        metavar="DATA",
        help="samples.npz, a folder of .npy or .npz, a text file, file.py:function, or what "
        "--save-calibration wrote; without it, random token ids",
    )
    group.add_argument("--tokenizer", metavar="FILE", help="of text: a tokenizer.json, or bytes")
    group.add_argument("--samples", type=int, metavar="N", help="to calibrate on, at most (128)")
    group.add_argument(
        "--method", metavar="M", help="of ranges: mse (default), min-max, percentile, entropy"
    )
    group.add_argument(
        "--group-size", type=int, metavar="N", help="terms that share a scale in four bits (64)"
    )
    group.add_argument(
        "--symmetric", action=argparse.BooleanOptionalAction, help="four bits without zero points"
    )
    group.add_argument(
        "--keep", metavar="LAYER[,…]", help="module paths to keep in float, with * for any text"
    )
    group.add_argument(
        "--max-loss",
        metavar="X%",
        help="choose the precision of each layer so that the model is no more than this worse",
    )
    group.add_argument(
        "--evaluation", metavar="DATA", help="what --max-loss measures on; default: --calibration"
    )
    group.add_argument(
        "--speed-gate",
        type=int,
        nargs="?",
        const=128,
        metavar="TOKENS",
        help="quantize only what is faster so on this machine, with so many tokens (128)",
    )
    group.add_argument("--save-calibration", metavar="FILE.npz", help="to use again as DATA")


def quantization_of(args: argparse.Namespace) -> Any:
    """The options of quantization that were given."""
    from omnigraph.quantization.budget import checked_loss
    from omnigraph.quantization.options import Quantization

    given = {
        "max_loss": checked_loss(args.max_loss) if args.max_loss is not None else None,
        "evaluation": args.evaluation,
        "speed_gate": args.speed_gate,
        "calibration": args.calibration,
        "tokenizer": args.tokenizer,
        "samples": args.samples,
        "method": args.method,
        "group_size": args.group_size,
        "symmetric": args.symmetric,
        "keep": tuple(_names(args.keep)) or None,
        "save": args.save_calibration,
    }
    return Quantization(**{name: value for name, value in given.items() if value is not None})


def say_how_quantized(found: Mapping[str, Any]) -> None:
    """What was chosen, and what ranges come from: loudly, where that is nothing real."""
    from omnigraph.quantization.budget import plan_text
    from omnigraph.quantization.data import RANDOM

    if budget := found.get("budget"):
        print(plan_text(budget))
        if "loss" in budget:
            print(
                f"{budget['measure']} on {budget['evaluation']}: {budget['found']:.4f} for "
                f"{budget['model']:.4f}, {budget['loss']:+.3%} (below {budget['loss_upper']:+.3%} "
                f"at 95 of 100)",
                file=sys.stderr,
            )
    if "source" not in found:
        return
    about = f"{found['samples']} samples of {found['source']}, ranges by {found['method']}"
    print(f"calibrated on {about}", file=sys.stderr)
    if found["source"] == RANDOM:
        print(
            "warning: RANDOM TOKEN IDS are not what the model is for: its accuracy is not known.\n"
            "hint: --calibration DATA, with a hundred samples or so of real input",
            file=sys.stderr,
        )


def _names(text: str | None) -> list[str]:
    """Names that are joined by commas."""
    return [name.strip() for name in (text or "").split(",") if name.strip()]
