"""The options of quantization on the command line, and the report of a quantized export."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from typing import Any

from omnigraph.option_field import add_options, given_options
from omnigraph.precision import QUANTIZED
from omnigraph.quantization.options import Quantization


def add_quantization_options(command: argparse.ArgumentParser) -> None:
    """Add the options of quantization to a command."""
    precisions = f"{', '.join(QUANTIZED[:-1])} and {QUANTIZED[-1]}"
    add_options(command.add_argument_group("quantization", f"for {precisions}"), Quantization)


def quantization_of(args: argparse.Namespace) -> Quantization:
    """The options of quantization from a command line.

    Raises:
        UsageError: an option has an invalid value.
    """
    return Quantization(**given_options(args, Quantization))


def report_quantization(found: Mapping[str, Any]) -> None:
    """Print the plan of a budget and the calibration data; warn of random token ids."""
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
    if unseen := found.get("unseen_weights"):
        print(
            f"{unseen:,} weights are rounded to the nearest, not with compensation: their inputs "
            f"were zero in every calibration sample",
            file=sys.stderr,
        )
    if "source" not in found:
        return
    about = f"{found['samples']} samples of {found['source']}, ranges by {found['method']}"
    print(f"calibrated on {about}", file=sys.stderr)
    if found["source"] == RANDOM:
        print(
            "warning: calibrated on RANDOM TOKEN IDS: the accuracy on real input is not known.\n"
            "hint: --calibration DATA, with a hundred samples or so of real input",
            file=sys.stderr,
        )
