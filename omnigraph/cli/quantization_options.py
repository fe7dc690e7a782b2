"""The options of quantization on the command line, and what is said of what was quantized."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from typing import Any

from omnigraph.option_field import add_options, given_options
from omnigraph.precision import QUANTIZED
from omnigraph.quantization.options import Quantization


def add_quantization_options(command: argparse.ArgumentParser) -> None:
    """Give a command the options of quantization."""
    precisions = f"{', '.join(QUANTIZED[:-1])} and {QUANTIZED[-1]}"
    add_options(command.add_argument_group("quantization", f"for {precisions}"), Quantization)


def quantization_of(args: argparse.Namespace) -> Quantization:
    """The options of quantization that were given.

    Raises:
        UsageError: an option has a value that cannot be.
    """
    return Quantization(**given_options(args, Quantization))


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
