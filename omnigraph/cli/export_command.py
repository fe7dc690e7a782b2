"""``omnigraph export``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import omnigraph
from omnigraph.cli.output import print_json
from omnigraph.cli.parser import add_command
from omnigraph.cli.quantization_options import (
    add_quantization_options,
    quantization_of,
    report_quantization,
)
from omnigraph.exporting.options import ExportOptions
from omnigraph.option_field import add_options, given_options
from omnigraph.report import progress_reporter, size_text, table

_EXPORT_HELP = """\
MODEL is one of:
  omninet                  the reference model; --config tiny|small|seed, --set positions=alibi …
  file.py:factory          a function that returns (module, {"input_ids": tensor, …})
  package.module:factory   the same, imported by name
  FOLDER                   written by save_pretrained of Hugging Face or by OmniNet.save:
                           config.json and safetensors
  model.onnx               of any exporter; compared with the file itself in onnxruntime
  model.pt2                written by torch.export.save

--set sets fields of the model's configuration (for a folder: attn_implementation=eager,
experts_implementation=batched_mm, dtype=bfloat16), and options of the targets (compute=sm89,sm120).
"""


def add_export_command(commands: Any) -> None:
    """Add ``export``."""
    export = add_command(commands, "export", _export, "compile a model and check its numbers")
    export.formatter_class = argparse.RawDescriptionHelpFormatter
    export.epilog = _EXPORT_HELP
    export.add_argument("model", metavar="MODEL")
    export.add_argument("--target", required=True, metavar="T[,T…]", help="see `omnigraph targets`")
    export.add_argument("--out", metavar="PATH", help="a .omni file or a directory")
    add_options(export, ExportOptions)
    add_quantization_options(export)


def export_options(args: argparse.Namespace, *, quantizes: bool) -> ExportOptions:
    """The options of an export from a command line.

    Args:
        quantizes: whether the command has the options of quantization.

    Raises:
        UsageError: an option has an invalid value.
    """
    given = given_options(args, ExportOptions)
    if quantizes:
        given["quantization"] = quantization_of(args)
    return ExportOptions(**given)


def check_names(model: str, target: str, options: ExportOptions) -> None:
    """Refuse what names nothing, before torch is imported, which takes seconds.

    Raises:
        UsageError: there is no such model, target or pass.
        UnsupportedError: a target cannot do the precision.
    """
    from omnigraph.exporting.plan import plan_jobs
    from omnigraph.frontends.resolve import check_named

    check_named(model)
    plan_jobs(target, options)


def _export(args: argparse.Namespace) -> int:
    options = export_options(args, quantizes=True)
    check_names(args.model, args.target, options)
    with progress_reporter(args.model) as progress:
        reports = omnigraph.export(
            args.model, args.target, options, out=args.out, progress=progress
        )
    if args.json:
        print_json({"artifacts": [report.to_dict() for report in reports]})
        return 0
    for name, why in reports[0].remarks.not_made.items():
        print(f"not made: {name}: {why}", file=sys.stderr)
    for report in reports:
        rows = [
            (c.program, c.output, f"{c.deviation.rms:.1e}", f"{c.tolerance.rms:.1e}", c.case)
            for c in _worst_by_program(report.checks)
        ]
        print(table(("program", "worst output", "error (rms)", "tolerance", "input set"), rows))
        seconds = ", ".join(f"{step} {value:.1f} s" for step, value in report.seconds.items())
        print(seconds, file=sys.stderr)
        for limit in report.remarks.limits:
            print(limit)
        report_quantization(report.quantization)
        for agreement in report.greedy_tokens:
            print(agreement)
        for program, texts in report.remarks.left_out.items():
            print(
                f"note: program {program} leaves out what is no tensor: {', '.join(texts)}",
                file=sys.stderr,
            )
        print(
            f"{report.path}  {report.target} {report.precision}  {size_text(report.bytes)}  "
            f"within its contract"
        )
    return 0


def _worst_by_program(checks: Sequence[Any]) -> list[Any]:
    worst: dict[str, Any] = {}
    for check in checks:
        seen = worst.get(check.program)
        if seen is None or check.deviation.rms > seen.deviation.rms:
            worst[check.program] = check
    return list(worst.values())
