"""A stock guest moves fifty times in a row, each time to a VMM that was started for it.

Four minutes in a nested host are too long for every run of the tests: it is run by its name,
``python -m pytest tests/guest/fifty_moves.py``.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio

from tests.guest.conftest import BOOT_S, Guest, booted
from tests.guest.debian import ADDRESS, GATEWAY, disk, vmm_pid
from tests.guest.echoes import PORT, Echoes
from tests.guest.moving import migrate
from tests.guest.shell_load import disk_load, disk_rounds
from tests.guest.two_networks import HOSTS, TAP, two_networks
from tests.holding import held, until_held
from tools.images.kernels import Kernel
from vmm.config.requests import SendMigrationData, TimeoutStrategy
from vmm.testing.console import GuestConsole
from vmm.testing.process import VmmProcess

pytestmark = pytest.mark.guest

MIB = 1 << 20
MOVES = 50
CONNECTIONS = (1, 4)
BLOCKS = 2
"""So many go to and fro before the guest moves on."""
DISK_MIB = 4
MAC = "02:00:00:00:02:03"
MIGRATION_PORT = 7100

Supplied = trio.MemorySendChannel[VmmProcess]

# Whatever comes over the connection goes back on it.
ECHO = (
    "{ mkfifo /run/echo; "
    f"( nc {GATEWAY} {PORT} 0<> /run/echo > /run/echo; echo $? > /run/echoed ) & }}"
)


async def live(place: Path, network: Path, *, task_status: trio.TaskStatus[VmmProcess]) -> None:
    """Be the life of a VMM, which has no VM at first."""
    await trio.Path(place).mkdir()
    async with VmmProcess.start(place, api=True, network=network) as vmm:
        await vmm.wait_until_served(BOOT_S)
        task_status.started(vmm)
        await vmm.process.wait()


async def supply(
    place: Path, networks: Sequence[Path], nursery: trio.Nursery, send: Supplied
) -> None:
    """Start a VMM for each move, the next one beside a move."""
    async with send:
        for number in range(MOVES):
            network = networks[(number + 1) % 2]
            await send.send(await nursery.start(live, place / f"vmm{number}", network))


async def move(guest: Guest, vmm: VmmProcess, number: int, serial: Path) -> None:
    """Move the guest to a VMM in the other network."""
    # The socket of the serial port has a name in the file system, which both VMMs share.
    os.rename(serial, serial.with_name("old.sock"))
    request = SendMigrationData(
        destination_url=f"tcp:{HOSTS[(number + 1) % 2]}:{MIGRATION_PORT}",
        connections=CONNECTIONS[number // 2 % 2],
        timeout_s=2,
        timeout_strategy=TimeoutStrategy.IGNORE,
    )
    await migrate(guest.vmm, vmm, request)


async def test_guest_moves_fifty_times_and_leaves_nothing_behind(
    place: Path, linux: Kernel, with_virtio: Path
) -> None:
    image, serial = place / "shared.raw", place / "serial.sock"
    image.write_bytes(bytes(DISK_MIB * MIB))
    options = ["--memory", "size=128M", "--disk", disk(image), "--net", f"tap={TAP},mac={MAC}"]
    echoes, moves = Echoes(GATEWAY), 0
    async with (
        two_networks() as networks,
        booted(place, linux, with_virtio, *options, network=networks[0]) as guest,
        trio.open_nursery() as nursery,
    ):
        first = vmm_pid(guest)
        send, vmms = trio.open_memory_channel[VmmProcess](0)
        nursery.start_soon(supply, place, networks, nursery, send)
        await guest.run(f"ip addr add {ADDRESS}/24 dev eth0; ip link set eth0 up")
        await nursery.start(echoes.serve)
        await guest.run(ECHO)
        await guest.run(disk_load(64, rest_s=0.5))
        await echoes.until(1)
        holder, usual = guest, held(first)
        async for vmm in vmms:
            await move(holder, vmm, moves, serial)
            holder = Guest(vmm, guest.console)
            await echoes.until(echoes.count + BLOCKS)
            moves += 1
        echoes.end()

        assert moves == MOVES
        await until_held(vmm_pid(holder), usual)
        async with GuestConsole.connect(serial) as console:
            await console.run("until [ -s /run/echoed ]; do sleep 0.1; done; grep 0 /run/echoed")
            assert await disk_rounds(console) > 0
            seen = await console.run("echo 3 > /proc/sys/vm/drop_caches; md5sum /dev/vda")
            assert seen.split()[0] == hashlib.md5(image.read_bytes()).hexdigest()
        nursery.cancel_scope.cancel()
