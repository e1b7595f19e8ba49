"""Bringing up a host that stays, reaching it, and bringing it down."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Final

import trio

from tools.nested_host.errors import NestedHostError
from tools.nested_host.host import NestedHost
from tools.nested_host.inside.frames import SESSION, Frame, Kind, encode
from tools.nested_host.instance import Instance
from tools.nested_host.machine import Machine
from tools.nested_host.owner import READY, serve
from tools.nested_host.session import open_session
from tools.nested_host.shares import Shares, compiled_checkout

# 3: pages, names and attributes of every file nobody has open; only so does the kernel inside look
# at this host's files again, as virtiofs runs with cache=always.
DROP_CACHES: Final = ["sh", "-c", "echo 3 > /proc/sys/vm/drop_caches"]


def bring_up(instance: Instance, shares: Shares) -> None:
    """Start the owner of a host in the background; returns when the host takes commands.

    Raises: NestedHostError: it is up already (caller), or did not come up (host).
    """
    instance.prepare(shares)
    read_end, write_end = os.pipe()
    log = instance.run_dir / "owner.log"
    command = [sys.executable, "-m", "tools.nested_host", "serve", "--name", instance.name]
    with os.fdopen(read_end, "rb") as ready, log.open("wb") as output:
        subprocess.Popen(
            [*command, "--ready-fd", str(write_end)],
            cwd=shares.checkout,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=[write_end],
            start_new_session=True,
        )
        os.close(write_end)
        if ready.readline() != READY:
            said = log.read_text(errors="replace").strip()
            raise NestedHostError(f"The nested host {instance.name!r} did not come up: {said}")


async def serve_instance(built: Machine, instance: Instance, ready_fd: int) -> int:
    """Own a host until it goes; its folder goes with it, unless something went wrong."""
    instance.owner_pid.write_text(str(os.getpid()))
    await serve(built, instance, ready_fd)
    instance.remove()
    return 0


@asynccontextmanager
async def attached(instance: Instance) -> AsyncIterator[NestedHost]:
    """Reach a host that is up. Raises NestedHostError: it is not (caller)."""
    shares = instance.shares()
    try:
        stream = await trio.open_unix_socket(str(instance.control))
    except OSError:
        raise instance.is_down() from None
    async with open_session(stream, instance.run_dir) as session:
        yield NestedHost(session, shares)


async def refresh(host: NestedHost, instance: Instance) -> int:
    """Make a host see the files of this one as they are now; returns an exit code."""
    async with compiled_checkout(instance.shares(), instance.run_dir):
        pass
    return (await host.run(DROP_CACHES)).code


async def bring_down(instance: Instance) -> int:
    """Power a host off and wait until its owner is gone; what a dead one left is removed."""
    if not instance.is_up():
        shares = instance.shares()
        instance.remove()
        print(f"nested host: {instance.name} was not up; it wrote to {shares.results}")
        return 0
    async with attached(instance) as host:
        with owner_end(instance) as pidfd:
            await host.session.send(encode(Frame(SESSION, Kind.POWER_OFF)))
            await trio.lowlevel.wait_readable(pidfd)
    return 0


@contextmanager
def owner_end(instance: Instance) -> Iterator[int]:
    """Give a descriptor that is readable when the owner of a host has ended."""
    pidfd = os.pidfd_open(int(instance.owner_pid.read_text()))
    try:
        yield pidfd
    finally:
        os.close(pidfd)
