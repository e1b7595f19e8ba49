"""Read the command line, send the request, print the answer: ``vmm-remote`` and ``-m vmm.remote``.

Exit codes: 0 for success, help and version asked for; 1 for a request that failed or cannot be
made; 2 for a command line that cannot be read.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from http import HTTPStatus
from typing import NoReturn

from vmm import __version__
from vmm.cli import format_lines, sentences_of
from vmm.client import ApiError, Client
from vmm.errors import ConfigError, VmmError
from vmm.remote import completion, top
from vmm.remote.commands import LONG, SUBCOMMANDS, Argument, Subcommand

PROGRAM = "vmm-remote"
USAGE = f"{PROGRAM} --api-socket <path> [--json] <COMMAND> …"
COMPLETION = "completion"
TOP = "top"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code."""
    parser = build_parser()
    given = parser.parse_args(argv)
    if given.command is None:
        parser.print_help(sys.stderr)
        return 2
    try:
        _run(given)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read the output has seen enough; the interpreter's own flush must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (VmmError, TimeoutError) as error:
        print(_report(error, as_json=given.json), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0 if given.command == TOP else 130
    return 0


def _run(given: argparse.Namespace) -> None:
    if given.command == COMPLETION:
        print(completion.script(given.shell), end="")
        return
    if given.api_socket is None:
        raise ConfigError("The socket is missing; give --api-socket <path> before the command")
    client = Client(given.api_socket)
    if given.command == TOP:
        top.show(client, given.interval, given.count, as_json=given.json)
        return
    subcommand = next(each for each in SUBCOMMANDS if each.name == given.command)
    call = replace(subcommand.make(given), read=bytes)
    body: object
    if subcommand.name in LONG and sys.stderr.isatty() and not given.json:
        from vmm.remote import progress  # Only now: what it stands on takes long to import.

        body = progress.carry_out(given.api_socket, call, subcommand.name, subcommand.target(given))
    else:
        body = client.send(call)
    assert isinstance(body, bytes)
    if body:
        print(body.decode(errors="replace"))
    elif given.json:
        print("null")


def _report(error: Exception, *, as_json: bool) -> str:
    """Say what failed, as ch-remote does, or as one JSON object."""
    if as_json:
        status = error.status if isinstance(error, ApiError) else None
        messages = error.messages if isinstance(error, ApiError) else sentences_of(error)
        return json.dumps({"status": status, "messages": list(messages)}, ensure_ascii=False)
    if not isinstance(error, ApiError):
        return format_lines(PROGRAM, sentences_of(error))
    lines = ["http client error", f"Server responded with {_status_name(error.status)}"]
    if error.is_chain:
        return format_lines(PROGRAM, [*lines, *error.messages])
    return "\n".join([format_lines(PROGRAM, lines), *(f"  X: {each}" for each in error.messages)])


def _status_name(status: int) -> str:
    try:
        return HTTPStatus(status).phrase.replace(" ", "")
    except ValueError:
        return "Unknown"


class _Parser(argparse.ArgumentParser):
    """argparse with the words and the exit codes that scripts know."""

    def error(self, message: str) -> NoReturn:
        text = f"error: {message}\n\nUsage: {USAGE}\n\nFor more information, try '--help'.\n"
        self.exit(2, text)


def build_parser() -> argparse.ArgumentParser:
    """Make the parser of the whole command line."""
    parser = _Parser(prog=PROGRAM, allow_abbrev=False, description="Control a running VM.")
    parser.add_argument("--api-socket", metavar="<path>", help="The VMM's API socket")
    parser.add_argument("--json", action="store_true", help="Say everything as JSON, errors too")
    version = f"{PROGRAM} v{__version__}"
    parser.add_argument("-V", "--version", action="version", version=version)
    commands = parser.add_subparsers(dest="command", metavar="<COMMAND>")
    for subcommand in SUBCOMMANDS:
        _add(commands.add_parser(subcommand.name, help=subcommand.caption), subcommand)
    shells = commands.add_parser(COMPLETION, help="Print a script that completes these commands")
    shells.add_argument("shell", choices=completion.SHELLS)
    live = commands.add_parser(TOP, help="Show the counters and their rates, live")
    live.add_argument("--interval", type=_seconds, default=1.0, help="Seconds from view to view")
    live.add_argument("--count", type=int, help="Views to show; without it, until interrupted")
    return parser


def _add(parser: argparse.ArgumentParser, subcommand: Subcommand) -> None:
    for argument in subcommand.arguments:
        if argument.name.startswith("--"):
            parser.add_argument(argument.name, required=argument.is_required, help=argument.caption)
        elif argument.default is not None:
            parser.add_argument(
                argument.name, nargs="?", default=argument.default, help=argument.caption
            )
        else:
            parser.add_argument(argument.name, help=_with_keys(argument))


def _with_keys(argument: Argument) -> str:
    keys = ",".join(argument.keys)
    return f"{argument.caption}: {keys}" if keys else argument.caption


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < 86400:
        raise argparse.ArgumentTypeError("give seconds, more than 0 and less than a day")
    return seconds


if __name__ == "__main__":
    sys.exit(main())
