"""Starting the machine: once from power-on to save its state, then always from that state."""

from __future__ import annotations

import shutil
import socket
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from tools.images.cache import exclusive, make_tree
from tools.nested_host import serial_log
from tools.nested_host.cable import Plug
from tools.nested_host.errors import NestedHostDied, NestedHostError
from tools.nested_host.inside.frames import SESSION, Kind, encode_json
from tools.nested_host.machine import Machine, machine
from tools.nested_host.monitor import Monitor
from tools.nested_host.processes import OwnedProcess, owned_process
from tools.nested_host.session import Session, open_session
from tools.nested_host.shares import TAG, Shares, compiled_checkout, virtiofsd

BOOT_DEADLINE_S: Final = 300
RESTORE_DEADLINE_S: Final = 60
KEPT_VERSIONS: Final = 3
QEMU_LOG: Final = "qemu.log"


@dataclass(frozen=True)
class Launched:
    """A QEMU with the two streams into it."""

    session: Session
    monitor: Monitor
    process: OwnedProcess


def build(*, again: bool = False) -> Machine:
    """Return the machine with its saved state made; call it outside of trio.

    Raises: NestedHostError or ImageError: a part could not be had, or it did not boot (host).
    """
    built = machine()
    folder = built.state_file.parent
    with exclusive("nested-host-state"):
        if again and folder.exists():
            shutil.rmtree(folder)
        if not folder.exists():
            print("nested host: booting it to save its state …", file=sys.stderr, flush=True)
            make_tree(folder, lambda path: trio.run(save_state, built, path))
            forget_older(folder)
            forget_older(built.image.image.parent)
    return built


def forget_older(newest: Path) -> None:
    """Remove what older versions left beside a folder, but for the last few, still in use."""
    folders = sorted(newest.parent.glob("[!.]*"), key=lambda path: path.stat().st_mtime)
    for folder in folders[:-KEPT_VERSIONS]:
        if folder != newest:
            shutil.rmtree(folder)


async def save_state(built: Machine, folder: Path) -> None:
    """Boot the machine and leave its state, and nothing else, in a folder."""
    async with launch(built, folder, []) as launched:
        with deadline(BOOT_DEADLINE_S, "did not boot", folder):
            await launched.session.expect(Kind.READY)
            await launched.monitor.save(str(folder / built.state_file.name))
    for name in (QEMU_LOG, serial_log.LOG_NAME):
        (folder / name).unlink()


@asynccontextmanager
async def restored(
    built: Machine, shares: Shares, run_dir: Path, plug: Plug | None = None
) -> AsyncIterator[Launched]:
    """Restore the saved state, plug and mount the shares, for the length of a block."""
    async with AsyncExitStack() as stack:
        async with compiled_checkout(shares, run_dir):
            fs_socket = await stack.enter_async_context(virtiofsd(shares, run_dir))
            extra = ["-incoming", "defer", "-chardev", f"socket,id=shares,path={fs_socket}"]
            pass_fds = []
            if plug is not None:
                extra += plug.arguments()
                pass_fds.append(plug.socket.fileno())
            launching = launch(built, run_dir, extra, pass_fds)
            launched = await stack.enter_async_context(launching)
            with deadline(RESTORE_DEADLINE_S, "was not restored", run_dir):
                await launched.monitor.restore(str(built.state_file))
                await launched.monitor.execute(
                    "device_add", driver="vhost-user-fs-pci", chardev="shares", tag=TAG, bus="rp1",
                    id="shares",
                )  # fmt: skip
                if plug is not None:
                    await launched.monitor.execute("device_add", **plug.device(), bus="rp2")
                await launched.monitor.execute("cont")
        with deadline(RESTORE_DEADLINE_S, "did not mount its shares", run_dir):
            await launched.session.send(encode_json(SESSION, Kind.MOUNT, shares.mount_request()))
            await launched.session.expect(Kind.MOUNTED)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(launched.session.keep_awake)
            yield launched
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def launch(
    built: Machine, run_dir: Path, extra: Sequence[str], pass_fds: Sequence[int] = ()
) -> AsyncIterator[Launched]:
    """Start QEMU for the length of a block; its logs are in `run_dir`."""
    agent, their_agent = socket.socketpair()
    control, their_control = socket.socketpair()
    with their_agent, their_control:
        command = built.command(
            run_dir / serial_log.LOG_NAME, their_agent.fileno(), their_control.fileno()
        )
        starting = owned_process(
            [*command, *extra],
            log=run_dir / QEMU_LOG,
            package="qemu-system-x86",
            pass_fds=[their_agent.fileno(), their_control.fileno(), *pass_fds],
            environment=built.qemu.environment,
        )
        async with AsyncExitStack() as stack:
            agent_stream = trio.SocketStream(trio.socket.from_stdlib_socket(agent))
            control_stream = trio.SocketStream(trio.socket.from_stdlib_socket(control))
            await stack.enter_async_context(control_stream)
            process = await stack.enter_async_context(starting)
            their_agent.close()
            their_control.close()
            session = await stack.enter_async_context(open_session(agent_stream, run_dir, process))
            monitor = Monitor(control_stream)
            try:
                await monitor.greet()
            except NestedHostError as error:
                said = (run_dir / QEMU_LOG).read_text(errors="replace").strip()
                raise NestedHostError(f"QEMU did not start: {said}") from error
            yield Launched(session, monitor, process)


@contextmanager
def deadline(seconds: float, failure: str, run_dir: Path) -> Iterator[None]:
    """Bound a block in time; the error shows the end of the serial log."""
    try:
        with trio.fail_after(seconds):
            yield
    except trio.TooSlowError as error:
        message = f"The nested host {failure} within {seconds:.0f} s; its serial port said last:\n"
        raise NestedHostDied(
            message + serial_log.tail(run_dir), is_oops=serial_log.has_oops(run_dir)
        ) from error
