"""Debian with systemd moves to and fro between two networks while it works.

The disks are one file for both.
"""

from __future__ import annotations

import os
import time
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trio

from tests.guest.conftest import BOOT_S, Guest, booted
from tests.guest.debian import (
    GATEWAY,
    NETWORK,
    SLOW_S,
    check_file_system,
    check_multi_user,
    check_ping,
    disk,
    wait_for_power_off,
)
from tests.guest.echoes import Echoes
from tests.guest.load import check_load, start_load
from tests.guest.moving import migrate
from tests.guest.two_networks import HOSTS, TAP, two_networks
from tools.images.initramfs import initramfs
from tools.images.kernels import kernel
from tools.images.rootdisk import root_disk
from tools.images.sparse import MIB, copy_sparse
from vmm.config.requests import SendMigrationData, TimeoutStrategy
from vmm.testing.console import GuestConsole
from vmm.testing.process import VmmProcess

pytestmark = pytest.mark.guest

MAC = "02:00:00:00:02:02"
MIGRATION_PORT = 7100

CONNECTIONS = (1, 4, 16)
"""One move for each, to and fro."""
PASSES_S = 10
"""After so long the guest is stopped, however much it has changed meanwhile."""
DATA_MIB = 32
CLOCK_S = 2.0


async def clock_offset(guest: Guest) -> tuple[float, float]:
    """How far the guest's clock is before the host's at the least, and at the most."""
    before = time.time()
    seen = float(await guest.run("date +%s.%N"))
    return seen - time.time(), seen - before


async def check_clock(guest: Guest, least: float, most: float) -> None:
    """The guest's clock is as far before the host's as it was."""
    now_least, now_most = await clock_offset(guest)
    assert now_most > least - CLOCK_S, (least, most, now_least, now_most)
    assert now_least < most + CLOCK_S, (least, most, now_least, now_most)


async def until_disk_is_used(guest: Guest) -> None:
    """Wait until this VMM has read or written for the guest on its second disk."""
    with trio.fail_after(SLOW_S):
        while True:
            counters = (await guest.vmm.api("GET", "vm.counters")).json["_disk1"]
            if counters["read_bytes"] + counters["write_bytes"]:
                return
            await trio.sleep(0.1)  # Nothing tells of it.


async def move(
    guest: Guest, vmm: VmmProcess, number: int, serial: Path, stack: AsyncExitStack
) -> Guest:
    """Move the guest to a VMM on the other host, which finds its disk and its network at work."""
    request = SendMigrationData(
        destination_url=f"tcp:{HOSTS[(number + 1) % 2]}:{MIGRATION_PORT}",
        connections=CONNECTIONS[number],
        timeout_s=PASSES_S,
        timeout_strategy=TimeoutStrategy.IGNORE,
    )
    # The socket of the serial port has a name in the file system, which the two hosts share.
    os.rename(serial, serial.with_name(f"old{number}.sock"))
    await migrate(guest.vmm, vmm, request)
    return Guest(vmm, await stack.enter_async_context(GuestConsole.connect(serial)))


async def test_debian_under_load_moves_to_and_fro_between_two_networks(
    place: Path,
) -> None:
    linux = kernel("6.12-cloud")
    root, data = copy_sparse(root_disk(), place / "root.raw"), place / "data.raw"
    data.touch()
    os.truncate(data, DATA_MIB * MIB)
    options = ["--cpus", "boot=2", "--memory", "size=512M", "--disk", disk(root), disk(data)]
    options += ["--net", f"tap={TAP},mac={MAC}"]
    async with AsyncExitStack() as stack:
        networks = await stack.enter_async_context(two_networks())
        others = []
        for number in range(len(CONNECTIONS)):
            folder = place / f"vmm{number}"
            folder.mkdir()
            started = VmmProcess.start(folder, api=True, network=networks[(number + 1) % 2])
            others.append(await stack.enter_async_context(started))
            await others[-1].wait_until_served(BOOT_S)
        start = booted(
            place, linux, initramfs(linux, "root"), *options, extra=NETWORK, network=networks[0]
        )
        guest = await stack.enter_async_context(start)
        await check_multi_user(guest, linux)
        # In an emulated host that others keep busy it starts out wrong by seconds.
        offset = await clock_offset(guest)

        echoes = Echoes(GATEWAY)
        async with trio.open_nursery() as nursery:
            await nursery.start(echoes.serve)
            await start_load(guest, GATEWAY)
            await echoes.until(1)
            for number, vmm in enumerate(others):
                guest = await move(guest, vmm, number, place / "serial.sock", stack)
                await echoes.until(echoes.count + 16)
                await check_clock(guest, *offset)
                await until_disk_is_used(guest)
            echoes.end()
        await check_load(guest, len(CONNECTIONS), GATEWAY)
        await check_ping(guest)
        await check_multi_user(guest, linux)

        await guest.console.type("systemctl start --no-block poweroff.target\n")
        await wait_for_power_off(guest)
    await check_file_system(root)
