"""The command line of the nested host: `python -m tools.nested_host`."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import trio

from tools.images.cache import ImageError, cache_dir
from tools.nested_host.errors import NestedHostError
from tools.nested_host.host import NestedHost
from tools.nested_host.launch import build
from tools.nested_host.machine import Machine
from tools.nested_host.shares import Shares
from tools.nested_host.terminal import run_attached

FAILED: Final = 125  # ours, as no exit code of a command
INTERRUPTED: Final = 130
CHECKOUT: Final = Path(__file__).resolve().parents[2]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand and return the exit code."""
    options = parser().parse_args(arguments)
    code = FAILED
    try:
        code = options.serve(options)
    except* (NestedHostError, ImageError) as group:
        for error in flatten(group):
            print(f"nested host: {error}", file=sys.stderr)
    except* KeyboardInterrupt:
        code = INTERRUPTED
    return code


def flatten(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    """List the exceptions of a group and of the groups in it."""
    found: list[BaseException] = []
    for error in group.exceptions:
        found += flatten(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found


def parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    top = argparse.ArgumentParser(prog="python -m tools.nested_host", description=__doc__)
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    making = commands.add_parser("build", help="make the saved state, if there is none that fits")
    making.add_argument("--again", action="store_true", help="make it even if there is one")
    making.set_defaults(serve=serve_build)
    running = commands.add_parser("run", help="restore a host, run a command in it, power it off")
    add_command(running)
    add_results(running)
    running.set_defaults(serve=serve_run)
    return top


def add_command(parser: argparse.ArgumentParser) -> None:
    """Add what says which command to run, and how."""
    parser.add_argument("-e", "--env", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("-C", "--cwd", type=Path, help="directory; this one if it is shared")
    parser.add_argument("-t", "--terminal", action="store_true", help="give it a terminal")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND …")


def add_results(parser: argparse.ArgumentParser) -> None:
    """Add where the results go."""
    parser.add_argument(
        "--results", type=Path, metavar="DIR",
        help="folder of this host that commands inside can write to; $TRIO_VMM_RESULTS names it",
    )  # fmt: skip


def shares_of(options: argparse.Namespace) -> Shares:
    """Return the shares, their folders made."""
    chosen: Path = options.results or cache_dir() / "nested-host" / "results"
    results = chosen.resolve()
    results.mkdir(parents=True, exist_ok=True)
    return Shares(CHECKOUT, results)


def command_of(options: argparse.Namespace) -> tuple[list[str], Path, dict[str, str]]:
    """Return the command to run, its directory and its environment."""
    argv = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not argv:
        raise NestedHostError("No command is given; add one after '--'.")
    here = Path.cwd()
    cwd = options.cwd or (here if here.is_relative_to(CHECKOUT) else CHECKOUT)
    pairs = [pair.partition("=") for pair in options.env]
    return argv, cwd, {name: value for name, _, value in pairs}


def serve_build(options: argparse.Namespace) -> int:
    """Make the saved state."""
    print(build(again=options.again).state_file)
    return 0


def serve_run(options: argparse.Namespace) -> int:
    """Restore, run, power off."""
    return trio.run(run_once, build(), options)


async def run_once(built: Machine, options: argparse.Namespace) -> int:
    """Restore a host of our own for one command."""
    argv, cwd, env = command_of(options)
    with tempfile.TemporaryDirectory(prefix="nested-host-") as run_dir:
        async with NestedHost.restore(built, shares_of(options), Path(run_dir)) as host:
            return await run_attached(host, argv, cwd, env, wants_terminal=options.terminal)
