"""``omnigraph generate``: text out of an artifact, to stdout as it comes."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from omnigraph.cli.artifact_commands import add_device_options, load_session
from omnigraph.cli.output import print_json
from omnigraph.cli.parser import add_command
from omnigraph.errors import UsageError

if TYPE_CHECKING:
    from omnigraph.runtimes.base import Session


def add_generate_command(commands: Any) -> None:
    """Add ``generate``."""
    generate = add_command(commands, "generate", _generate, "continue a text, or chat")
    generate.add_argument("artifact", metavar="ARTIFACT")
    what = generate.add_mutually_exclusive_group(required=True)
    what.add_argument("--prompt", metavar="TEXT", help="the text to continue")
    what.add_argument("--prompt-ids", metavar="1,2,3", help="the token ids to continue")
    what.add_argument(
        "--chat", action="store_true", help="answer each line of stdin, by the chat template"
    )
    generate.add_argument("--system", metavar="TEXT", help="what a chat begins with")
    generate.add_argument(
        "--max-new-tokens", type=int, metavar="N", help="default: what the model's folder says, 20"
    )
    generate.add_argument("--seed", type=int, metavar="N", help="draws the same tokens each time")
    generate.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="settings",
        help="fields of generation_config.json, such as do_sample=true, temperature=0.7",
    )
    add_device_options(generate)


def _generate(args: argparse.Namespace) -> int:
    options = _options(args)
    if args.system is not None and not args.chat:
        raise UsageError(
            "A system message is for chats",
            expected="--chat with --system",
            found="--prompt" if args.prompt is not None else "--prompt-ids",
            hint="put the text before the prompt",
        )
    with load_session(args) as session:
        if args.chat:
            return _chat(session, args, options)
        if args.prompt is not None:
            return _text(session, args, session.tokenizer.encode(args.prompt), options)
        return _numbers(session, args, _ids(args.prompt_ids), options)


def _options(args: argparse.Namespace) -> dict[str, Any]:
    options: dict[str, Any] = {"seed": args.seed}
    for text in args.settings:
        name, equals, value = text.partition("=")
        if not equals:
            raise UsageError(
                f"--set {text} sets nothing",
                expected="KEY=VALUE",
                found=text,
                hint="--set temperature=0.7; lists as JSON: --set eos_token_id=[1,2]",
            )
        try:
            options[name] = json.loads(value)
        except ValueError:
            options[name] = value  # a text, such as a stop string
    if args.max_new_tokens is not None:
        options["max_new_tokens"] = args.max_new_tokens
    return options


def _ids(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(
            "--prompt-ids are no token ids",
            expected="whole numbers with commas between them, such as 1,2,3",
            found=text[:80],
            hint="--prompt takes a text",
        ) from error


def _numbers(
    session: Session, args: argparse.Namespace, ids: Sequence[int], options: dict[str, Any]
) -> int:
    """Print new ids on one line."""
    finish, found = "", list[int]()
    for each, reason in _tokens(session, ids, options):
        if not args.json:
            print("" if not found else " ", each, sep="", end="", flush=True)
        found.append(each)
        finish = reason
    if args.json:
        print_json({"ids": found, "finish": finish})
    else:
        print()
    return 0


def _text(
    session: Session, args: argparse.Namespace, ids: Sequence[int], options: dict[str, Any]
) -> int:
    text, found, finish = _answer(session, ids, options, show=not args.json)
    if args.json:
        print_json({"text": text, "ids": found, "finish": finish})
    return 0


def _answer(
    session: Session, ids: Sequence[int], options: dict[str, Any], *, show: bool
) -> tuple[str, list[int], str]:
    """The text that follows some ids, its own ids, and why it ended; shown as it comes."""
    stream, finish = session.tokenizer.stream(), ""
    stream.extended(ids)  # so that the space before the first new word is known
    stream.rest()
    text, found = "", list[int]()
    for each, reason in _tokens(session, ids, options):
        piece = stream.add(each)
        if show:
            print(piece, end="", flush=True)
        text += piece
        found.append(each)
        finish = reason
    rest = stream.rest()
    if show:
        print(rest, flush=True)
    return text + rest, found, finish


def _tokens(
    session: Session, ids: Sequence[int], options: dict[str, Any]
) -> Iterator[tuple[int, str]]:
    """New ids, each with why the text ends there, or ""; at once where beams are searched."""
    beams = options.get("num_beams", session.generation_config.num_beams)
    if beams == 1:
        for token in session.generate(list(ids), stream=True, **options):
            yield token.id, token.finish
        return
    result = session.generate(list(ids), **options)
    *tokens, last = map(int, result.new[0])
    yield from ((token, "") for token in tokens)
    yield last, result.finish[0]


def _chat(session: Session, args: argparse.Namespace, options: dict[str, Any]) -> int:
    """Answer lines until there are no more; what was said before is in each prompt."""
    messages = [{"role": "system", "content": args.system}] if args.system is not None else []
    prompts = sys.stdin.isatty()
    while True:
        if prompts:
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            break
        if not line.strip():
            continue
        messages.append({"role": "user", "content": line.rstrip("\n")})
        ids = session.tokenizer.chat(messages)
        text, _, _ = _answer(session, ids, options, show=not args.json)
        messages.append({"role": "assistant", "content": text})
    if args.json:
        print_json({"messages": messages})
    return 0
