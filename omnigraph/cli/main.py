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
from omnigraph.cli.completion import SCRIPTS, candidates, install, users_shell
from omnigraph.cli.export_command import add_export_command
from omnigraph.cli.generate_command import add_generate_command
from omnigraph.cli.model_commands import add_model_commands
from omnigraph.cli.output import print_json
from omnigraph.cli.parser import Parser
from omnigraph.errors import OmniGraphError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and give its exit status."""
    parser = _parser()
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["--complete"]:  # a shell asks; see `omnigraph.cli.completion`
        print("\n".join(candidates(parser, words[1:])))
        return 0
    args = parser.parse_args(words)
    if args.show_completion is not None:
        print(SCRIPTS.get(args.show_completion, ""), end="")
        return 0 if args.show_completion in SCRIPTS else 2
    if args.command is None and args.install_completion is None:
        parser.print_help(sys.stderr)
        return 2
    try:
        if args.install_completion is not None:
            return _install_completion(args.install_completion)
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


def _install_completion(shell: str) -> int:
    files = " and ".join(map(str, install(shell)))
    print(f"wrote {files}; start a new {shell}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="omnigraph", description=omnigraph.__doc__)
    parser.add_argument("--version", action="version", version=f"omnigraph {omnigraph.__version__}")
    for option, purpose in (
        ("--install-completion", "make the shell complete commands, from its next start on"),
        ("--show-completion", "print what the shell has to read for that"),
    ):
        parser.add_argument(
            option, nargs="?", const=users_shell(), metavar="|".join(SCRIPTS), help=purpose
        )
    parser.set_defaults(command=None, json=False, traceback=False)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    add_export_command(commands)
    add_artifact_commands(commands)
    add_generate_command(commands)
    add_model_commands(commands)
    return parser
