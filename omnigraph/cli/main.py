"""The commands. Data goes to stdout, all else to stderr; ``--json`` prints one JSON object.

Exit status: 0 done, 1 a check failed, 2 bad usage or bad input. Only the standard library and
numpy are imported until a command needs more, so that artifacts run without the compiler.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import omnigraph
from omnigraph.cli.artifact_commands import add_artifact_commands
from omnigraph.cli.export_command import add_export_command
from omnigraph.cli.model_commands import add_model_commands
from omnigraph.cli.output import print_json
from omnigraph.cli.parser import Parser
from omnigraph.errors import OmniGraphError


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
            print_json({"error": error.to_dict()})
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
    parser = Parser(prog="omnigraph", description=omnigraph.__doc__)
    parser.add_argument("--version", action="version", version=f"omnigraph {omnigraph.__version__}")
    parser.set_defaults(command=None, json=False, traceback=False)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    add_export_command(commands)
    add_artifact_commands(commands)
    add_model_commands(commands)
    return parser
