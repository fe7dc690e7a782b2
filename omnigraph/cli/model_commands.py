"""``omnigraph inspect``, ``explain``, ``bisect``, ``passes`` and ``targets``."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from omnigraph.cli.artifact_commands import add_trusted
from omnigraph.cli.export_command import check_names, export_options
from omnigraph.cli.output import print_json
from omnigraph.cli.parser import add_command
from omnigraph.cli.quantization_options import add_quantization_options
from omnigraph.errors import UsageError
from omnigraph.exporting.options import OF_MODEL, ExportOptions
from omnigraph.option_field import add_options
from omnigraph.report import table


def add_model_commands(commands: Any) -> None:
    """Add ``inspect``, ``explain``, ``bisect``, ``passes`` and ``targets``."""
    inspect = add_command(commands, "inspect", _inspect, "show a model or an artifact")
    inspect.add_argument("subject", metavar="MODEL|ARTIFACT")
    inspect.add_argument(
        "--after", metavar="PASS|STAGE", help="print the graph of a model after a pass or a stage"
    )
    inspect.add_argument(
        "--diff", action="store_true", help="with --after: show what the pass changed"
    )
    inspect.add_argument(
        "--picture",
        action="store_true",
        help="with --after: show one change as a Mermaid flowchart",
    )
    inspect.add_argument(
        "--kernels",
        action="store_true",
        help="load an artifact and show the kernel that runs each attention",
    )
    add_trusted(inspect)
    _model_options(inspect)

    explain = add_command(
        commands, "explain", _explain, "show what a pass matched, what not, and why"
    )
    explain.add_argument("model", metavar="MODEL")
    explain.add_argument("--pass", required=True, metavar="NAME", dest="pass_name")
    _model_options(explain)

    bisect = add_command(
        commands, "bisect", _bisect, "find the first pass and node where numbers differ"
    )
    bisect.add_argument("model", metavar="MODEL")
    bisect.add_argument("--until", metavar="STAGE", help="stop after a stage of the pipeline")
    _model_options(bisect, target_required=True)
    add_quantization_options(bisect)

    add_command(commands, "passes", _passes, "list the passes and what each does")
    add_command(commands, "targets", _targets, "list the targets and whether each is usable here")


def _model_options(command: argparse.ArgumentParser, *, target_required: bool = False) -> None:
    command.add_argument(
        "--target",
        required=target_required,
        metavar="T",
        help="whose passes to run" + ("" if target_required else "; default: those of all targets"),
    )
    add_options(command, ExportOptions, only=OF_MODEL.__contains__)


def _inspect(args: argparse.Namespace) -> int:
    from omnigraph.inspection.inspect import describe_text, inspect

    if (args.diff or args.picture) and not args.after:
        raise UsageError(
            "--diff and --picture need --after PASS", hint="omnigraph inspect MODEL --after PASS"
        )
    if args.after:
        return _inspect_after(args)
    fields = inspect(
        args.subject,
        target=args.target,
        options=export_options(args, quantizes=False),
        trusted=args.trusted,
    )
    if args.kernels:
        from omnigraph.inspection.inspect import add_kernels

        add_kernels(fields)
    if args.json:
        print_json(fields)
    else:
        print(describe_text(fields))
    return 0


def _inspect_after(args: argparse.Namespace) -> int:
    from omnigraph.inspection.stages import stages

    found = stages(_subject(args, args.subject), args.after)
    shown = {
        stage.program: stage.picture if args.picture else stage.diff if args.diff else stage.after
        for stage in found
    }
    if args.json:
        print_json({"programs": shown})
        return 0
    for program, text in shown.items():
        if args.diff or args.picture:
            print(text or f"{args.after} changes nothing in program {program}")
        else:
            print(f"program {program} after {args.after}\n{text}")
    return 0


def _subject(args: argparse.Namespace, model: str) -> Any:
    from omnigraph.frontends.resolve import check_named
    from omnigraph.inspection.stages import Subject

    check_named(model)
    return Subject(model, args.target, export_options(args, quantizes=False))


def _explain(args: argparse.Namespace) -> int:
    from omnigraph.inspection.stages import explain, explanation_fields

    found = explain(_subject(args, args.model), args.pass_name)
    if args.json:
        print_json({"pass": args.pass_name, **explanation_fields(found)})
        return 0
    for program, stage in found.items():
        findings = stage.findings
        rows = [
            (f.module, f.site, f.became or "left alone", f.reason or "", f.source) for f in findings
        ]
        done = sum(f.became is not None for f in findings)
        print(f"program {program}: {done} of {len(findings)} sites of {args.pass_name}")
        if stage.no_sites:
            print(stage.no_sites)
        if rows:
            print(table(("module", "node", "became", "why not", "source"), rows))
        print()
    return 0


def _bisect(args: argparse.Namespace) -> int:
    options = export_options(args, quantizes=True)
    check_names(args.model, args.target, options)
    from omnigraph.inspection.bisect import bisect

    found = bisect(
        args.model,
        args.target,
        options,
        until=args.until,
        progress=lambda stage: print(stage, file=sys.stderr, flush=True),
    )
    if args.json:
        print_json({"parted": [parting.to_dict() for parting in found]})
    else:
        for parting in found:
            print(parting)
        if not found:
            print("the numbers of every program are within the contract at every stage")
    return 1 if found else 0


def _passes(args: argparse.Namespace) -> int:
    from omnigraph.inspection.inspect import list_passes

    passes = list_passes()
    if args.json:
        print_json({"passes": passes})
    else:
        rows = [(p["name"], ", ".join(p["options"]), p["purpose"]) for p in passes]
        print(table(("pass", "options", "what it does"), rows))
    return 0


def _targets(args: argparse.Namespace) -> int:
    from omnigraph.inspection.targets import list_targets

    targets = list_targets()
    if args.json:
        print_json({"targets": targets})
    else:
        rows = [
            (
                t["name"],
                ", ".join(t["precisions"]),
                t["unusable"] or "yes",
                t["unrunnable"] or "yes",
                t["purpose"],
            )
            for t in targets
        ]
        print(table(("target", "precisions", "compiles here", "runs here", "what it is"), rows))
    return 0
