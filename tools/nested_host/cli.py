"""Run commands in a nested host: a stock Debian machine with KVM, emulated where there is none."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final

import trio

from tools.images.cache import ImageError, cache_dir
from tools.nested_host.errors import NestedHostError
from tools.nested_host.host import NestedHost
from tools.nested_host.instance import Instance, instances
from tools.nested_host.launch import build
from tools.nested_host.machine import Machine
from tools.nested_host.shares import Shares
from tools.nested_host.standing import attached, bring_down, bring_up, refresh, serve_instance
from tools.nested_host.terminal import run_attached

FAILED: Final = 125  # ours, as no exit code of a command
INTERRUPTED: Final = 130
CHECKOUT: Final = Path(__file__).resolve().parents[2]
DEFAULT_NAME: Final = "default"


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

    def add(
        name: str, serve: Callable[[argparse.Namespace], int], text: str
    ) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(serve=serve)
        return command

    making = add("build", serve_build, "make the saved state, if there is none that fits")
    making.add_argument("--again", action="store_true", help="make it even if there is one")
    running = add("run", serve_run, "restore a host, run a command in it, power it off")
    add_results(running)
    add_command(running)
    starting = add("up", serve_up, "restore a host that stays up")
    add_name(starting)
    add_results(starting)
    executing = add("exec", serve_exec, "run a command in a host that is up")
    add_name(executing)
    add_command(executing)
    shell = add("shell", serve_shell, "open a shell in a host that is up")
    add_name(shell)
    freshening = add("refresh", serve_refresh, "make a host that is up see this one's newer files")
    add_name(freshening)
    stopping = add("down", serve_down, "power off a host that is up")
    add_name(stopping)
    add("status", serve_status, "list the hosts, and say whether a saved state is there")
    serving = commands.add_parser("serve")  # what `up` starts; not for the user
    serving.set_defaults(serve=serve_serve)
    add_name(serving)
    serving.add_argument("--ready-fd", type=int, required=True)
    return top


def add_name(parser: argparse.ArgumentParser) -> None:
    """Add which host is meant."""
    parser.add_argument("--name", type=Instance, default=Instance(DEFAULT_NAME), dest="instance")


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


def run_trio(serve: Callable[[], Awaitable[int]]) -> int:
    """Run a task that SIGTERM and SIGHUP end in good order."""

    async def guarded() -> int:
        code = FAILED
        async with trio.open_nursery() as nursery:

            async def stop_on_signal() -> None:
                nonlocal code
                with trio.open_signal_receiver(signal.SIGTERM, signal.SIGHUP) as signals:
                    async for number in signals:
                        code = 128 + number
                        nursery.cancel_scope.cancel()

            nursery.start_soon(stop_on_signal)
            code = await serve()
            nursery.cancel_scope.cancel()
        return code

    return trio.run(guarded)


async def run_command(host: NestedHost, options: argparse.Namespace) -> int:
    """Run the command of the command line with our streams."""
    argv = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not argv:
        raise NestedHostError("No command is given; add one after '--'.")
    here = Path.cwd()
    cwd = options.cwd or (here if here.is_relative_to(CHECKOUT) else CHECKOUT)
    env = {name: value for name, _, value in (pair.partition("=") for pair in options.env)}
    return await run_attached(host, argv, cwd, env, wants_terminal=options.terminal)


def serve_build(options: argparse.Namespace) -> int:
    """Make the saved state."""
    print(build(again=options.again).state_file)
    return 0


def serve_run(options: argparse.Namespace) -> int:
    """Restore, run, power off."""
    built = build()

    async def run_once() -> int:
        with tempfile.TemporaryDirectory(prefix="nested-host-") as run_dir:
            async with NestedHost.restore(built, shares_of(options), Path(run_dir)) as host:
                return await run_command(host, options)

    return run_trio(run_once)


def serve_up(options: argparse.Namespace) -> int:
    """Start a process that owns a host, and return when it takes commands."""
    build()
    bring_up(options.instance, shares_of(options))
    return 0


def serve_serve(options: argparse.Namespace) -> int:
    """Be that process."""
    built: Machine = build()
    return run_trio(lambda: serve_instance(built, options.instance, options.ready_fd))


def serve_exec(options: argparse.Namespace) -> int:
    """Run a command in a host that is up."""

    async def execute() -> int:
        async with attached(options.instance) as host:
            return await run_command(host, options)

    return run_trio(execute)


def serve_shell(options: argparse.Namespace) -> int:
    """Run a shell on a terminal."""
    options.env, options.cwd, options.terminal = [], None, True
    options.command = ["bash", "-i"]
    return serve_exec(options)


def serve_refresh(options: argparse.Namespace) -> int:
    """Drop what a host has cached of this one's files."""

    async def drop() -> int:
        async with attached(options.instance) as host:
            return await refresh(host, options.instance)

    return run_trio(drop)


def serve_down(options: argparse.Namespace) -> int:
    """Power a host off and wait until it is gone."""
    return run_trio(lambda: bring_down(options.instance))


def serve_status(_: argparse.Namespace) -> int:
    """Say what there is."""
    states = list((cache_dir() / "nested-host" / "states").glob("*/state"))
    print(f"saved states: {len(states)}")
    for instance in instances():
        state = "up" if instance.is_up() else "down"
        print(f"{instance.name}: {state}, logs in {instance.run_dir}")
    return 0
