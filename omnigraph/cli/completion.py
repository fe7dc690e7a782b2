"""Completion of command lines in bash, zsh and fish: the shell asks ``omnigraph --complete``."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterator, Sequence
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

from omnigraph.errors import UsageError, suggest
from omnigraph.exporting.options import CACHE_TYPES
from omnigraph.precision import PRECISIONS
from omnigraph.quantization.metrics.registry import METRICS
from omnigraph.quantization.options import METHODS, PRESETS

SCRIPTS = {
    "bash": """\
_omnigraph_completion() {
    local IFS=$'\\n'
    COMPREPLY=($(omnigraph --complete "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
}
complete -o default -F _omnigraph_completion omnigraph
""",
    "zsh": """\
_omnigraph_completion() {
    local -a found
    found=("${(@f)$(omnigraph --complete "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    if [[ -n "$found" ]]; then compadd -- $found; else _files; fi
}
autoload -Uz compinit && compinit
compdef _omnigraph_completion omnigraph
""",
    "fish": """\
complete -c omnigraph -a '(omnigraph --complete (commandline -opc)[2..-1] (commandline -ct))'
""",
}
#: The file that each shell reads at its start; fish reads a folder.
_STARTS = {"bash": ".bashrc", "zsh": ".zshrc"}
#: Options whose value is a list with commas.
_LISTS = ("target", "passes")


def install(shell: str) -> list[Path]:
    """Make a shell complete from its next start on, and give the files that were written.

    Raises:
        UsageError: the shell is not one of these, or a file cannot be written.
    """
    if shell not in SCRIPTS:
        raise UsageError(
            f"There is no completion for shell {shell!r}",
            expected=" or ".join(SCRIPTS),
            hint=suggest(shell, SCRIPTS, "for example --install-completion bash"),
        )
    home = Path.home()
    script = home / ".local/share/omnigraph" / f"completion.{shell}"
    if shell == "fish":
        script = home / ".config/fish/completions/omnigraph.fish"
    try:
        script.parent.mkdir(parents=True, exist_ok=True)
        script.write_text(SCRIPTS[shell], encoding="utf-8")
        if shell == "fish":
            return [script]
        start, line = home / _STARTS[shell], f'. "{script}"'
        text = start.read_text(encoding="utf-8") if start.is_file() else ""
        if line not in text.splitlines():
            end = "" if not text or text.endswith("\n") else "\n"
            start.write_text(f"{text}{end}{line}\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"The completion of {shell} cannot be installed",
            found=str(error),
            hint=f"omnigraph --show-completion {shell} prints what the shell has to read",
        ) from error
    return [script, start]


def users_shell() -> str:
    """The name of the user's shell, such as "bash"."""
    return Path(os.environ.get("SHELL", "bash")).name


def candidates(parser: argparse.ArgumentParser, words: Sequence[str]) -> list[str]:
    """What may stand in the place of the last word of a command line.

    Args:
        words: those after ``omnigraph``; the last one is not finished, and may be empty.
    """
    *before, partial = words or [""]
    commands = {n: p for a in parser._actions for n, p in _choices(a).items()}
    chosen = next((commands[word] for word in before if word in commands), None)
    if chosen is None:
        known = [*commands, *parser._option_string_actions]
        return [word for word in known if word.startswith(partial)]
    action = chosen._option_string_actions.get(before[-1])
    if action is not None and action.nargs != 0:
        done, comma, rest = partial.rpartition(",") if action.dest in _LISTS else ("", "", partial)
        return [f"{done}{comma}{v}" for v in _values(action.dest) if v.startswith(rest)]
    if partial.startswith("-"):
        return [word for word in chosen._option_string_actions if word.startswith(partial)]
    return [word for word in ("omninet",) if partial and word.startswith(partial)]


def _choices(action: argparse.Action) -> dict[str, argparse.ArgumentParser]:
    return action.choices if isinstance(action, argparse._SubParsersAction) else {}


def _values(option: str) -> list[str]:
    """The values that an option may have; none where they cannot be listed."""
    if option == "target":
        return sorted({entry.name for entry in entry_points(group="omnigraph.targets")})
    if option in ("passes", "pass_name"):
        return list(_passes())
    if option in ("after", "until"):
        from omnigraph.passes.pipeline import STAGES

        return [*STAGES, *(_passes() if option == "after" else ())]
    return {
        "precision": [*PRECISIONS],
        "method": [*METHODS],
        "preset": [*PRESETS],
        "metric": [*METRICS],
        "kv_cache": [*CACHE_TYPES],
        "config": ["tiny", "small", "seed"],
        "device": ["auto", "cpu", "cuda", "gpu", "npu"],
    }.get(option, [])


def _passes() -> Iterator[str]:
    """The names of the installed passes, by their files, whose classes have the same names."""
    found = find_spec("omnigraph.passes")
    folders = found.submodule_search_locations if found is not None else None
    for path in sorted(path for folder in folders or () for path in Path(folder).glob("*.py")):
        name = "".join(part.capitalize() for part in path.stem.split("_"))
        if path.stem.endswith("_pass"):
            continue  # the base of passes
        if re.search(rf"^class {name}\(", path.read_text(encoding="utf-8"), re.MULTILINE):
            yield path.stem.replace("_", "-")
