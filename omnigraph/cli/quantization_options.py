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
    from omnigraph.quantization.data import RANDOM
    from omnigraph.quantization.finer_cost import TOKENS
    from omnigraph.quantization.held_out import ENOUGH
    from omnigraph.quantization.plan_report import loss_lines, plan_text

    if budget := found.get("budget"):
        print(plan_text(budget))
        for line in loss_lines(budget):
            print(line, file=sys.stderr)
        if seen := budget.get("seen_in_calibration"):
            print(
                f"warning: {seen} EVALUATION SAMPLES ARE CALIBRATION SAMPLES: others lose more.\n"
                f"hint: --evaluation DATA, or {ENOUGH} samples of calibration data or more, of "
                "which a part is then held out",
                file=sys.stderr,
            )
    if finer := found.get("finer"):
        least, most = min(finer.values()), max(finer.values())
        print(
            f"{len(finer)} layers keep 8 bits for their weights alone, since their products would "
            f"lose {least:.1%} to {most:.1%} (--preset fast quantizes all): {', '.join(finer)}",
            file=sys.stderr,
        )
        if (cost := found.get("finer_milliseconds")) is not None:
            print(f"they cost {cost:.2f} ms of a run of {TOKENS} tokens here", file=sys.stderr)
    for layer, channels in found.get("outliers", {}).items():
        named = ", ".join(str(channel) for channel in channels["channels"])
        print(
            f"outliers in what {layer} reads: channel {named}, up to {channels['times']:.0f} times "
            "the usual channel",
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
