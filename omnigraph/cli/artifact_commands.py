"""``omnigraph run`` and ``omnigraph verify``, which need only an artifact and its runtime."""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import omnigraph
from omnigraph.cli.output import print_json
from omnigraph.cli.parser import add_command
from omnigraph.errors import UsageError
from omnigraph.report import table

if TYPE_CHECKING:
    from omnigraph.runtimes.base import Session
#: Outputs of at most this many values are printed as JSON.
_MOST_VALUES = 1024


def add_artifact_commands(commands: Any) -> None:
    """Add ``run`` and ``verify``."""
    run = add_command(commands, "run", _run, "run an artifact on given inputs")
    run.add_argument("artifact", metavar="ARTIFACT")
    run.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="NAME=FILE.npy|VALUES",
        dest="inputs",
        help="a file, or numbers such as 1,2,3",
    )
    run.add_argument("--out", metavar="FILE.npz", help="where to write the outputs, whole")
    run.add_argument("--program", metavar="NAME", help="default: the artifact's first")
    run.add_argument("--variant", metavar="NAME", help="auto (default), whole, heads=12, …")
    add_device_options(run)

    verify = add_command(commands, "verify", _verify, "re-run the golden pair on this machine")
    verify.add_argument("artifact", metavar="ARTIFACT")
    verify.add_argument(
        "--allow-missing", action="store_true", help="pass over programs without a golden pair"
    )
    add_device_options(verify)


def add_device_options(command: argparse.ArgumentParser) -> None:
    """Add the options of what runs an artifact."""
    command.add_argument("--device", default="auto", metavar="D", help="auto, cpu, cuda, gpu, npu")
    command.add_argument("--threads", type=int, metavar="N", help="threads of one run")
    add_trusted(command)


def add_trusted(command: argparse.ArgumentParser) -> None:
    """Add the option of the public keys that an artifact may be signed with."""
    command.add_argument(
        "--trusted",
        action="append",
        metavar="KEY",
        help="refuse an artifact that this public key, a PEM file, has not signed",
    )


def load_session(args: argparse.Namespace) -> Session:
    """The artifact of a command, open."""
    return omnigraph.load(
        args.artifact, device=args.device, threads=args.threads, trusted=args.trusted
    )


def _run(args: argparse.Namespace) -> int:
    with load_session(args) as session:
        specs = {spec.name: spec for spec in session.entry(args.program).inputs}
        feeds = {}
        for text in args.inputs:
            name, _, value = text.partition("=")
            feeds[name] = _array(name, value, specs.get(name))
        outputs = session.run(feeds, program=args.program, variant=args.variant)
    if args.out:
        _write_npz(Path(args.out), outputs)
    if args.json:
        shown = {name: _fields(array, args.out) for name, array in outputs.items()}
        print_json({"outputs": shown, "out": args.out})
        return 0
    rows = [(name, str(a.dtype), str(list(a.shape)), _summary(a)) for name, a in outputs.items()]
    print(table(("output", "dtype", "shape", "mean and deviation"), rows))
    return 0


def _array(name: str, value: str, spec: Any) -> np.ndarray:
    """An input from the command line: a .npy file, or numbers, reshaped to the input's rank."""
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
        array = np.array(numbers)
        if spec is not None:
            array = array.astype(spec.dtype, casting="unsafe" if array.size == 0 else "same_kind")
    except (ValueError, TypeError) as error:
        raise UsageError(
            f"Input {name!r} is neither a .npy file nor numbers",
            expected=f"{name}=FILE.npy or {name}=1,2,3",
            found=repr(value),
            hint="integers for an input of integers; nested lists as JSON: input_ids=[1,2],[3,4]",
        ) from error
    rank = len(spec.shape) if spec is not None else array.ndim
    return array.reshape((1,) * max(0, rank - array.ndim) + array.shape)


def _fields(array: np.ndarray, file: str | None) -> dict[str, Any]:
    """An output as JSON-ready fields: its values where they are few, else where they are."""
    found: dict[str, Any] = {"dtype": str(array.dtype), "shape": list(array.shape)}
    if array.size <= _MOST_VALUES:
        return {**found, "values": _values(array.tolist())}
    where = f"in {file}" if file else "nowhere: give --out FILE.npz"
    return {**found, "file": file, "note": f"its {array.size} values are {where}"}


def _values(found: Any) -> Any:
    """Nested lists of numbers; JSON has no numbers that are not finite, which become text."""
    if isinstance(found, list):
        return [_values(part) for part in found]
    return found if not isinstance(found, float) or math.isfinite(found) else str(found)


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
    with load_session(args) as session:
        checks = session.verify(allow_missing=args.allow_missing)
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
        print_json({"passed": not failed, "checks": fields})
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
