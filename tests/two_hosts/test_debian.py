"""Debian with systemd moves to and fro between two nested hosts while it works.

What carries its memory, and its streams with both hosts, goes over the cable between them. Its
disks are files that each host sees by a virtiofsd of its own, past its page cache (`direct=on`).
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import trio

from tests.guest.conftest import BOOT_S, words
from tests.guest.debian import NETWORK, check_file_system, check_multi_user, disk
from tests.guest.load import check_load, start_load
from tests.two_hosts.hosts import ADDRESSES, SERIAL, TAP, Host, Vmm, move, two_hosts
from tests.two_hosts.program import Program
from tools.images.initramfs import initramfs
from tools.images.kernels import Kernel, kernel
from tools.images.rootdisk import root_disk
from tools.images.sparse import MIB, copy_sparse
from tools.nested_host.cli import flatten
from tools.nested_host.errors import NestedHostDied
from tools.nested_host.machine import Machine
from vmm.testing.stall import Stalled

pytestmark = pytest.mark.two_hosts

MAC = "02:00:00:00:02:02"
DATA_MIB = 32
ROOT, DATA = "root.raw", "data.raw"
BLOCKS = 16
"""So many go to and fro on each stream before the guest moves on."""
SECONDS = 240.0
ATTEMPTS = 2
"""An emulated host now and then ends, or stands still: then all is tried once more."""


@asynccontextmanager
async def echoing(host: Host) -> AsyncIterator[Program]:
    """A stream between a host and the guest, which connects to it."""
    words = ("python", "-m", "tests.guest.echoes", host.address)
    async with Program.started(host.nested, *words) as echoes:
        await echoes.until("listening\n", SECONDS)
        yield echoes


async def until_echoed(echoes: Program, blocks: int) -> None:
    """Wait until so many more blocks have come back."""
    await echoes.send_all(b"?")
    enough = int(await echoes.until("\n", SECONDS)) + blocks
    with trio.move_on_after(SECONDS):
        while True:
            await echoes.send_all(b"?")
            if int(await echoes.until("\n", SECONDS)) >= enough:
                return
            await trio.sleep(0.2)  # It has to be asked.
    raise Stalled(f"No {blocks} blocks came back in {SECONDS} s:\n{echoes.transcript()}")


def options(linux: Kernel, storage: Path) -> tuple[str, ...]:
    """The command line of the VMM that boots the guest."""
    line = f"{words(then='shell')} {NETWORK}"
    disks = [disk(storage / name, direct="on") for name in (ROOT, DATA)]
    return (
        *("--kernel", str(linux.vmlinux), "--initramfs", str(initramfs(linux, "root"))),
        *("--cmdline", line, "--serial", f"socket={SERIAL}", "--console", "off"),
        *("--memory", "size=384M", "--disk", *disks, "--net", f"tap={TAP},mac={MAC}"),
    )


async def check_uses(vmm: Vmm, echoes: Sequence[Program]) -> None:
    """This VMM carries the guest's streams, and what it reads and writes."""
    for program in echoes:
        await until_echoed(program, BLOCKS)
    with trio.move_on_after(SECONDS):
        while True:
            counters = json.loads(await vmm.request("counters"))
            if all(counters["_disk1"][name] for name in ("read_bytes", "write_bytes")):
                return
            await trio.sleep(0.2)  # Nothing tells of it.
    raise Stalled(f"The guest does not use its disk:\n{vmm.program.transcript()}")


async def there_and_back(hosts: tuple[Host, Host], linux: Kernel, storage: Path) -> None:
    """Boot the guest in the first host, move it to the second and back, and power it off."""
    near, far = hosts
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        vmm = await enter(Vmm.started(near, "first", *options(linux, storage)))
        others = [await enter(Vmm.started(host, "next")) for host in (far, near)]
        await vmm.program.until('"booted"', SECONDS)
        guest = await enter(near.console())
        await guest.wait_for("GUEST-READY", SECONDS)
        await guest.run("stty -echo")
        await check_multi_user(guest, linux)

        echoes = [await enter(echoing(host)) for host in hosts]
        await start_load(guest, *ADDRESSES)
        for other in others:
            await until_echoed(echoes[0], 1)
            await other.until_served()
            await move(vmm, other)
            vmm, guest = other, await enter(other.host.console())
            await check_uses(vmm, echoes)
        for program in echoes:
            await program.end_input()
            await program.end(SECONDS)
        await check_load(guest, len(others), *ADDRESSES)
        await check_multi_user(guest, linux)

        await guest.type("systemctl start --no-block poweroff.target\n")
        await guest.wait_for("GUEST-POWEROFF", BOOT_S)
        await vmm.program.end(BOOT_S)


def told(error: BaseException) -> str:
    """What an error says, and what was said before it came."""
    return "\n".join((str(error), *getattr(error, "__notes__", ())))


def is_of_the_hosts(error: BaseException) -> bool:
    """Whether an emulated host may be why: it has ended, stood still, or failed the guest in it,
    which has reset itself.
    """
    return isinstance(error, NestedHostDied | Stalled) or '"event": "rebooting"' in told(error)


async def test_debian_under_load_moves_to_another_nested_host_and_back(
    built: Machine, retried: list[str], tmp_path: Path
) -> None:
    linux = kernel("6.12-cloud")
    for left in reversed(range(ATTEMPTS)):
        storage = tmp_path / f"storage{left}"
        storage.mkdir()
        root, data = copy_sparse(root_disk(), storage / ROOT), storage / DATA
        data.touch()
        os.truncate(data, DATA_MIB * MIB)
        try:
            async with two_hosts(built, storage) as hosts:
                await there_and_back(hosts, linux, storage)
            await check_file_system(root)
            return
        except* (NestedHostDied, AssertionError) as group:
            errors = flatten(group)
            if not left or not all(map(is_of_the_hosts, errors)):
                raise
            retried += map(told, errors)
