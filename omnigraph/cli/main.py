"""The commands. Data goes to stdout, all else to stderr; ``--json`` prints one JSON object.

Exit status: 0 done, 1 a check failed, 2 bad usage or bad input. Only the standard library and
numpy are imported until a command needs more, so that artifacts run where nothing else is.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

import omnigraph
from omnigraph.cli.quantization_options import (
    add_quantization_options,
    quantization_of,
    say_how_quantized,
)
from omnigraph.errors import OmniGraphError, UsageError
from omnigraph.report import progress_reporter, size_text, table

_EXPORT_HELP = """\
MODEL is one of:
  omninet                  the reference model; --config tiny|small|seed, --set positions=alibi …
  file.py:factory          a function that gives (module, {"input_ids": tensor, …})
  package.module:factory   the same, imported by name
  FOLDER                   what save_pretrained of Hugging Face or OmniNet.save wrote: config.json
                           and safetensors
  model.onnx               of any exporter; compared with the file itself in onnxruntime
  model.pt2                what torch.export.save wrote

--set gives fields of the model's configuration (of a folder: attn_implementation=eager), and
options of the targets (compute=sm89,sm120).
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and give its exit status."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.command is None:
        parser.print_help(sys.stderr)
        return 2
    try:
        return args.run(args)
    except OmniGraphError as error:
        if args.traceback:
            raise
        if args.json:
            _print_json({"error": error.to_dict()})
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    except ModuleNotFoundError as error:
        if args.traceback or error.name is None or error.name.startswith("omnigraph"):
            raise
        print(
            f"error: `omnigraph {args.command}` needs {error.name}, which is not installed.\n"
            "hint: pip install torch==2.13.0 && pip install 'omnigraph[all]' installs the compiler",
            file=sys.stderr,
        )
        return 2
    except BrokenPipeError:
        return 0
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="omnigraph", description=omnigraph.__doc__)
    parser.add_argument("--version", action="version", version=f"omnigraph {omnigraph.__version__}")
    parser.set_defaults(command=None, json=False, traceback=False)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)

    export = _command(commands, "export", _export, "compile a model and check its numbers")
    export.formatter_class = argparse.RawDescriptionHelpFormatter
    export.epilog = _EXPORT_HELP
    export.add_argument("model", metavar="MODEL")
    export.add_argument("--target", required=True, metavar="T[,T…]", help="see `omnigraph targets`")
    export.add_argument("--precision", metavar="P", help="default: the target's own first")
    export.add_argument("--config", metavar="NAME", help="of omninet: tiny, small, seed (default)")
    export.add_argument("--programs", metavar="NAME[,NAME…]", help="default: all of the model's")
    export.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="settings")
    export.add_argument(
        "--dynamic",
        metavar="DIM=MIN:MAX[,…]",
        help="range of each dimension, such as batch=1:8,sequence=1:1024; N:N makes it fixed",
    )
    export.add_argument(
        "--variants", metavar="heads=N,N…", help="more programs, with N heads an attention"
    )
    export.add_argument("--importance", metavar="FILE", help="which heads --variants keeps")
    export.add_argument("--outputs", metavar="NAME[,NAME…]", help="default: all of the model's")
    export.add_argument(
        "--last", metavar="NAME[,NAME…]", help="outputs to compute for the last token alone: logits"
    )
    export.add_argument(
        "--kv-cache", metavar="TYPE", help="int8 keeps keys and values in eight bits between calls"
    )
    export.add_argument("--out", metavar="PATH", help="a .omni file or a directory")
    export.add_argument("--rtol", type=float, metavar="X", help="tolerance, relative rms")
    add_quantization_options(export)
    export.add_argument(
        "--require-fused", action="store_true", help="refuse an attention that is not one node"
    )
    export.add_argument(
        "--verify-each", action="store_true", help="compare the numbers after every pass"
    )
    _passes_option(export)

    run = _command(commands, "run", _run, "run an artifact on given inputs")
    run.add_argument("artifact", metavar="ARTIFACT")
    run.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="NAME=FILE.npy|VALUES",
        dest="inputs",
        help="a file, or numbers such as 1,2,3",
    )
    run.add_argument("--out", metavar="FILE.npz", help="where to write the outputs")
    run.add_argument("--program", metavar="NAME", help="default: the artifact's first")
    run.add_argument("--variant", metavar="NAME", help="auto (default), whole, heads=12, …")
    _device_options(run)

    verify = _command(commands, "verify", _verify, "re-run the golden pair on this machine")
    verify.add_argument("artifact", metavar="ARTIFACT")
    _device_options(verify)

    inspect = _command(commands, "inspect", _inspect, "show a model or an artifact")
    inspect.add_argument("subject", metavar="MODEL|ARTIFACT")
    inspect.add_argument("--after", metavar="PASS", help="print the graph of a model after a pass")
    inspect.add_argument("--diff", action="store_true", help="with --after: what the pass changed")
    inspect.add_argument(
        "--picture", action="store_true", help="with --after: a Mermaid flowchart of one change"
    )
    inspect.add_argument(
        "--kernels",
        action="store_true",
        help="load an artifact and show the kernel that runs each attention",
    )
    _model_options(inspect)

    explain = _command(commands, "explain", _explain, "what a pass matched, what not, and why")
    explain.add_argument("model", metavar="MODEL")
    explain.add_argument("--pass", required=True, metavar="NAME", dest="pass_name")
    _model_options(explain)

    bisect = _command(commands, "bisect", _bisect, "the first pass and node where numbers part")
    bisect.add_argument("model", metavar="MODEL")
    _model_options(bisect, target_required=True)
    add_quantization_options(bisect)

    _command(commands, "passes", _passes, "list the passes and what each is for")
    _command(commands, "targets", _targets, "list the targets and whether each is usable here")
    return parser


class _Parser(argparse.ArgumentParser):
    """argparse with our form of an error."""

    def error(self, message: str) -> NoReturn:
        print(f"error: {message}\nhint: {self.prog} --help", file=sys.stderr)
        raise SystemExit(2)


def _command(commands: Any, name: str, run: Any, purpose: str) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=purpose, description=purpose)
    command.add_argument("--json", action="store_true", help="print one JSON object")
    command.add_argument("--traceback", action="store_true", help="show where an error was raised")
    command.set_defaults(run=run)
    return command


def _model_options(command: argparse.ArgumentParser, *, target_required: bool = False) -> None:
    command.add_argument("--config", metavar="NAME", help="of omninet: tiny, small, seed (default)")
    command.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="settings")
    command.add_argument(
        "--target",
        required=target_required,
        metavar="T",
        help="whose passes to run" + ("" if target_required else "; default: those of all targets"),
    )
    command.add_argument("--precision", metavar="P", help="default: the target's own first")
    command.add_argument("--programs", metavar="NAME[,NAME…]", help="default: all of the model's")
    command.add_argument("--dynamic", metavar="DIM=MIN:MAX[,…]", help="as for export")
    _passes_option(command)


def _passes_option(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--passes",
        default="",
        metavar="A,B:OPTION=VALUE,-C",
        help="add passes (a name, or file.py:Class), or leave them out with -name",
    )


def _device_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--device", default="auto", metavar="D", help="auto, cpu, cuda, gpu, npu")
    command.add_argument("--threads", type=int, metavar="N", help="threads of one run")


def _export(args: argparse.Namespace) -> int:
    with progress_reporter(args.model) as progress:
        reports = omnigraph.export(
            args.model,
            args.target,
            precision=args.precision,
            config=args.config,
            settings=_settings(args.settings),
            programs=_names(args.programs),
            dynamic=_ranges(args.dynamic),
            outputs=_names(args.outputs) or (),
            last=_names(args.last) or (),
            out=args.out,
            rtol=args.rtol,
            passes=args.passes,
            require_fused=args.require_fused,
            verify_each=args.verify_each,
            variants=args.variants,
            importance=args.importance,
            quantization=quantization_of(args),
            kv_cache=args.kv_cache,
            progress=progress,
        )
    if args.json:
        _print_json({"artifacts": [report.to_dict() for report in reports]})
        return 0
    for report in reports:
        rows = [
            (c.program, c.output, f"{c.deviation.rms:.1e}", f"{c.tolerance.rms:.1e}", c.case)
            for c in _worst_by_program(report.checks)
        ]
        print(table(("program", "worst output", "error (rms)", "tolerance", "input set"), rows))
        seconds = ", ".join(f"{step} {value:.1f} s" for step, value in report.seconds.items())
        print(seconds, file=sys.stderr)
        say_how_quantized(report.quantization)
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


def _run(args: argparse.Namespace) -> int:
    with omnigraph.load(args.artifact, device=args.device, threads=args.threads) as session:
        specs = {spec.name: spec for spec in session.entry(args.program).inputs}
        feeds = {}
        for text in args.inputs:
            name, _, value = text.partition("=")
            feeds[name] = _array(name, value, specs.get(name))
        outputs = session.run(feeds, program=args.program, variant=args.variant)
    if args.out:
        _write_npz(Path(args.out), outputs)
    shown = {
        name: {"dtype": str(array.dtype), "shape": list(array.shape)}
        for name, array in outputs.items()
    }
    if args.json:
        _print_json({"outputs": shown, "out": args.out})
        return 0
    rows = [(name, str(a.dtype), str(list(a.shape)), _summary(a)) for name, a in outputs.items()]
    print(table(("output", "dtype", "shape", "mean and deviation"), rows))
    return 0


def _array(name: str, value: str, spec: Any) -> np.ndarray:
    """An input from the command line: a .npy file, or numbers that get the rank they need."""
    path = Path(value)
    if value.endswith(".npy"):
        try:
            return np.load(path, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise UsageError(
                f"Input {name!r} cannot be read from {value}",
                found=str(error).splitlines()[0],
                hint="give a file that numpy.save wrote",
            ) from error
    try:
        numbers = json.loads(f"[{value}]")
        array = np.array(numbers, dtype=spec.dtype if spec is not None else None)
    except (ValueError, TypeError) as error:
        raise UsageError(
            f"Input {name!r} is neither a .npy file nor numbers",
            expected=f"{name}=FILE.npy or {name}=1,2,3",
            found=repr(value),
            hint="nested lists are written as JSON: input_ids=[1,2],[3,4]",
        ) from error
    rank = len(spec.shape) if spec is not None else array.ndim
    return array.reshape((1,) * max(0, rank - array.ndim) + array.shape)


def _summary(array: np.ndarray) -> str:
    if array.size == 0:
        return "empty"
    if array.dtype.kind != "f":
        return " ".join(map(str, array.reshape(-1)[:6].tolist()))
    return f"{array.mean():.4g} ± {array.std():.4g}"


def _write_npz(path: Path, outputs: dict[str, np.ndarray]) -> None:
    partial = path.with_name(path.name + ".part")
    try:
        with open(partial, "wb") as stream:
            np.savez(stream, **outputs)  # type: ignore[arg-type]
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UsageError(
            f"The outputs cannot be written to {path}",
            found=str(error),
            hint="give --out a path in a folder that exists and may be written to",
        ) from error


def _verify(args: argparse.Namespace) -> int:
    with omnigraph.load(args.artifact, device=args.device, threads=args.threads) as session:
        checks = session.verify()
    failed = [check for check in checks if not check.passed]
    if args.json:
        fields = [
            {
                "program": c.program,
                "output": c.output,
                "rms": c.deviation.rms,
                "peak": c.deviation.peak,
                "tolerance": c.tolerance.to_dict(),
                "passed": c.passed,
            }
            for c in checks
        ]
        _print_json({"passed": not failed, "checks": fields})
    else:
        rows = [
            (
                c.program,
                c.output,
                f"{c.deviation.rms:.1e}",
                f"{c.tolerance.rms:.1e}",
                "ok" if c.passed else "TOO FAR",
            )
            for c in checks
        ]
        print(table(("program", "output", "error (rms)", "tolerance", ""), rows))
    for check in failed:
        print(f"error: {check}", file=sys.stderr)
    return 1 if failed else 0


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
        config=args.config,
        settings=_settings(args.settings),
        target=args.target,
        precision=args.precision,
        passes=args.passes,
        programs=_names(args.programs),
        dynamic=_ranges(args.dynamic),
    )
    if args.kernels:
        from omnigraph.inspection.inspect import add_kernels

        add_kernels(fields)
    if args.json:
        _print_json(fields)
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
        _print_json({"programs": shown})
        return 0
    for program, text in shown.items():
        if args.diff or args.picture:
            print(text or f"{args.after} changes nothing in program {program}")
        else:
            print(f"program {program} after {args.after}\n{text}")
    return 0


def _subject(args: argparse.Namespace, model: str) -> Any:
    from omnigraph.inspection.stages import Subject

    return Subject(
        model,
        args.config,
        _settings(args.settings),
        args.target,
        args.precision,
        args.passes,
        _names(args.programs),
        _ranges(args.dynamic),
    )


def _explain(args: argparse.Namespace) -> int:
    from omnigraph.inspection.stages import explain, explanation_fields

    found = explain(_subject(args, args.model), args.pass_name)
    if args.json:
        _print_json({"pass": args.pass_name, "programs": explanation_fields(found)})
        return 0
    for program, findings in found.items():
        rows = [
            (f.module, f.site, f.became or "left alone", f.reason or "", f.source) for f in findings
        ]
        done = sum(f.became is not None for f in findings)
        print(f"program {program}: {done} of {len(findings)} sites of {args.pass_name}")
        if rows:
            print(table(("module", "node", "became", "why not", "source"), rows))
        print()
    return 0


def _bisect(args: argparse.Namespace) -> int:
    from omnigraph.inspection.bisect import bisect

    found = bisect(
        args.model,
        args.target,
        precision=args.precision,
        config=args.config,
        settings=_settings(args.settings),
        programs=_names(args.programs),
        dynamic=_ranges(args.dynamic),
        passes=args.passes,
        quantization=quantization_of(args),
        progress=lambda stage: print(stage, file=sys.stderr, flush=True),
    )
    if args.json:
        _print_json({"parted": [parting.to_dict() for parting in found]})
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
        _print_json({"passes": passes})
    else:
        rows = [(p["name"], ", ".join(p["options"]), p["purpose"]) for p in passes]
        print(table(("pass", "options", "what it does"), rows))
    return 0


def _targets(args: argparse.Namespace) -> int:
    from omnigraph.inspection.inspect import list_targets

    targets = list_targets()
    if args.json:
        _print_json({"targets": targets})
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


def _settings(texts: Sequence[str]) -> dict[str, str]:
    settings = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UsageError(
                f"--set {text!r} is no setting",
                expected="key=value",
                hint="for example --set positions=alibi",
            )
        settings[key] = value
    return settings


def _names(text: str | None) -> list[str] | None:
    return text.split(",") if text else None


def _ranges(text: str | None) -> dict[str, Any]:
    from omnigraph.program import Dim

    ranges = {}
    for part in (text or "").split(","):
        if not part.strip():
            continue
        name, _, span = part.partition("=")
        low, colon, high = span.partition(":")
        try:
            least = int(low)
            most = (int(high) if high else None) if colon else least
        except ValueError:
            raise UsageError(
                f"--dynamic {part!r} is no range",
                expected="DIM=MIN:MAX, DIM=MIN: or DIM=SIZE",
                hint="for example --dynamic batch=1:8,sequence=1:1024",
            ) from None
        ranges[name.strip()] = Dim(least, most)
    return ranges


def _print_json(fields: Any) -> None:
    print(json.dumps(fields, indent=1, ensure_ascii=False))
